"""The weights of a recurrent layer as they are stored: read as V = [W R], written back, cut to some of its units.

W is (D, kH, I), R (D, kH, H), B (D, 2kH) the biases of both side by side, P and initial states hold the units of a
direction along their last axis. What a GRU adds to R h inside of its reset gate (the second half of B) stays apart:
a bias that is set goes to the first half.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.dependency.layers import Layer
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Array, Graph
from pcns_onnx.ops import Cell
from pcns_onnx.ops.recurrent import GATES
from pcns_onnx.rewrite.patch import Edit, Patch, SetInput, apply

Floats = NDArray[np.float64]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class DropInput:
    """Optional input `position` of node `key` goes."""

    key: str
    position: int

    def apply(self, graph: Graph) -> None:
        """Make the edit."""
        graph.read_same(self.key, self.position, "")

    def __str__(self) -> str:
        return f"input {self.position} of '{self.key}' := none"


@dataclass(frozen=True)
class CellWeights:
    """W (D, kH, I), R (D, kH, H) and the biases of both, (D, kH) each, float64."""

    w: Floats
    r: Floats
    wb: Floats
    rb: Floats

    @property
    def matrix(self) -> Floats:
        """[W R], (D, kH, I + H)."""
        return np.concatenate([self.w, self.r], axis=2)

    @property
    def units(self) -> int:
        """H."""
        return int(self.r.shape[2])

    def taken(self, rows: list[Places], columns: Places) -> CellWeights:
        """Of every direction the units `rows`, which read the inputs `columns`; equally many of each direction."""
        gates = self.r.shape[1] // self.units
        by_gate = [(np.arange(gates)[:, None] * self.units + own).reshape(-1) for own in rows]
        sides = range(len(rows))
        return CellWeights(
            np.stack([self.w[d][by_gate[d]][:, columns] for d in sides]),
            np.stack([self.r[d][by_gate[d]][:, rows[d]] for d in sides]),
            np.stack([self.wb[d][by_gate[d]] for d in sides]),
            np.stack([self.rb[d][by_gate[d]] for d in sides]),
        )

    def solved(self, matrix: Floats, bias: Floats) -> CellWeights:
        """With [W R] (D*kH, I + H) and the sum of the biases (D*kH,)."""
        directions, inputs = len(self.w), matrix.shape[1] - self.units
        whole = matrix.reshape(directions, -1, matrix.shape[1])
        return replace(self, w=whole[:, :, :inputs], r=whole[:, :, inputs:], wb=bias.reshape(directions, -1) - self.rb)


def show_steps(graph: Graph) -> tuple[Graph, tuple[str, ...]]:
    """A copy in which every recurrent layer puts out its states at all steps (Y); the names that are new."""
    result, shown = graph, list[str]()
    for node in graph.nodes:
        if node.op in GATES and not node.domain and not node.outputs[0]:
            result = graph.copy() if result is graph else result
            shown.append(result.fresh_name(f"{node.label}.steps"))
            result.name_output(node.key, 0, shown[-1])
    return result, tuple(shown)


def hide_steps(graph: Graph, shown: tuple[str, ...]) -> None:
    """Take the names that `show_steps` gave back again, in place."""
    for name in shown:
        if name in graph.producers:
            graph.name_output(name, 0, "")


def without_states(graph: Graph, layer: Layer) -> Graph:
    """`graph` with a recurrent layer that takes nothing that is computed but its input."""
    node = graph.node(layer.key)
    computed = (at for at, name in enumerate(node.inputs) if at > layer.bias.position and not graph.is_constant(name))
    return apply(graph, tuple(DropInput(layer.key, at) for at in computed if node.inputs[at]))


def cell_of(layer: Layer) -> Cell:
    """What a recurrent layer is."""
    assert layer.cell is not None, "asked of recurrent layers only"
    return layer.cell


def stored_cell(graph: Graph, layer: Layer) -> CellWeights:
    """The weights of a recurrent layer as they stand in `graph`."""
    node, cell = graph.node(layer.key), cell_of(layer)
    w, r = (graph.constant(node.inputs[at]) for at in (layer.linear.weight, cell.recurrence))
    assert w is not None and r is not None, "a cell that is narrowed stores its weights"
    w, r = w.astype(np.float64), r.astype(np.float64)
    has_bias = len(node.inputs) > layer.bias.position and node.inputs[layer.bias.position]
    stored = graph.constant(node.inputs[layer.bias.position]) if has_bias else None
    both = np.zeros((len(w), 2 * w.shape[1])) if stored is None else stored.astype(np.float64)
    return CellWeights(w, r, both[:, : w.shape[1]], both[:, w.shape[1] :])


def set_cell(graph: Graph, layer: Layer, weights: CellWeights) -> Patch:
    """Give a recurrent layer these weights; one without a bias gets one only where it is not zero."""
    if not all(np.isfinite(part).all() for part in (weights.w, weights.r, weights.wb, weights.rb)):
        raise InputError(f"the solve of '{layer.name}' gives NaN or Inf: leave it alone with --exclude")
    at, node = layer.bias.position, graph.node(layer.key)
    edits: list[Edit] = [
        SetInput(layer.key, layer.linear.weight, weights.w),
        SetInput(layer.key, cell_of(layer).recurrence, weights.r),
    ]
    both = np.concatenate([weights.wb, weights.rb], axis=1)
    if both.any() or (len(node.inputs) > at and node.inputs[at]):
        edits.append(SetInput(layer.key, at, both))
    return tuple(edits)


def take_units(graph: Graph, layer: Layer, rows: list[Places], columns: Places) -> list[Edit]:
    """Leave a recurrent layer the units `rows` of every direction and the inputs `columns`, which may stand twice."""
    weights, cell = stored_cell(graph, layer), cell_of(layer)
    alike = all(np.array_equal(own, np.arange(weights.units)) for own in rows)
    if alike and np.array_equal(columns, np.arange(weights.w.shape[2])):
        return []
    if len({len(own) for own in rows}) > 1:
        raise InputError(f"'{layer.name}' has as many units in both directions: keep equally many of each")
    if alike:
        return [SetInput(layer.key, layer.linear.weight, weights.w[:, :, columns])]
    edits = list(set_cell(graph, layer, weights.taken(rows, columns)))
    node = graph.node(layer.key)
    for at in cell.constants:
        value = graph.constant(node.inputs[at])
        assert value is not None, "it is stored"
        edits.append(SetInput(layer.key, at, _of_units(value, rows, weights.units)))
    return edits + [DropInput(layer.key, at) for at in cell.zeros]


def _of_units(value: Array, rows: list[Places], units: int) -> Array:
    """A stored (D, ..., nH) cut to the units `rows` of every direction."""
    times = value.shape[-1] // units
    sides = [
        np.take(value[d], (np.arange(times)[:, None] * units + own).reshape(-1), axis=-1) for d, own in enumerate(rows)
    ]
    return np.stack(sides)
