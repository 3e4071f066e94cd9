"""Shrinking by the weights alone: EigenRemove and minimum weight selection (Graham 2019), no data needed.

EigenRemove takes the weights that write a group and those that read it, puts their low-rank estimates R
(`low_rank_weights`) in their place, and keeps the neurons whose outgoing weights in R are largest. Minimum weight
selection is the same at full rank, where R = W.

Where the thesis disagrees with itself:

- Algorithm 2 keeps rows of W and uses R to choose only; listing 6.1 returns rows of R. The listing is taken: its
  error at small removals is what figure 4.1 shows. (`tools/papers/eigen/eigen.py` measures both.)
- Algorithm 2 chooses by the norm, listing 6.1 by the mean. The norm is taken: by it EigenRemove at full rank is
  minimum weight selection, as figure 4.1 states; by the mean it would not be.
- Listing 6.1 would choose for the matrix in front and the one behind separately, which may keep different neurons;
  chapter 5 lets the one behind decide for both, as is done here.
- In 3.1.1 delta is a bound on singular values, from 4.2.1 on a share of the rank. `ratio` is the share.

The thesis reduces a layer's matrices when the layer's turn comes; here all that touch a narrowed group are reduced
once, from the original weights, so the order of the layers does not matter. Biases stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.columns import BlockKey, ChannelCovariance
from pcns_onnx.calibration.group_inputs import read_groups
from pcns_onnx.calibration.ranking import Ranking
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.graph import Graph
from pcns_onnx.methods.data_free.estimates import WeightEstimates
from pcns_onnx.methods.strategy import (
    Judge,
    Request,
    Solution,
    first_refusal,
    only_eigenremove_has_ranks,
    only_pcns_orders,
    only_subsets,
)
from pcns_onnx.planning.decision import Decision, within_budget
from pcns_onnx.planning.importance import essential
from pcns_onnx.planning.plan import FrontierPoint
from pcns_onnx.planning.problem import Problem
from pcns_onnx.reconstruction.sequential import refit
from pcns_onnx.rewrite.channels import narrow
from pcns_onnx.rewrite.patch import Patch, apply

RATIO = 0.75
"""The share of each rank that EigenRemove keeps unless it is told another."""


class DataFreeStrategy:
    """The answers of methods that look at weights alone."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._estimates: WeightEstimates | None = None
        self._curves: Mapping[str, NDArray[np.float64]] = {}

    @property
    def solves(self) -> bool:
        """Only where a re-fit is asked for."""
        return bool(self.request.solving.refit)

    @property
    def rank_ratio(self) -> float | None:
        """The plan's, the caller's or `RATIO`; None for methods without one."""
        request = self.request
        if not request.method.has_rank_ratio:
            return None
        if request.plan is not None:
            return request.plan.rank_ratio
        return RATIO if request.goal.rank_ratio is None else request.goal.rank_ratio

    @property
    def curves(self) -> Mapping[str, NDArray[np.float64]]:
        """None: nothing was looked at that an error could be predicted from."""
        return {}

    def accepts(self) -> str | None:
        """Why the request cannot be met."""
        request, name = self.request, self.request.method.name
        ranks = [] if request.method.has_rank_ratio else [only_eigenremove_has_ranks(request)]
        return first_refusal(
            [
                only_pcns_orders(request),
                *only_subsets(request),
                *ranks,
                (
                    request.goal.rank_ratio is not None and request.goal.plan is not None,
                    "--rank-ratio is part of the plan: give one of the two",
                ),
                (
                    request.goal.variance is not None,
                    f"--variance looks at what neurons do, '{name}' does not: give --width or --budget",
                ),
                (self.solves and not request.has_data, "--refit solves on samples: give them with --data"),
                (
                    bool(request.solving.refine) and not self.solves,
                    "--refine comes after a re-fit: ask for that too with --refit and --data",
                ),
            ]
        )

    def refuses(self, graph: Graph, dependencies: DependencyGraph, group: Group) -> str | None:
        """Why the weights cannot say what of a group may go."""
        if group.products:
            return "a product of two computed tensors reads it: there are no outgoing weights to go by"
        if group.recurrent:
            return "a recurrent layer makes its units of their own past, which weights alone do not tell: give --data"
        return None

    def decide(self, problem: Problem, judge: Judge) -> Decision:
        """Widths by budget or share, neurons by norm."""
        self._estimates = estimates = WeightEstimates(problem, self.rank_ratio)
        rankings = dict[str, Ranking]()
        with problem.calibration.progress.stage("rank"):
            reduced = apply(problem.graph, tuple(edit for patch in estimates.estimates.values() for edit in patch))
            for group in problem.groups:
                ranking = estimates.rank(group, reduced)
                rankings[group.name] = ranking.led_by(essential(problem.dependencies, group, ranking))
        readers = {group.name: len(group.readers) for group in problem.groups}
        curves = {name: ranking.error * readers[name] for name, ranking in rankings.items()}
        goal, plan = self.request.goal, self.request.plan
        widths, keep = within_budget(problem, goal, plan, curves, rankings, goal.costs)
        errors = {name: rankings[name].error[width] for name, width in widths.items()}
        return Decision({g.name: g.width for g in problem.groups}, widths, errors, keep)

    def settle(self, problem: Problem, decision: Decision) -> tuple[Problem, Decision]:
        """Both as they are."""
        return problem, decision

    def frontier(self, problem: Problem) -> list[FrontierPoint]:
        """None: there is no error at the outputs to draw."""
        return []

    def outline(self, problem: Problem, decision: Decision) -> Patch | None:
        """There is no long part."""
        return None

    def solve(self, problem: Problem, decision: Decision) -> Solution:
        """Slice, the weights that touch a narrowed group at low rank; where it is asked for, re-fit what reads it."""
        assert self._estimates is not None, "it is decided first"
        graph, dependencies = problem.graph, problem.dependencies
        chosen = [group for group in problem.groups if group.name in decision.narrowed]
        keep = {group.name: group.labels[decision.keep[group.name]] for group in chosen}
        touched = {name for group in chosen for name in (*group.writers, *group.readers)}
        estimates = tuple(e for name, patch in self._estimates.estimates.items() if name in touched for e in patch)
        patch = estimates + narrow(apply(graph, estimates), dependencies, keep)
        if not self.solves:
            return Solution(patch, {group.name: {} for group in chosen})
        covariances, steps = _covariances(problem, chosen), self.request.solving.refine or 0
        solved = refit(
            problem.calibration, graph, apply(graph, patch), dependencies, keep, covariances, steps, problem.last_rows
        )
        fits = {g.name: {name: solved.fits[name] for name in g.readers if name in solved.fits} for g in chosen}
        return Solution(patch + solved.patch, fits, solved.refined)


def _covariances(problem: Problem, groups: list[Group]) -> dict[BlockKey, dict[str, ChannelCovariance]]:
    """How the readers of the groups see them, for the re-fit."""
    covariances: dict[BlockKey, dict[str, ChannelCovariance]] = {}
    for stats in read_groups(problem.calibration, problem.graph, problem.dependencies, groups):
        for block, covariance in stats.covariances().items():
            covariances.setdefault(block, {})[stats.group.name] = covariance
    return covariances
