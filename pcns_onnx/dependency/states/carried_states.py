"""States that a caller carries from run to run, as channels: an input's labels come back at the output.

Each entry of the input along the axes of its channels starts as a class of its own; what reads it ties them, as it
ties all others, and at the end the output is tied to the input. Where several sets of classes must keep equally many,
they are `sides` of one group:

- the rows of one state (layers and directions that lie side by side in it), which has one width,
- the caches of all layers, for which runtimes allocate by one shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pcns_onnx.dependency.classes import Classes
from pcns_onnx.dependency.states.stateful_inputs import REORDERING
from pcns_onnx.graph import CarriedState, Graph, Shape
from pcns_onnx.ops import Labels, Tie
from pcns_onnx.ops.facts import axes_of

Sides = tuple[Labels, ...]


@dataclass(frozen=True)
class CarriedStates:
    """The open states of a graph: `labels` by the tensor that stands behind the input, and what is `given_back`."""

    states: tuple[CarriedState, ...] = ()
    labels: Mapping[str, Labels] = field(default_factory=dict)
    given_back: frozenset[str] = frozenset()

    @classmethod
    def of(cls, graph: Graph, shapes: Mapping[str, Shape], classes: Classes) -> CarriedStates:
        """With new labels for every channel of every open state."""
        states = tuple(state for state in graph.layout.states if state.key in graph.producers)
        labels = {}
        for state in states:
            shape = shapes.get(state.key, ())
            sizes = [(size or 1) if axis in state.axes else 1 for axis, size in enumerate(shape)]
            labels[state.key] = classes.fresh(int(np.prod(sizes))).reshape(sizes)
        return cls(states, labels, _given_back(graph, {state.output for state in states}))

    @cached_property
    def outputs(self) -> frozenset[str]:
        """The outputs that give states back."""
        return frozenset(state.output for state in self.states)

    def ties(self, labels: Mapping[str, Labels]) -> Iterator[Tie]:
        """The two ends of every state; -1 opposite a label where one end has no channel that could follow."""
        for state in self.states:
            own, back = self.labels[state.key], labels.get(state.output)
            if back is None:
                why = f"the state '{state.input}' comes back as '{state.output}', which holds none of its channels"
                yield Tie(own, np.full_like(own, -1), why)
                continue
            fits = own.ndim == back.ndim and all(
                1 in (a, b) or a == b for a, b in zip(own.shape, back.shape, strict=True)
            )
            if not fits:
                why = f"the state '{state.input}' does not have the shape of '{state.output}', which gives it back"
                yield Tie(own, np.full_like(own, -1), why)
                yield Tie(back, np.full_like(back, -1), why)
                continue
            why = f"the state '{state.input}' comes back as '{state.output}', some of whose channels stay"
            a, b = np.broadcast_arrays(own, back)
            yield Tie(np.array(a), np.array(b), why)

    def rows(self, classes: Classes) -> list[Labels]:
        """The classes of each row of a state whose rows differ, in order."""
        return [row for side in self._rows(classes) for row in side]

    def _rows(self, classes: Classes) -> Iterator[list[Labels]]:
        for state in self.states:
            labels = classes.compact(self.labels[state.key])
            if len(axes_of(labels)) == 2:
                yield list(labels.reshape([size for size in labels.shape if size > 1]))

    def holding(self, classes: Classes, some: set[int]) -> tuple[str, ...]:
        """The inputs that hold some of these classes."""
        inputs = ((state.input, classes.of(self.labels[state.key])) for state in self.states)
        return tuple(name for name, own in inputs if not some.isdisjoint(np.unique(own).tolist()))

    def uniform(self, classes: Classes, frozen: Mapping[int, str]) -> list[Sides]:
        """Sets of classes of which equally many stay, for each reason that they must."""
        together = [tuple(np.unique(row) for row in rows) for rows in self._rows(classes)]
        caches: dict[tuple[object, ...], list[Labels]] = {}
        for state in self.states:
            labels = classes.compact(self.labels[state.key])
            own = np.unique(labels)
            if state.is_cache and len(axes_of(labels)) == 1 and frozen.keys().isdisjoint(own.tolist()):
                kind = (self.labels[state.key].shape, axes_of(labels), len(own))
                if all(not np.array_equal(own, other) for other in caches.setdefault(kind, [])):
                    caches[kind].append(own)
        return [sides for sides in (*together, *map(tuple, caches.values())) if len(sides) > 1]


def with_uniform(classes: set[int], uniform: Sequence[Sides]) -> set[int]:
    """Classes, and all that must keep as many as some of them."""
    wholes = [set(np.concatenate(sides).tolist()) for sides in uniform]
    while more := [whole for whole in wholes if whole & classes and not whole <= classes]:
        classes = classes.union(*more)
    return classes


def _given_back(graph: Graph, outputs: set[str]) -> frozenset[str]:
    """Tensors that go nowhere but to these outputs, by way of what only reorders them or puts them side by side."""
    names, pending = set[str](), list(outputs)
    others = {spec.name for spec in graph.outputs} - outputs
    while pending:
        name = pending.pop()
        maker = graph.producers.get(name)
        if name in names or name in others or maker is None or maker.domain or maker.op not in (*REORDERING, "Concat"):
            continue
        if all(set(reader.outputs) & names for reader in graph.consumers.get(name, ())):
            names.add(name)
            pending += maker.inputs
    return frozenset(names)
