"""The problem that is planned and solved: a graph, its dependency graph, its costs, the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.calibration.output_layout import OutputLayout, last_rows
from pcns_onnx.calibration.output_weight import OutputWeight
from pcns_onnx.cost.model import Costs
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.dependency.residual import ResidualBlock, residual_blocks
from pcns_onnx.graph import Graph
from pcns_onnx.planning.grids import GridRules
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.rewrite.low_rank import Factor


@dataclass(frozen=True)
class Undivided:
    """Where layers are put as two: what there was before, the `factors` by the group between, the `ranks` that pay."""

    graph: Graph
    dependencies: DependencyGraph
    factors: Mapping[str, Factor]
    ranks: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """The float32 graph that is solved, what is known of it, and the groups that may be narrowed.

    `form` has the model as it was and as it will be stored; `latency_batch` is the batch that latency is measured
    at; `undivided` is there where some layers are put as two; `weights` say which outputs count more.
    """

    form: Canonical
    graph: Graph
    dependencies: DependencyGraph
    calibration: Calibration
    groups: tuple[Group, ...]
    costs: Costs
    latency_batch: int
    rules: GridRules = field(default_factory=GridRules)
    undivided: Undivided | None = None
    weights: tuple[OutputWeight, ...] = ()

    @property
    def factors(self) -> Mapping[str, Factor]:
        """Layers that are put as two, by the group between them."""
        return {} if self.undivided is None else self.undivided.factors

    @property
    def whole(self) -> Graph:
        """The graph in which every layer is one."""
        return self.graph if self.undivided is None else self.undivided.graph

    @property
    def whole_dependencies(self) -> DependencyGraph:
        """The dependency graph of `whole`."""
        return self.dependencies if self.undivided is None else self.undivided.dependencies

    @cached_property
    def layout(self) -> OutputLayout:
        """Where the outputs have their channels, and how much each counts."""
        return OutputLayout.of(self.whole, self.whole_dependencies, self.weights)

    @cached_property
    def last_rows(self) -> Mapping[str, NDArray[np.float64]]:
        """The layers whose rows are what the outputs hold, with how much each row counts."""
        return last_rows(self.graph, self.dependencies, self.layout)

    @cached_property
    def residual_blocks(self) -> Mapping[str, ResidualBlock]:
        """The blocks that may go altogether, by group."""
        names = {group.name for group in self.groups}
        return {name: block for name, block in residual_blocks(self.graph, self.dependencies).items() if name in names}

    def grids(self, least: Mapping[str, int], finer: int = 1) -> dict[str, NDArray[np.int64]]:
        """The widths that every group may take, none below its `least`; steps of 'auto' are `finer` by this factor."""
        steps = {} if self.costs.latency_model is None else self.costs.latency_model.steps
        grids = {
            group.name: self.rules.widths(group, self.dependencies.layer(group.name).kind, steps.get(group.name), finer)
            for group in self.groups
        }
        ranks = {} if self.undivided is None else self.undivided.ranks
        grids |= {name: grids[name][np.isin(grids[name], allowed)] for name, allowed in ranks.items()}
        return {name: widths[widths >= least.get(name, 1)] for name, widths in grids.items()}
