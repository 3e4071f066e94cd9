"""Moments of what layers put out, behind the activation, and their spectra.

A layer y = V x + c of more outputs than inputs (a head of many classes) needs no matrix of its outputs: with the
covariance C = L Lᵀ of its inputs, cov(y) = V C Vᵀ has the eigenvalues of Lᵀ Vᵀ V L, an inputs by inputs matrix, and
zeros beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.calibration.eigenbasis import Basis
from pcns_onnx.calibration.live_rows import LivePlaces
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import Array, namespace_of
from pcns_onnx.numerics.linalg import eigenvalues_descending, eigh_descending
from pcns_onnx.numerics.moments import Moments
from pcns_onnx.ops import LinearOp
from pcns_onnx.rewrite.layer_weights import stored_weight
from pcns_onnx.runtime.activations import Cut
from pcns_onnx.runtime.engine import Tensors
from pcns_onnx.runtime.executor import Sides
from pcns_onnx.runtime.samples import Positions

WIDE = 1024
"""Columns beyond which a matrix of covariances is not gathered to show its spectrum alone."""


def bases(
    calibration: Calibration, graph: Graph, dependencies: DependencyGraph, groups: Sequence[Group]
) -> Iterator[tuple[Group, Basis, Moments]]:
    """Eigen-decomposition of the first writer's outputs (behind the activation), for every group."""
    sides = [_outputs(calibration, dependencies, group) for group in groups]
    gathered = _gathered(calibration, graph, sides)
    for group in groups:
        moments = gathered[group.name]
        yield group, Basis.of(moments.mean_x, moments.covariance), moments


def output_spectra(
    calibration: Calibration, graph: Graph, dependencies: DependencyGraph, groups: Sequence[Group]
) -> Iterator[tuple[Group, Array, Moments | None]]:
    """Eigenvalues of the covariance of the first writer's outputs, largest first, for every group that stays or goes.

    With the moments of the outputs where these were gathered: of groups that can be narrowed, and of all that are not
    `WIDE`. What is wide and stays is left out where its inputs are, too, or its activation is no linear map.
    """
    by_outputs = [g for g in groups if g.frozen is None or dependencies.layer(g.name).width <= WIDE]
    by_inputs = [g for g in groups if g not in by_outputs and _is_linear(dependencies, g)]
    sides = [_outputs(calibration, dependencies, group) for group in by_outputs]
    sides += [_inputs(calibration, dependencies, group) for group in by_inputs]
    gathered = _gathered(calibration, graph, sides)
    for group in calibration.progress.track(groups, "spectra", len(groups)):
        if group in by_outputs:
            moments = gathered[group.name]
            yield group, eigenvalues_descending(moments.covariance), moments
        elif group in by_inputs:
            layer = dependencies.layer(group.name)
            matrix = layer.linear.op.matrix(stored_weight(graph, layer))
            yield group, _mapped(gathered[group.name].covariance, matrix), None


def _is_linear(dependencies: DependencyGraph, group: Group) -> bool:
    """Whether a group's outputs are those of a single linear map from a few inputs."""
    layer = dependencies.layer(group.name)
    columns = len(layer.linear.reads) * layer.linear.op.taps
    is_alone = layer.linear.op.conv_groups == 1 and layer.cell is None
    return group.activation == layer.output and is_alone and columns <= WIDE


def _mapped(covariance: Array, matrix: NDArray[np.float64]) -> Array:
    """The eigenvalues (n,) of V C Vᵀ, largest first, zeros beyond these not told: C (n, n), V (K, n)."""
    xp = namespace_of(covariance)
    values, vectors = eigh_descending(covariance)
    half = vectors * xp.sqrt(xp.clip(values, 0.0, None))
    return eigenvalues_descending(half.T @ xp.asarray(matrix.T @ matrix) @ half)


@dataclass(frozen=True)
class _Side:
    """What is gathered for a group: rows of a tensor that its layer makes, or reads (`is_input`)."""

    group: str
    tensor: str
    columns: int
    op: LinearOp
    positions: Positions
    is_input: bool = False

    def rows(self, index: int, tensors: Tensors, places: LivePlaces) -> Array:
        """The rows that are sampled in batch number `index`."""
        tensor, shape = tensors[self.tensor], tuple(tensors[self.tensor].shape)
        take = self.op.inputs if self.is_input else self.op.outputs
        available = self.op.positions(shape) if self.is_input else self.op.positions_of(shape)
        live = places.spread(self.tensor, shape, tensors)
        if live is None:
            return take(tensor, self.positions.draw(index, available))
        flat = np.flatnonzero(take(np.broadcast_to(live, shape), None)[:, 0])
        chosen = self.positions.choose(index, flat, self.positions.of_live * len(places.live(tensors)))
        rows = take(tensor, None)
        return namespace_of(rows).take(rows, namespace_of(rows).asarray(chosen), axis=0)


def _outputs(calibration: Calibration, dependencies: DependencyGraph, group: Group) -> _Side:
    layer = dependencies.layer(group.name)
    positions = calibration.positions(dependencies, layer, 2)
    return _Side(group.name, group.activation, layer.width, layer.linear.op, positions)


def _inputs(calibration: Calibration, dependencies: DependencyGraph, group: Group) -> _Side:
    layer = dependencies.layer(group.name)
    columns, positions = len(layer.linear.reads) * layer.linear.op.taps, calibration.positions(dependencies, layer, 2)
    return _Side(group.name, layer.source, columns, layer.linear.op, positions, is_input=True)


def _gathered(calibration: Calibration, graph: Graph, sides: Sequence[_Side]) -> dict[str, Moments]:
    """The moments of each side, by group; one pass over the data."""
    names = list(dict.fromkeys(side.tensor for side in sides))
    places = calibration.live_places(graph, names)
    observer = RowsObserver(calibration, sides, places)
    return calibration.gather([Cut(graph, [*names, *places.wanted])], observer, "eigenvalues").moments


class RowsObserver:
    """Moments of rows of tensors; by group."""

    def __init__(self, calibration: Calibration, sides: Sequence[_Side], places: LivePlaces) -> None:
        self._places = places
        self.moments = {side.group: Moments(side.columns, 0, calibration.engine.xp) for side in sides}
        self._sides = sides

    def begin(self, sides: Sides) -> None:
        """There is nothing to settle."""

    def update(self, index: int, sides: Sides) -> None:
        """Take a batch in."""
        for side in self._sides:
            self.moments[side.group].update(side.rows(index, sides[0], self._places))

    def merge(self, other: RowsObserver) -> None:
        """Add what was seen of later batches."""
        for name, moments in self.moments.items():
            moments.merge(other.moments[name])
