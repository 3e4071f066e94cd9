"""Shrinking by the weights alone: EigenRemove and minimum weight selection (Graham 2019), no data needed.

EigenRemove takes the weights that write a group and those that read it, puts their low-rank estimates R
(`methods.weights`) in their place, and keeps the neurons whose outgoing weights in R are largest. Minimum weight
selection is the same at full rank, where R = W.

Where the thesis disagrees with itself:

- Algorithm 2 keeps rows of W and uses R to choose only; listing 6.1 returns rows of R. The listing is taken: its
  error at small removals is what figure 4.1 shows. (`tools/paper_eigen.py` measures both.)
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
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.api.options import Options
from pcns_onnx.calibration.columns import BlockKey, ChannelCovariance
from pcns_onnx.calibration.group_inputs import read_groups
from pcns_onnx.calibration.ranking import Ranking
from pcns_onnx.dependency.groups import Group
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.graph import Graph
from pcns_onnx.methods.data_free.low_rank_weights import by_norm, truncated
from pcns_onnx.methods.registry import Method
from pcns_onnx.numerics.ridge import Fit
from pcns_onnx.planning.decision import Decision, within_budget
from pcns_onnx.planning.importance import essential
from pcns_onnx.planning.plan import Plan
from pcns_onnx.planning.problem import Problem
from pcns_onnx.reconstruction.refine import Refined
from pcns_onnx.reconstruction.sequential import refit
from pcns_onnx.report.schema import GroupInfo
from pcns_onnx.report.summary import info_of
from pcns_onnx.rewrite.channels import narrow
from pcns_onnx.rewrite.layer_weights import set_layer, stored_bias, stored_weight
from pcns_onnx.rewrite.patch import Patch, apply

RATIO = 0.75
"""The share of each rank that EigenRemove keeps unless it is told another."""


def refusal(group: Group) -> str | None:
    """Why the weights cannot say what of a group may go, None if they can."""
    if group.products:
        return "a product of two computed tensors reads it: there are no outgoing weights to go by"
    return None


def ratio_of(method: Method, options: Options, plan: Plan | None) -> float | None:
    """The share of each rank to keep: the plan's or the caller's; None for methods without one."""
    if method.name != "eigenremove":
        return None
    if plan is not None:
        return plan.rank_ratio
    return RATIO if options.rank_ratio is None else options.rank_ratio


@dataclass(frozen=True)
class Weighing:
    """One run of a data-free method; `ratio` None (or 1) leaves the weights at full rank."""

    problem: Problem
    method: Method
    ratio: float | None

    def decide(self, options: Options, plan: Plan | None) -> Decision:
        """Widths by budget or share, neurons by norm."""
        rankings = dict[str, Ranking]()
        with self.problem.calibration.progress.stage("rank"):
            reduced = apply(self.problem.graph, tuple(edit for patch in self._estimates.values() for edit in patch))
            for group in self.problem.groups:
                ranking = self._rank(group, reduced)
                rankings[group.name] = ranking.led_by(essential(self.problem.dependencies, group, ranking))
        readers = {group.name: len(group.readers) for group in self.problem.groups}
        curves = {name: ranking.error * readers[name] for name, ranking in rankings.items()}
        widths, keep = within_budget(self.problem, options, plan, curves, rankings, options.costs)
        errors = {name: rankings[name].error[width] for name, width in widths.items()}
        return Decision(self.method, {g.name: g.width for g in self.problem.groups}, widths, errors, keep)

    def solve(self, decision: Decision, options: Options) -> tuple[Patch, list[GroupInfo]]:
        """Slice, the weights that touch a narrowed group at low rank; with `options.refit`, re-fit what reads it."""
        problem, graph, dependencies = self.problem, self.problem.graph, self.problem.dependencies
        chosen = [group for group in problem.groups if group.name in decision.narrowed]
        keep = {group.name: group.labels[decision.keep[group.name]] for group in chosen}
        touched = {name for group in chosen for name in (*group.writers, *group.readers)}
        estimates = tuple(e for name, patch in self._estimates.items() if name in touched for e in patch)
        base = apply(graph, estimates)
        patch = estimates + narrow(base, dependencies, keep)
        fits: Mapping[str, Fit] = {}
        refined: Mapping[str, Refined] = {}
        if options.refit:
            steps = options.steps(decision.method)
            made = refit(problem.calibration, graph, apply(graph, patch), dependencies, keep, self._seen(chosen), steps)
            fits, refined, patch = made.fits, made.refined, patch + made.patch
        mine = [{name: fits[name] for name in group.readers if name in fits} for group in chosen]
        infos = [info_of(g, decision, found, None, refined) for g, found in zip(chosen, mine, strict=True)]
        return patch, infos

    @cached_property
    def _estimates(self) -> dict[str, Patch]:
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

    def _rank(self, group: Group, reduced: Graph) -> Ranking:
        """The group's neurons by |R_g|, summed over all that read them."""
        size, whole, missed = (np.zeros(group.width) for _ in range(3))
        for layer in (self.problem.dependencies.layer(name) for name in group.readers):
            before, after = (stored_weight(graph, layer) for graph in (self.problem.graph, reduced))
            for part in layer.parts:
                owners = part.op.owners(part.reads)
                mine = np.isin(owners, group.labels)
                at = np.searchsorted(group.labels, owners[mine])
                w, r = (np.asarray(part.op.matrix(weight))[:, mine] for weight in (before, after))
                for total, values in ((size, r), (whole, w), (missed, w - r)):
                    np.add.at(total, at, _squares(values))
        return by_norm(size, whole, missed)

    def _seen(self, groups: list[Group]) -> dict[BlockKey, dict[str, ChannelCovariance]]:
        """How the readers of the groups see them, for the re-fit."""
        found: dict[BlockKey, dict[str, ChannelCovariance]] = {}
        for read in read_groups(self.problem.calibration, self.problem.graph, self.problem.dependencies, groups):
            for place, view in read.seen().items():
                found.setdefault(place, {})[read.group.name] = view
        return found


def _squares(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((values * values).sum(axis=0), dtype=np.float64)
