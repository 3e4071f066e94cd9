"""What a family of methods answers."""

from __future__ import annotations

from dataclasses import replace

from pcns_onnx.api.options import Options
from pcns_onnx.methods.pcns.decide import decide_bases
from pcns_onnx.methods.registry import Method
from pcns_onnx.methods.subset.decide import importance_of
from pcns_onnx.methods.subset.search import Judge, meet_latency, search
from pcns_onnx.planning.decision import Decision
from pcns_onnx.planning.frontier import points
from pcns_onnx.planning.plan import Plan
from pcns_onnx.planning.problem import Problem
from pcns_onnx.rewrite.canonical import Canonical


def decided(
    form: Canonical, problem: Problem, method: Method, options: Options, plan: Plan | None, judge: Judge
) -> Decision:
    """A width for every group: the plan's, or the best that all budgets allow."""
    if method.family == "basis":
        return decide_bases(problem, method, options, plan, options.costs)
    found = importance_of(form, problem, method, options, probes=bool(options.budgets) and plan is None)
    if options.qualities:
        decision = search(problem, method, found, options, judge, options.costs)
    else:
        decision = meet_latency(problem, method, found, options, plan, options.costs)
    if options.html is None or plan is not None or not options.budgets:
        return decision  # only probed groups can be added up
    return replace(decision, frontier=tuple(points(problem, method, found, options)))
