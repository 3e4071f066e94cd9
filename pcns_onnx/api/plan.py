"""`plan`: what a budget would do, before anything is solved, and the whole curve to choose from.

Predicted errors are relative L2 errors at the outputs, from forward passes with groups narrowed
one by one (`planning.sensitivity`); the re-fit and the refinement make up for some of it. Latency is predicted
from the layers as they were timed on this machine (`cost.latency_model`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Unpack

from pcns_onnx.api.inputs import datasets, run
from pcns_onnx.api.options import Choices, Options
from pcns_onnx.api.shrinking.preparation import prepared, require_groups
from pcns_onnx.api.shrinking.streams import NarrowStreams, narrow_streams
from pcns_onnx.data.fingerprints import SampleSummary, sketch
from pcns_onnx.data.sources import DataSource
from pcns_onnx.errors import InputError
from pcns_onnx.files import check_targets
from pcns_onnx.graph import ModelSource
from pcns_onnx.methods.registry import method_named, methods_with
from pcns_onnx.methods.strategy import Request
from pcns_onnx.methods.subset.search import meet_measured
from pcns_onnx.methods.subset.strategy import SubsetStrategy
from pcns_onnx.planning.decision import Decision
from pcns_onnx.planning.frontier import fractions_of, point_of, points
from pcns_onnx.planning.importance import Importance
from pcns_onnx.planning.plan import (
    SCHEMA,
    SKETCH,
    FrontierPoint,
    GroupPlan,
    Plan,
    SkippedLayer,
    fingerprint,
    write_plan,
)
from pcns_onnx.planning.problem import Problem
from pcns_onnx.progress import Progress
from pcns_onnx.report.schema import PlanReport
from pcns_onnx.report.warnings import degenerate, put_right
from pcns_onnx.runtime.targets.timer import timed_in, timed_threads


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

    The same share of the samples is held out as `shrink` would hold out, so that it can check the plan on it. With
    `stats` of an earlier run no data is needed. With `output` the plan is written, for
    `shrink --plan`. Raises `InputError`, or `NothingToShrinkError` with the reasons.
    """
    options = Options.of(**choices)
    strategy = _accepted(options, frontier=frontier, has_data=data is not None, writes=output is not None)
    check_targets((model, data), output, stats=options.goal.stats)
    with run(options, progress, times=True) as running:
        form = running.form(model)
        fed = datasets(running, form, data, solves=True)
        streams = narrow_streams(running, fed.form, fed.train, None)
        form = streams.form
        problem, skipped = prepared(running, form, fed.train, strategy.request, strategy, times=True)
        skipped = [*streams.skipped, *skipped]
        if not streams.plans:
            require_groups(problem, skipped)
        importance = strategy.importance(problem, probes=True)
        if frontier:
            drawn = list(points(problem, importance, options.goal))
            return PlanResult(None, _report(problem, {}, drawn, skipped, importance, streams, running.notes))
        decision = meet_measured(problem, importance, strategy.request)
        _, decision = strategy.settle(problem, decision)
        groups = _with_savings(problem, decision)
        chosen_on = sketch(importance.samples, SKETCH)
        origin, name = fingerprint(form.original), strategy.request.method.name
        plan = Plan(SCHEMA, origin, name, groups, samples=chosen_on, streams=dict(streams.plans))
    if output is not None:
        write_plan(plan, output)
    drawn = [point_of(problem, decision)]
    return PlanResult(plan, _report(problem, plan.groups, drawn, skipped, importance, streams, running.notes))


def _accepted(options: Options, *, frontier: bool, has_data: bool, writes: bool) -> SubsetStrategy:
    """The strategy of the method; raises `InputError` where there is no plan to be made of the choices."""
    goal, method = options.goal, method_named(options.goal.method)
    if not has_data and (goal.stats is None or not os.path.exists(goal.stats)):
        raise InputError("a plan needs to see what neurons do: give --data, or --stats of an earlier run")
    if not method.plans:
        raise InputError(f"plan is for {methods_with('plans')}: `shrink --plan-out` writes plans of the others")
    if goal.qualities:
        raise InputError("budgets error and drop need solved models: give them to `shrink --plan-out`")
    if frontier and (goal.budgets or goal.width is not None):
        raise InputError("--frontier draws all budgets: leave --budget and --width out")
    if frontier and writes:
        raise InputError("--frontier writes no plan: leave -o out, or choose a budget")
    if goal.only_rotates and not frontier:
        goal = replace(goal, width=1.0)
    if not frontier and not goal.budgets and goal.width is None:
        raise InputError("plan takes --budget or --width, or --frontier")
    if not frontier:
        goal.chosen_way()
    request = Request(method, goal, options.scope, options.solving, options.data.seed)
    refusal = SubsetStrategy(request).accepts()
    if refusal is not None:
        raise InputError(refusal)
    return SubsetStrategy(replace(request, has_data=has_data))


def _with_savings(problem: Problem, decision: Decision) -> dict[str, GroupPlan]:
    """The plan's groups, each with the shares of the original that the model would cost more without it."""
    fractions = fractions_of(decision)
    now, planned = problem.costs(fractions), decision.planned()
    for name, entry in planned.items():
        more = (problem.costs({**fractions, name: 1.0}) - now) / problem.costs.total
        entry.saves = {r: round(float(m), 6) for r, m in zip(problem.costs.resources, more, strict=True)}
    return planned


def _report(
    problem: Problem,
    groups: dict[str, GroupPlan],
    drawn: list[FrontierPoint],
    left: list[SkippedLayer],
    importance: Importance,
    streams: NarrowStreams,
    notes: list[str],
) -> PlanReport:
    latency_model = problem.costs.latency_model
    assert latency_model is not None, "a plan times the layers"
    return PlanReport(
        groups=groups,
        points=drawn,
        left_alone=left,
        steps={group.name: latency_model.steps[group.name] for group in problem.groups},
        batch=problem.latency_batch,
        threads=timed_threads(problem.calibration.engine),
        provider=timed_in(problem.calibration.engine),
        warnings=[
            *put_right(problem.form.original),
            *notes,
            *streams.notes,
            *degenerate(SampleSummary(importance.samples), "the plan"),
        ],
        streams=dict(streams.plans),
    )
