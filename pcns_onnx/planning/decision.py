"""From findings and a budget to widths, and to the channels that stay."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.layer_outputs import bases
from pcns_onnx.calibration.ranking import Ranking
from pcns_onnx.dependency.dependency_graph import DependencyGraph, kept_classes
from pcns_onnx.errors import InputError
from pcns_onnx.numerics.linalg import dimensions_for, eigh_descending
from pcns_onnx.ops import Labels
from pcns_onnx.planning.allocation import allocate
from pcns_onnx.planning.budget import Budget, Goal
from pcns_onnx.planning.grids import snap
from pcns_onnx.planning.importance import Importance
from pcns_onnx.planning.plan import GroupPlan, Plan
from pcns_onnx.planning.problem import Problem

_STEEPNESS = 16
USED = 0.95
"""The share of a budget that has to be used up, if finer steps can."""
FINER = (1, 2, 4, 8, 16)
"""By how much the steps of widths are made finer for that."""


@dataclass(frozen=True)
class Decision:
    """Widths by group, the errors predicted for them, and the channels that stay (indices, ascending).

    `full` are the widths there were; `loss` adds up the curves that the widths were chosen by.
    """

    full: Mapping[str, int]
    widths: Mapping[str, int]
    errors: Mapping[str, float]
    keep: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    loss: float = 0.0

    def planned(self) -> dict[str, GroupPlan]:
        """The plan's groups, those at full width included."""
        return {
            name: GroupPlan(
                width=width,
                of=self.full[name],
                error=float(self.errors[name]),
                keep=[int(i) for i in self.keep[name]] if name in self.keep else None,
            )
            for name, width in self.widths.items()
        }

    @property
    def narrowed(self) -> dict[str, int]:
        """Groups that really get narrower, with their widths."""
        return {name: width for name, width in self.widths.items() if width < self.full[name]}


def choose(
    problem: Problem, importance: Importance, goal: Goal, plan: Plan | None, budgets: Sequence[Budget]
) -> Decision:
    """The plan's widths and channels, or the best that meet the budgets or the wanted width or variance."""
    curves = {
        g.name: (_even_curve(g.width) if importance.even else importance.curves[g.name])
        * (importance.stream_weight if g.coupled else 1.0)
        for g in problem.groups
    }
    with problem.calibration.progress.stage("budget"):
        widths, keep = within_budget(problem, goal, plan, curves, importance.rankings, budgets)
    errors = {name: importance.rankings[name].error[width] for name, width in widths.items()}
    full = {g.name: g.width for g in problem.groups}
    loss = sum(float(importance.curves[name][width]) for name, width in widths.items())
    return Decision(full, widths, errors, keep, loss)


def _even_curve(width: int) -> NDArray[np.float64]:
    """An error that depends on the share of a width alone, and so steeply that the narrowest group is what counts."""
    return np.asarray((1 - np.arange(width + 1) / width) ** _STEEPNESS, dtype=np.float64)


def within_budget(
    problem: Problem,
    goal: Goal,
    plan: Plan | None,
    curves: Mapping[str, NDArray[np.float64]],
    rankings: Mapping[str, Ranking],
    budgets: Sequence[Budget],
) -> tuple[dict[str, int], dict[str, NDArray[np.int64]]]:
    """Widths and channels. Where layers read some channels of a group only, its width does not settle
    the cost: budgets are tightened until the channels themselves meet them."""
    asked, least = list(budgets), {name: ranking.least for name, ranking in rankings.items()}
    while True:
        widths = widths_for(problem, goal, plan, curves, budgets, least, lambda: _subset_variance(problem, goal))
        keep = {name: _kept(rankings[name], width, plan, name) for name, width in widths.items()}
        left = {g.name: g.labels[keep[g.name]] for g in problem.groups}
        if plan is not None:
            _check_left(problem.dependencies, left, problem.residual_blocks)
            return widths, keep
        spent = problem.costs.of_classes(kept_classes(problem.dependencies, left)) / problem.costs.total
        over = [float(spent[problem.costs.resources.index(b.resource)]) / b.limit for b in asked]
        if all(ratio <= 1 + 1e-9 for ratio in over):
            return widths, keep
        budgets = [replace(b, limit=b.limit / max(ratio, 1.0)) for b, ratio in zip(budgets, over, strict=True)]


