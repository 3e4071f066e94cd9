"""The problem that is planned and solved: a graph, its dependency graph, its costs, the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.cost.model import Costs
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.dependency.residual import ResidualBlock, residual_blocks
from pcns_onnx.graph import Graph
from pcns_onnx.rewrite.low_rank import Factor


@dataclass(frozen=True)
class Problem:
    """The float32 graph that is solved, what is known of it, and the groups that may be narrowed.

    `latency_batch` is the batch that latency is measured at. Where layers are put as two (`factors`, by the
    group between them), `whole` is the graph before, of which `whole_dependencies` is, and `ranks` are those that pay.
    """

    graph: Graph
    dependencies: DependencyGraph
    calibration: Calibration
    groups: tuple[Group, ...]
    costs: Costs
    latency_batch: int
    whole: Graph
    whole_dependencies: DependencyGraph
    factors: Mapping[str, Factor] = field(default_factory=dict)
    ranks: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    @cached_property
    def residual_blocks(self) -> Mapping[str, ResidualBlock]:
        """The blocks that may go altogether, by group."""
        names = {group.name for group in self.groups}
        return {name: block for name, block in residual_blocks(self.graph, self.dependencies).items() if name in names}
