"""Budgets that only a run can tell: measured latency, and what may be lost.

**Latency.** Widths are planned with the layers' measured times (`timing`); then the whole model is
narrowed, without solving it, and timed against the original. Where it is slower than planned, the
budget is tightened by as much and planned again.

**Error, drop.** The smallest model that keeps them: the fraction of the cost is bisected, each
candidate solved (without refinement) and checked on samples that it was not solved on. What is
lost falls as the model grows, more or less, so a bisection finds a limit that holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pcns_onnx.api.options import Options
from pcns_onnx.cost.benchmark import compare_latency
from pcns_onnx.cost.model import RESOURCES, Resource
from pcns_onnx.errors import InputError
from pcns_onnx.methods.registry import Method
from pcns_onnx.methods.subset.solve import solve
from pcns_onnx.planning.budget import Budget
from pcns_onnx.planning.decision import Decision, choose
from pcns_onnx.planning.importance import Importance
from pcns_onnx.planning.low_rank import merge_unused_factors
from pcns_onnx.planning.plan import Plan
from pcns_onnx.planning.problem import Problem
from pcns_onnx.rewrite.drop_blocks import narrow_or_drop
from pcns_onnx.rewrite.patch import Patch, apply

ROUNDS = 6
"""How often a latency budget is planned anew."""
HALVINGS = 5
"""How often the range of the cost is halved."""
_SLACK = 1.02
_SECONDS = 1.0

Judge = Callable[[Patch], bool]
"""Whether the model with these edits keeps all limits."""


def measured_ratio(problem: Problem, decision: Decision, options: Options) -> float:
    """Latency of the narrowed model, unsolved, against the original's."""
    problem, decision, _ = merge_unused_factors(problem, decision, options)
    keep = {g.name: g.labels[decision.keep[g.name]] for g in problem.groups if g.name in decision.narrowed}
    small = apply(problem.graph, narrow_or_drop(problem.graph, problem.dependencies, keep))
    small.prune(problem.graph)
    samples = replace(problem.calibration.samples, batch=problem.latency_batch, _kept=[])
    return compare_latency(problem.calibration.engine, problem.whole, small, samples, _SECONDS).ratio


def meet_latency(
    problem: Problem, method: Method, found: Importance, options: Options, plan: Plan | None, budgets: Sequence[Budget]
) -> Decision:
    """The best widths whose measured latency is within the budget; raises `InputError` if none are found."""
    asked = next((b.limit for b in budgets if b.resource == "latency"), None)
    decision = choose(problem, method, found, options, plan, budgets)
    if asked is None or plan is not None:
        return decision
    reached = 1.0
    for _ in range(ROUNDS):
        with problem.calibration.progress.stage("time"):
            ratio = measured_ratio(problem, decision, options) if decision.narrowed else 1.0
        reached = min(reached, ratio)
        if ratio <= asked * _SLACK:
            return decision
        budgets = [replace(b, limit=b.limit * asked / ratio) if b.resource == "latency" else b for b in budgets]
        decision = choose(problem, method, found, options, plan, budgets)
    raise InputError(f"budget latency={asked:g} is out of reach: the fastest that was measured has {reached:.3f}")


def search(
    problem: Problem, method: Method, found: Importance, options: Options, judge: Judge, budgets: Sequence[Budget]
) -> Decision:
    """The smallest model that `judge` lets pass, within the `budgets` on costs; raises `InputError` if none does."""
    trial = replace(options, refine=0)

    def passes(decision: Decision) -> bool:
        return not decision.narrowed or judge(solve(problem, decision, trial)[0])

    widest = choose(problem, method, found, options, None, budgets) if budgets else None
    if widest is not None:
        if not passes(widest):
            wanted = ", ".join(f"{b.resource}={b.limit:g}" for b in (*budgets, *options.qualities))
            raise InputError(f"budgets {wanted} cannot hold together: allow a larger model or a larger loss")
        return widest

    def smallest(resource: Resource) -> Decision | None:
        low, high, best = 0.0, 1.0, None
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            try:
                decision = choose(problem, method, found, options, None, [Budget(resource, middle)])
            except InputError:
                low = middle
                continue
            if passes(decision):
                high, best = middle, decision
            else:
                low = middle
        return best

    # a model that spends its time elsewhere gets hardly faster, and can be smaller all the same
    for resource in RESOURCES[2:] + RESOURCES[:1] if problem.costs.latency_model is not None else RESOURCES[:1]:
        best = smallest(resource)
        if best is not None:
            return best
    wanted = ", ".join(f"{b.resource}={b.limit:g}" for b in options.qualities)
    raise InputError(f"budget {wanted} is out of reach: not even a slightly smaller model keeps it")
