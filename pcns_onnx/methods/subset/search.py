"""Budgets that only a run can tell: measured latency, and what may be lost.

**Latency, size.** Widths are planned with the layers' measured times (`cost.latency_model`) and what they store; then
the whole model is narrowed, without solving it, and timed against the original or measured as a file. Where it is
slower or larger than planned, the budget is tightened by as much and planned again.

**Error, drop.** The smallest model that keeps them: the fraction of the cost is bisected, each
candidate solved (without refinement) and checked on samples that it was not solved on. What is
lost falls as the model grows, more or less, so a bisection finds a limit that holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from pcns_onnx.cost.benchmark import compare_latency
from pcns_onnx.cost.resources import COUNTED, TIMED
from pcns_onnx.errors import InputError
from pcns_onnx.methods.strategy import Judge, Request
from pcns_onnx.methods.subset.solve import solve
from pcns_onnx.planning.budget import Budget
from pcns_onnx.planning.decision import Decision, choose
from pcns_onnx.planning.importance import Importance
from pcns_onnx.planning.low_rank import merge_unused_factors
from pcns_onnx.planning.problem import Problem
from pcns_onnx.rewrite.canonical import emit
from pcns_onnx.rewrite.drop_blocks import narrow_or_drop
from pcns_onnx.rewrite.patch import Patch, apply

ROUNDS = 6
"""How often a budget on what is measured is planned anew."""
HALVINGS = 5
"""How often the range of the cost is halved."""
_SECONDS = 1.0


def latency_ratio(problem: Problem, patch: Patch) -> float:
    """Latency of the narrowed model, unsolved, against the original's."""
    small = apply(problem.whole, patch)
    small.prune(problem.whole)
    samples = replace(problem.calibration.samples, batch=problem.latency_batch, _kept=[])
    original = problem.whole if problem.form.unrotated is None else problem.form.unrotated
    return compare_latency(problem.calibration.engine, original, small, samples, _SECONDS).ratio


def size_ratio(problem: Problem, patch: Patch) -> float:
    """Bytes of the narrowed model as it will be stored, with its note of provenance, against the original's."""
    provenance_bytes = 384 + sum(len(group.name) + 24 for group in problem.groups)
    return (emit(problem.form, patch, keeps_biases=True).nbytes + provenance_bytes) / problem.form.original.nbytes


MEASURES: Mapping[str, tuple[Callable[[Problem, Patch], float], float]] = {
    "latency": (latency_ratio, 1.02),
    "size": (size_ratio, 1.0),
}
"""What is measured on the narrowed model before it is solved: by resource, the ratio, and how much over a limit counts
as within it."""


def narrowing(problem: Problem, decision: Decision, importance: Importance, request: Request) -> Patch:
    """The edits that narrow the whole graph, unsolved."""
    problem, decision, _, factored = merge_unused_factors(problem, decision, importance, request.scope)
    keep = {g.name: g.labels[decision.keep[g.name]] for g in problem.groups if g.name in decision.narrowed}
    return factored + narrow_or_drop(problem.graph, problem.dependencies, keep)


def meet_measured(problem: Problem, importance: Importance, request: Request) -> Decision:
    """The best widths that are within the budgets when measured; raises `InputError` if none are found."""
    budgets, plan = request.goal.costs, request.plan
    asked = {b.resource: b.limit for b in budgets if b.resource in MEASURES}
    decision = choose(problem, importance, request.goal, plan, budgets)
    if not asked or plan is not None:
        return decision
    reached = dict.fromkeys(asked, 1.0)
    for _ in range(ROUNDS):
        with problem.calibration.progress.stage("time"):
            ratios = _measured(problem, decision, importance, request, asked)
        reached = {name: min(reached[name], ratio) for name, ratio in ratios.items()}
        over = {name: ratio / asked[name] for name, ratio in ratios.items() if ratio > asked[name] * MEASURES[name][1]}
        if not over:
            return decision
        # By a hundredth at least: less may leave all widths where they are.
        tighter = {name: max(ratio, 1.01) for name, ratio in over.items()}
        budgets = tuple(replace(b, limit=b.limit / tighter.get(b.resource, 1.0)) for b in budgets)
        try:
            decision = choose(problem, importance, request.goal, plan, budgets)
        except InputError:  # it names the tightened budget, which nobody asked for
            break
    name = max(asked, key=lambda resource: reached[resource] / asked[resource])
    raise InputError(
        f"budget {name}={asked[name]:g} is out of reach: the least that was measured is {reached[name]:.3f}"
    )


def _measured(
    problem: Problem, decision: Decision, importance: Importance, request: Request, asked: Mapping[str, float]
) -> dict[str, float]:
    if not decision.narrowed:
        return dict.fromkeys(asked, 1.0)
    patch = narrowing(problem, decision, importance, request)
    return {name: MEASURES[name][0](problem, patch) for name in asked}


def search(problem: Problem, importance: Importance, request: Request, judge: Judge) -> Decision:
    """The smallest model that `judge` lets pass, within the budgets on costs; raises `InputError` if none does."""
    goal, budgets = request.goal, request.goal.costs

    def passes(decision: Decision) -> bool:
        return not decision.narrowed or judge(solve(problem, decision, importance, request.scope, 0).patch)

    if budgets:
        widest = choose(problem, importance, goal, None, budgets)
        if not passes(widest):
            wanted = ", ".join(map(str, (*budgets, *goal.qualities)))
            raise InputError(f"budgets {wanted} cannot hold together: allow a larger model or a larger loss")
        return widest

    # a model that spends its time elsewhere gets hardly faster, and can be smaller all the same
    for resource in (*(TIMED if problem.costs.latency_model is not None else ()), COUNTED[0]):
        # what was timed says which widths are fast, and nothing of which are small
        asked = problem if resource in TIMED else replace(problem, costs=problem.costs.untimed)
        best = _smallest(asked, importance, request, resource, passes)
        if best is not None:
            return best
    wanted = ", ".join(map(str, goal.qualities))
    raise InputError(f"budget {wanted} is out of reach: not even a slightly smaller model keeps it")


def _smallest(
    problem: Problem, importance: Importance, request: Request, resource: str, passes: Callable[[Decision], bool]
) -> Decision | None:
    """The decision of the least cost that passes, by bisection; None where none does."""
    low, high, best = 0.0, 1.0, None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        try:
            decision = choose(problem, importance, request.goal, None, [Budget(resource, middle)])
        except InputError:
            low = middle
            continue
        if passes(decision):
            high, best = middle, decision
        else:
            low = middle
    return best
