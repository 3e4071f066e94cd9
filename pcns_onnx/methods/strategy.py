"""What a family of methods answers."""

from __future__ import annotations

from dataclasses import replace

from pcns_onnx.api.options import Options
from pcns_onnx.methods.pcns.decide import decide_bases
from pcns_onnx.methods.registry import Method
from pcns_onnx.methods.subset.decide import findings_of
from pcns_onnx.methods.subset.search import Judge, hold_latency, search
from pcns_onnx.planning.decision import Decision
from pcns_onnx.planning.frontier import points
from pcns_onnx.planning.plan import Plan
from pcns_onnx.planning.problem import Work
from pcns_onnx.rewrite.canonical import Canonical


def decided(form: Canonical, work: Work, method: Method, options: Options, plan: Plan | None, judge: Judge) -> Decision:
    """A width for every group: the plan's, or the best that all budgets allow."""
    if method.family == "basis":
        return decide_bases(work, method, options, plan, options.costs)
    found = findings_of(form, work, method, options, probes=bool(options.budgets) and plan is None)
    if options.qualities:
        decision = search(work, method, found, options, judge, options.costs)
    else:
        decision = hold_latency(work, method, found, options, plan, options.costs)
    if options.html is None or plan is not None or not options.budgets:
        return decision  # only probed groups can be added up
    return replace(decision, frontier=tuple(points(work, method, found, options)))
