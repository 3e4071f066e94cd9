"""States that are inputs and outputs of a model: opened for the solve, so that their channels may go, and closed after.

While a model is solved and checked, samples are fed as they are, and a Gather behind the input takes the channels that
stay. What is checked is the original with the same channels taken of its outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.graph import CarriedState, Graph
from pcns_onnx.graph.editing.interface import entries
from pcns_onnx.numerics.arrays import Array, namespace_of
from pcns_onnx.ops import Labels


@dataclass(frozen=True)
class TakeState:
    """Of tensor `key`, which a state's input is passed on as, some entries stay: `kept`, of its rank."""

    key: str
    kept: NDArray[np.bool_]

    def apply(self, graph: Graph) -> None:
        """Make the edit."""
        graph.take_behind(self.key, self.kept)

    def __str__(self) -> str:
        return f"'{self.key}' := {int(self.kept.sum())} of its {self.kept.size} channels"


def take_states(graph: Graph, labels: Mapping[str, Labels], copies: NDArray[np.int64]) -> Iterator[TakeState]:
    """What is left of each state when class c is there copies[c] times, 0 or 1."""
    for state in graph.layout.states:
        kept = copies[labels[state.key]] > 0 if state.key in labels else np.ones(1, dtype=np.bool_)
        if not kept.all():
            yield TakeState(state.key, kept)


def open_states(graph: Graph, states: Sequence[CarriedState]) -> Graph:
    """A copy in which each of these states is read by way of a node of its own."""
    if not states:
        return graph
    result = graph.copy()
    parted = tuple(replace(state, key=result.part_input(state.input)) for state in states)
    return result.copy(replace(graph.layout, states=parted))


def shapes_of_states(graph: Graph) -> dict[str, tuple[tuple[int, ...], NDArray[np.int64]]]:
    """By state that is narrower in `graph`: its input's sizes, one where all stays, and the flat places that are left.

    `graph` has its states open.
    """
    specs, narrowed = {spec.name: spec for spec in graph.inputs}, {}
    for state in graph.layout.states:
        if state.key not in graph.producers or state.input not in specs:
            continue
        shape = specs[state.input].shape
        old = tuple((shape[axis] or 1) if axis in state.axes else 1 for axis in range(len(shape)))
        places = graph.places_of(state.input, state.key, old)
        if places.size < int(np.prod(old)):
            narrowed[state.input] = (old, places)
    return narrowed


def state_outputs(graph: Graph) -> None:
    """Write down, in place, what shape the outputs have that give narrower states back."""
    ends = {state.input: state.output for state in graph.layout.states}
    for name, (old, places) in shapes_of_states(graph).items():
        graph.state_shape(ends[name], _changed_sizes(old, places))


def _changed_sizes(old: Sequence[int], places: NDArray[np.int64]) -> tuple[int | None, ...]:
    return tuple(new if size > 1 else None for size, new in zip(old, places.shape, strict=True))


def close_states(graph: Graph, states: Sequence[CarriedState] | None = None) -> Graph:
    """A copy of a model with open `states`, its own if none are given, whose ends have the shape of what is left."""
    if states:
        graph = graph.copy(replace(graph.layout, states=tuple(states)))
    if not graph.layout.states:
        return graph
    narrowed, result = shapes_of_states(graph), graph.copy(replace(graph.layout, states=()))
    for state in graph.layout.states:
        sizes = _changed_sizes(*narrowed[state.input]) if state.input in narrowed else ()
        if state.key in result.producers:
            result.join_input(state.input, state.key, sizes)
    result.prune()
    return result


def as_narrowed(original: Graph, small: Graph) -> Graph:
    """The original, of whose states' outputs only those channels are left that `small` has, too."""
    narrowed, result = shapes_of_states(small), original
    for state in small.layout.states:
        if state.input in narrowed:
            result = original.copy() if result is original else result
            old, places = narrowed[state.input]
            kept = np.isin(np.arange(int(np.prod(old))), places).reshape(old)
            result.take_behind(state.output, kept, is_output=True)
    return result


def fed_to(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """What the closed form of a model with open states is fed with, from samples of the whole contract."""
    result = dict(feeds)
    for name, (old, places) in shapes_of_states(graph).items():
        if name in result:
            result[name] = np.ascontiguousarray(result[name][entries(places, old, result[name].shape)])
    return result


def filled(graph: Graph, whole: Mapping[str, Array], narrow: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors of a `narrow` model, its states with what they lack from the `whole` one."""
    result = dict(narrow)
    narrowed = shapes_of_states(graph) if graph.layout.states else {}
    for state in graph.layout.states:
        if state.input in narrowed and state.output in narrow and state.output in whole:
            old, places = narrowed[state.input]
            xp, complete = namespace_of(narrow[state.output]), whole[state.output]
            value = xp.asarray(complete).copy()
            index = tuple(xp.asarray(part) for part in entries(places, old, value.shape))
            value[index] = narrow[state.output]
            result[state.output] = value
    return result
