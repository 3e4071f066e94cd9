"""Moments of what layers put out, behind the activation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.calibration.eigenbasis import Basis
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.moments import Moments
from pcns_onnx.runtime.activations import Cut
from pcns_onnx.runtime.executor import Sides


def bases(
    calibration: Calibration, graph: Graph, dependencies: DependencyGraph, groups: Sequence[Group]
) -> Iterator[tuple[Group, Basis, Moments]]:
    """Eigen-decomposition of the first writer's outputs (behind the activation), for every group."""
    names = list(dict.fromkeys(group.activation for group in groups))
    outputs = calibration.gather([Cut(graph, names)], OutputObserver(calibration, dependencies, groups), "eigenvalues")
    for group in groups:
        moments = outputs.moments[group.name]
        yield group, Basis.of(moments.mean_x, moments.covariance), moments


class OutputObserver:
    """Moments of what the first writers of some groups put out, behind the activation; by group."""

    def __init__(self, calibration: Calibration, dependencies: DependencyGraph, groups: Sequence[Group]) -> None:
        writers = [dependencies.layer(group.name) for group in groups]
        self.moments = {layer.name: Moments(layer.width, 0, calibration.engine.xp) for layer in writers}
        self._layers = [
            (group.name, group.activation, layer.linear.op, calibration.positions(dependencies, layer, 2))
            for group, layer in zip(groups, writers, strict=True)
        ]

    def begin(self, sides: Sides) -> None:
        """There is nothing to settle."""

    def update(self, index: int, sides: Sides) -> None:
        """Take a batch in."""
        for name, tensor, op, positions in self._layers:
            y = sides[0][tensor]
            self.moments[name].update(op.outputs(y, positions.draw(index, op.positions_of(y.shape))))

    def merge(self, other: OutputObserver) -> None:
        """Add what was seen of later batches."""
        for name, moments in self.moments.items():
            moments.merge(other.moments[name])