def _check_left(dependencies: DependencyGraph, left: Mapping[str, Labels], removable: Container[str]) -> None:
    """Raise `InputError` if some tensor would have no channels left, of blocks that cannot go as a whole."""
    kept = kept_classes(
        dependencies, {name: labels for name, labels in left.items() if len(labels) or name not in removable}
    )
    lopsided = next(
        (group.name for group in dependencies.groups if len({int(kept[side].sum()) for side in group.sides}) > 1), None
    )
    if lopsided is not None:
        raise InputError(
            f"the plan's lists of channels to keep leave '{lopsided}' more in one direction than in the other"
        )
    empty = next((name for name, labels in dependencies.labels.items() if labels.size and not kept[labels].any()), None)
    if empty is not None:
        raise InputError(f"the plan's lists of channels to keep leave none of '{empty}'")


def widths_for(
    problem: Problem,
    goal: Goal,
    plan: Plan | None,
    curves: Mapping[str, NDArray[np.float64]],
    budgets: Sequence[Budget],
    least: Mapping[str, int],
    by_variance: Callable[[], dict[str, int]],
) -> dict[str, int]:
    """Widths on the groups' grids, none below its `least`."""
    if plan is not None:
        return _planned(problem, plan, least)
    if budgets:
        return _allocated(problem, curves, budgets, least)
    grids = problem.grids(least)
    if goal.width is not None:
        return {g.name: snap(goal.width * g.width, grids[g.name]) for g in problem.groups}
    needed = by_variance()
    return {g.name: _at_least(needed[g.name], grids[g.name]) for g in problem.groups}


def _allocated(
    problem: Problem, curves: Mapping[str, NDArray[np.float64]], budgets: Sequence[Budget], least: Mapping[str, int]
) -> dict[str, int]:
    """Widths that meet the budgets: on the steps that kernels like, or on finer ones where these leave much unused."""
    for finer in FINER:
        grids = problem.grids(least, finer)
        if problem.rules.drops:
            grids |= {name: np.append(0, grids[name]) for name in problem.residual_blocks}
        widths = allocate(problem.groups, curves, grids, problem.costs, budgets)
        spent = problem.costs({g.name: widths[g.name] / g.width for g in problem.groups}) / problem.costs.total
        used = max(float(spent[problem.costs.resources.index(budget.resource)]) / budget.limit for budget in budgets)
        if used >= USED or problem.rules.multiple != "auto":
            break
    return widths


def _at_least(width: int, widths: NDArray[np.int64]) -> int:
    return int(widths[min(int(np.searchsorted(widths, width)), len(widths) - 1)])


def _planned(problem: Problem, plan: Plan, least: Mapping[str, int]) -> dict[str, int]:
    full = {g.name: g.width for g in problem.groups}
    for name, entry in plan.groups.items():
        if name not in full:
            raise InputError(
                f"the plan narrows '{name}', which cannot be narrowed here: give --states, --caches, --heads and the "
                "like as when it was made"
            )
        if entry.width == 0 and name in problem.residual_blocks:
            continue
        if entry.of != full[name] or not 1 <= entry.width <= entry.of:
            raise InputError(f"the plan's width {entry.width} of {entry.of} for '{name}' does not fit its {full[name]}")
        if (step := next(g.step for g in problem.groups if g.name == name)) and entry.width % step:
            raise InputError(f"the plan's width {entry.width} for '{name}' leaves its two directions unequal")
        if entry.width < least.get(name, 1):
            raise InputError(
                f"the plan's width {entry.width} for '{name}' is too small: it takes {least[name]} channels "
                "to leave none of its tensors empty"
            )
    return {name: plan.groups[name].width if name in plan.groups else width for name, width in full.items()}


def _kept(ranking: Ranking, width: int, plan: Plan | None, name: str) -> NDArray[np.int64]:
    """The plan's own channels where they match its width, else the best by rank."""
    entry = plan.groups.get(name) if plan is not None else None
    if entry is None or entry.keep is None or len(entry.keep) != width:
        return ranking.keep(width)
    keep = np.unique(np.asarray([i if 0 <= i < len(ranking.order) else -1 for i in entry.keep], dtype=np.int64))
    if len(keep) != width or (width and keep[0] < 0):
        raise InputError(f"the plan's list of channels to keep for '{name}' is not {width} different channels")
    return keep


def _subset_variance(problem: Problem, goal: Goal) -> dict[str, int]:
    share = goal.variance or 1.0
    return {
        group.name: -(-dimensions_for(eigh_descending(moments.covariance)[0], share) // group.unit)
        for group, _, moments in bases(problem.calibration, problem.graph, problem.dependencies, problem.groups)
    }
