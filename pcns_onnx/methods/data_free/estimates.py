"""Low-rank estimates of weights, and how neurons rank by them; no data needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.ranking import Ranking
from pcns_onnx.dependency.groups import Group
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.graph import Graph
from pcns_onnx.methods.data_free.low_rank_weights import by_norm, truncated
from pcns_onnx.planning.problem import Problem
from pcns_onnx.rewrite.layer_weights import set_layer, stored_bias, stored_weight
from pcns_onnx.rewrite.patch import Patch


@dataclass(frozen=True)
class WeightEstimates:
    """R for the weights W of all layers that touch a group; `ratio` None (or 1) leaves them at full rank."""

    problem: Problem
    ratio: float | None

    @cached_property
    def estimates(self) -> dict[str, Patch]:
        """Layer -> the edits that put R in the place of W, for layers that touch a group."""
        if self.ratio in (None, 1.0):
            return {}
        touched = {name for group in self.problem.groups for name in (*group.writers, *group.readers)}
        return {
            layer.name: self._estimate(layer) for layer in self.problem.dependencies.layers if layer.name in touched
        }

    def _estimate(self, layer: Layer) -> Patch:
        assert self.ratio is not None
        graph, op = self.problem.graph, layer.linear.op
        matrix = np.array(op.matrix(stored_weight(graph, layer)))
        for part in layer.parts:
            matrix[part.rows] = truncated(matrix[part.rows], op.taps, self.ratio)
        return set_layer(graph, layer, matrix, stored_bias(graph, layer))

    def rank(self, group: Group, reduced: Graph) -> Ranking:
        """The group's neurons by |R_g|, summed over all that read them."""
        size, whole, missed = (np.zeros(group.width) for _ in range(3))
        for layer in (self.problem.dependencies.layer(name) for name in group.readers):
            before, after = (stored_weight(graph, layer) for graph in (self.problem.graph, reduced))
            for part in layer.parts:
                owners = part.op.owners(part.reads)
                in_group = np.isin(owners, group.labels)
                at = np.searchsorted(group.labels, owners[in_group])
                w, r = (np.asarray(part.op.matrix(weight))[:, in_group] for weight in (before, after))
                for total, values in ((size, r), (whole, w), (missed, w - r)):
                    np.add.at(total, at, _squares(values))
        return by_norm(size, whole, missed)


def _squares(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((values * values).sum(axis=0), dtype=np.float64)
