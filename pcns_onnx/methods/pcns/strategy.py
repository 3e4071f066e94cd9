"""PCNS: groups rebuilt on the principal components of their outputs; widths from the eigenvalues."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.eigenbasis import Basis
from pcns_onnx.calibration.layer_outputs import bases
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.graph import Graph
from pcns_onnx.methods.pcns.activations import Activation
from pcns_onnx.methods.pcns.components import components_in, neurons_for, width_curve
from pcns_onnx.methods.pcns.eligibility import activation_of, refusal
from pcns_onnx.methods.pcns.rebuild import rebuild
from pcns_onnx.methods.strategy import (
    Judge,
    Request,
    Solution,
    first_refusal,
    needs_data,
    only_eigenremove_has_ranks,
    only_subsets,
)
from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.planning.decision import Decision, widths_for
from pcns_onnx.planning.plan import FrontierPoint
from pcns_onnx.planning.problem import Problem
from pcns_onnx.rewrite.patch import Patch


class PcnsStrategy:
    """The answers of a method that makes new neurons."""

    solves = True
    rank_ratio = None

    def __init__(self, request: Request) -> None:
        self.request = request
        self._bases: Mapping[str, Basis] = {}
        self._curves: Mapping[str, NDArray[np.float64]] = {}

    @property
    def refits(self) -> bool:
        """Whether readers are solved again; without, it is the paper to the letter."""
        return self.request.solving.refit is not False

    @property
    def curves(self) -> Mapping[str, NDArray[np.float64]]:
        """The share of variance lost at each width."""
        return self._curves

    def accepts(self) -> str | None:
        """Why the request cannot be met."""
        request = self.request
        refined = (
            bool(request.solving.refine),
            f"--refine goes on from neurons that were kept: '{request.method.name}' makes new ones",
        )
        return first_refusal(
            [needs_data(request), refined, *only_subsets(request), only_eigenremove_has_ranks(request)]
        )

    def refuses(self, graph: Graph, dependencies: DependencyGraph, group: Group) -> str | None:
        """Why PCNS must leave a group alone."""
        return refusal(graph, dependencies, group, refit=self.refits)

    def decide(self, problem: Problem, judge: Judge) -> Decision:
        """Widths from the eigenvalues of the groups' outputs."""
        goal, plan, graph, dependencies = self.request.goal, self.request.plan, problem.graph, problem.dependencies
        full = {g.name: g.width for g in problem.groups}
        self._bases = {g.name: b for g, b, _ in bases(problem.calibration, graph, dependencies, problem.groups)}
        sigmas = {g.name: activation_of(graph, dependencies, g) for g in problem.groups}
        self._curves = curves = {
            name: width_curve(b, s) for name, b in self._bases.items() if isinstance(s := sigmas[name], Activation)
        }
        wanted = widths_for(problem, goal, plan, curves, goal.costs, {}, lambda: self._by_variance(sigmas))
        widths = {name: _whole_pairs(width, full[name], sigmas[name]) for name, width in wanted.items()}
        return Decision(full, widths, {name: float(curves[name][w]) for name, w in widths.items()})

    def settle(self, problem: Problem, decision: Decision) -> tuple[Problem, Decision]:
        """Both as they are."""
        return problem, decision

    def frontier(self, problem: Problem) -> list[FrontierPoint]:
        """None: errors of groups, which are not seen at the outputs, do not add up."""
        return []

    def outline(self, problem: Problem, decision: Decision) -> Patch | None:
        """There is no long part."""
        return None

    def solve(self, problem: Problem, decision: Decision) -> Solution:
        """Rebuild group by group."""
        _, patch, rebuilt = rebuild(
            problem.calibration,
            problem.graph,
            problem.dependencies,
            decision.narrowed,
            order=self.request.solving.order,
            refit=self.refits,
            group_bases=self._bases,
        )
        return Solution(
            patch,
            {name: group.fits for name, group in rebuilt.items()},
            eigenvector_errors={name: (group.errors, group.plain_errors) for name, group in rebuilt.items()},
        )

    def _by_variance(self, sigmas: Mapping[str, Activation | str]) -> dict[str, int]:
        share = self.request.goal.variance or 1.0
        return {
            name: min(neurons_for(basis.components(share), sigma), len(to_numpy(basis.values)))
            for name, basis in self._bases.items()
            if isinstance(sigma := sigmas[name], Activation)
        }


def _whole_pairs(width: int, full: int, sigma: Activation | str) -> int:
    """The width that PCNS really makes: behind a one-sided activation components come in pairs."""
    if width >= full or isinstance(sigma, str):
        return width
    return neurons_for(components_in(width, sigma), sigma)
