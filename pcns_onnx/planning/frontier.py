"""Error against cost: the widths that every share of the multiply-adds would have given.

Predicted errors are relative L2 errors at the outputs, the square root of the sum of the probed
curves (`planning.sensitivity`); costs are shares of the original's.
"""

from __future__ import annotations

from collections.abc import Iterator

from pcns_onnx.errors import InputError
from pcns_onnx.planning.budget import Budget, Goal
from pcns_onnx.planning.decision import Decision, choose
from pcns_onnx.planning.importance import Importance
from pcns_onnx.planning.plan import FrontierPoint
from pcns_onnx.planning.problem import Problem

STEPS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1)
"""Shares of the multiply-adds at which the frontier is drawn."""


def points(problem: Problem, importance: Importance, goal: Goal) -> Iterator[FrontierPoint]:
    """The frontier, from the largest model down to the narrowest that can be made."""
    for _, decision in decisions(problem, importance, goal):
        yield point_of(problem, decision)


def decisions(problem: Problem, importance: Importance, goal: Goal) -> Iterator[tuple[Budget, Decision]]:
    """The budgets of the frontier, and what each chooses."""
    for share in STEPS:
        budget = Budget("macs", share)
        try:
            decision = choose(problem, importance, goal, None, [budget])
        except InputError:
            return  # narrower than it can be made
        yield budget, decision


def point_of(problem: Problem, decision: Decision) -> FrontierPoint:
    """Where a decision lies on it."""
    shares = problem.costs(fractions_of(decision)) / problem.costs.total
    costs = {name: float(share) for name, share in zip(problem.costs.resources, shares, strict=True)}
    return FrontierPoint(costs, float(decision.loss) ** 0.5)


def fractions_of(decision: Decision) -> dict[str, float]:
    """The share of its width that each group keeps."""
    return {name: width / decision.full[name] for name, width in decision.widths.items()}
