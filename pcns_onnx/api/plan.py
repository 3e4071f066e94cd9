"""`plan`: what a budget would do, before anything is solved, and the whole curve to choose from.

Predicted errors are relative L2 errors at the outputs, from forward passes with groups narrowed
one by one (`probing`); the re-fit and the refinement make up for some of it. Latency is predicted
from the layers as they were timed on this machine (`timing`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Unpack

from threadpoolctl import threadpool_limits

from pcns_onnx.api.inputs import datasets
from pcns_onnx.api.options import Choices, Options
from pcns_onnx.data.sources import DataSource
from pcns_onnx.errors import InputError, NothingToShrinkError
from pcns_onnx.files import check_targets
from pcns_onnx.graph import Graph, ModelSource
from pcns_onnx.methods.registry import method_named
from pcns_onnx.methods.subset.decide import importance_of
from pcns_onnx.methods.subset.search import meet_latency
from pcns_onnx.planning.decision import Decision
from pcns_onnx.planning.frontier import fractions_of, point_of, points
from pcns_onnx.planning.low_rank import merge_unused_factors
from pcns_onnx.planning.plan import SCHEMA, FrontierPoint, GroupPlan, Plan, SkippedLayer, fingerprint, pairs, write_plan
from pcns_onnx.planning.prepare import problem_for, selected
from pcns_onnx.planning.problem import Problem
from pcns_onnx.progress import Progress
from pcns_onnx.report.schema import PlanReport
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.runtime.dask_executor import executor_for
from pcns_onnx.runtime.engine import choose_engine


@dataclass(frozen=True)
class PlanResult:
    """The plan (None for a frontier), and what there is to say about it."""

    plan: Plan | None
    report: PlanReport


def plan(
    model: ModelSource,
    data: DataSource | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    frontier: bool = False,
    progress: Progress | None = None,
    **choices: Unpack[Choices],
) -> PlanResult:
    """Widths for `model` within the budgets of `choices`, or with `frontier` the whole curve; nothing is solved.

    With `stats` of an earlier run no data is needed. With `output` the plan is written, for
    `shrink --plan`. Raises `InputError`, or `NothingToShrinkError` with the reasons.
    """
    options, progress = Options(**choices), progress or Progress()
    _check(options, frontier, data, output)
    check_targets((model, data), output, stats=options.stats)
    engine = choose_engine(options.device, options.threads, options.libraries)
    method = method_named(options.method)
    with (
        threadpool_limits(options.threads or None),
        executor_for(options.workers, options.scheduler) as executor,
        progress.stage("total"),
    ):
        form = Canonical.of(Graph.load(model))
        train, _ = datasets(form, data, replace(options, holdout=0.0), solves=True)
        problem = problem_for(form, engine, train, options, progress, times=True, executor=executor)
        problem, left = selected(problem, options, method.family)
        if not problem.groups:
            raise NothingToShrinkError("nothing can be shrunk: every layer has a reason to stay", pairs(left))
        found = importance_of(form, problem, method, options, probes=True)
        if frontier:
            return PlanResult(None, _report(problem, {}, list(points(problem, method, found, options)), left))
        decision = meet_latency(problem, method, found, options, None, options.costs)
        _, decision, _ = merge_unused_factors(problem, decision, options)
        made = Plan(SCHEMA, fingerprint(form.original), method.name, _with_savings(problem, decision))
    if output is not None:
        write_plan(made, output)
    return PlanResult(made, _report(problem, made.groups, [point_of(problem, decision)], left))


def _check(options: Options, frontier: bool, data: DataSource | None, output: str | os.PathLike[str] | None) -> None:
    if data is None and (options.stats is None or not os.path.exists(options.stats)):
        raise InputError("a plan needs to see what neurons do: give --data, or --stats of an earlier run")
    if method_named(options.method).family != "subset":
        raise InputError("plan is for methods obs and interpolative: `shrink --plan-out` writes plans of the others")
    if options.qualities:
        raise InputError("budgets error and drop need solved models: give them to `shrink --plan-out`")
    if frontier and (options.budgets or options.width is not None):
        raise InputError("--frontier draws all budgets: leave --budget and --width out")
    if frontier and output is not None:
        raise InputError("--frontier writes no plan: leave -o out, or choose a budget")
    if not frontier and not options.budgets and options.width is None:
        raise InputError("plan takes --budget or --width, or --frontier")
    if not frontier:
        options.goal()


def _with_savings(problem: Problem, decision: Decision) -> dict[str, GroupPlan]:
    """The plan's groups, each with the shares of the original that the model would cost more without it."""
    fractions = fractions_of(decision)
    now, planned = problem.costs(fractions), decision.planned()
    for name, entry in planned.items():
        more = (problem.costs({**fractions, name: 1.0}) - now) / problem.costs.total
        entry.saves = {r: round(float(m), 6) for r, m in zip(problem.costs.resources, more, strict=True)}
    return planned


def _report(
    problem: Problem, groups: dict[str, GroupPlan], drawn: list[FrontierPoint], left: list[SkippedLayer]
) -> PlanReport:
    latency_model = problem.costs.latency_model
    assert latency_model is not None, "a plan times the layers"
    return PlanReport(
        groups=groups,
        points=drawn,
        left_alone=left,
        steps={group.name: latency_model.steps[group.name] for group in problem.groups},
        batch=problem.latency_batch,
        threads=problem.calibration.engine.threads,
        provider=problem.calibration.engine.provider,
    )
