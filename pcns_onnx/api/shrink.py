"""`shrink`, step by step: open, canonicalise, prepare, decide, solve, emit, evaluate, report, write."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Unpack

from pcns_onnx.api.inputs import Run, datasets, run
from pcns_onnx.api.options import Choices, Options
from pcns_onnx.cost.benchmark import Latency, unsteady
from pcns_onnx.cost.model import model_size
from pcns_onnx.data.dataset import Dataset
from pcns_onnx.data.sources import DataSource
from pcns_onnx.errors import InputError, NothingToShrinkError
from pcns_onnx.evaluation.agreement import UNCHECKED, Agreement, own_score, time_both, verify
from pcns_onnx.evaluation.gates import Gate, gates_of, quality_gates
from pcns_onnx.evaluation.metric import Metric, load_metric
from pcns_onnx.evaluation.precisions import QuantizedModel, check_precisions, precision_path, quantize
from pcns_onnx.evaluation.provenance import library_versions, provenance_note, provenance_of
from pcns_onnx.files import check_targets
from pcns_onnx.graph import Graph, ModelSource
from pcns_onnx.graph.model_source import translator
from pcns_onnx.methods.pcns.assessment import eigenvalue_shares
from pcns_onnx.methods.registry import method_named
from pcns_onnx.methods.strategy import Request, Solution, Strategy, strategy_for
from pcns_onnx.planning.decision import Decision
from pcns_onnx.planning.frontier import point_of
from pcns_onnx.planning.grids import GridRules
from pcns_onnx.planning.plan import SCHEMA as PLAN_SCHEMA
from pcns_onnx.planning.plan import FrontierPoint, Plan, SkippedLayer, fingerprint, load_plan, pairs, write_plan
from pcns_onnx.planning.prepare import problem_for, selected
from pcns_onnx.planning.problem import Problem
from pcns_onnx.progress import Progress
from pcns_onnx.report.html.page import check_page
from pcns_onnx.report.schema import Report
from pcns_onnx.report.summary import group_infos
from pcns_onnx.report.warnings import NOTHING_CHECKED, SLOWER, apart, few_samples
from pcns_onnx.report.writer import finish, stages_of
from pcns_onnx.rewrite.canonical import Canonical, emit
from pcns_onnx.rewrite.explicit_bias import explicit_biases
from pcns_onnx.rewrite.patch import Patch
from pcns_onnx.runtime.samples import Samples

if TYPE_CHECKING:
    from onnx import ModelProto

INT8_LEAST = 16
"""Channels that a Conv keeps where int8 follows: onnxruntime's integer kernel takes longer for 8 or 12 than for 16."""


@dataclass(frozen=True)
class ShrinkResult:
    """The shrunk model (whole, weights of large ones included), the plan that replays it, and the report.

    `lowered`: the models of `int8` and `fp16`, by that name.
    """

    model: ModelProto
    plan: Plan
    report: Report
    lowered: dict[str, ModelProto] = field(default_factory=dict)

    def to_graphsurgeon(self) -> Any:
        """The shrunk model as a `graphsurgeon.Graph`; it remembers what graphsurgeon has no place for."""
        return translator("onnx_graphsurgeon").import_model(self.model)


def shrink(
    model: ModelSource,
    data: DataSource | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
    **choices: Unpack[Choices],
) -> ShrinkResult:
    """Shrink `model` on `data`; with `output` the new model is also written there, atomically.

    `data` may be None for the methods that look at weights only; the report then says that nothing was checked.
    `choices` are the fields of the records in `api.options`. Raises `InputError` (bad input, nothing written),
    `NothingToShrinkError` (with the reasons), or `GateError` (a limit was exceeded: the report
    is written, the model is not).
    """
    options = Options.of(**choices)
    options.goal.chosen_way()
    _check_files((model, data, options.data.eval, options.goal.plan), output, options)
    check_page(options.outputs.html)
    metric = load_metric(options.gates.metric)
    with run(options, progress) as running:
        form = Canonical.of(Graph.load(model))
        _check_files(tuple(form.original.files), output, options)
        check_precisions(form.original, options.outputs.precisions)
        request, strategy = _accepted(form, options, has_data=data is not None)
        check = _check_on(running, form, data, metric, solves=strategy.solves)
        problem, skipped = _prepare(running, form, check.train, strategy, request)
        decision = strategy.decide(problem, check.keeps_limits)
        skipped += _kept_whole(problem, decision)
        if not decision.narrowed:
            raise NothingToShrinkError("nothing was shrunk: every layer needs its full width here", pairs(skipped))
        frontier = strategy.frontier(problem) if options.outputs.html is not None else []
        problem, decision = strategy.settle(problem, decision)
        solution = strategy.solve(problem, decision)
        groups = decision.planned()
        plan = Plan(PLAN_SCHEMA, fingerprint(form.original), request.method.name, groups, strategy.rank_ratio)
        small = _emit(form, solution.patch, plan, options.data.seed)
        evaluation = check.evaluate(small, problem.calibration.samples)
        shrunk = Shrunk(strategy, problem, decision, solution, plan, small, frontier, skipped)
    report = _report(running, shrunk, check, evaluation, {"model": (model, form.original)}, data)
    return _write(shrunk, report, evaluation, output, options)


@dataclass(frozen=True)
class Shrunk:
    """What was decided, solved and emitted."""

    strategy: Strategy
    problem: Problem
    decision: Decision
    solution: Solution
    plan: Plan
    small: Graph
    frontier: list[FrontierPoint]
    skipped: list[SkippedLayer]


@dataclass(frozen=True)
class Evaluation:
    """How the shrunk model compares with the original, and what a reader must be warned of."""

    agreement: Agreement
    latency: Latency
    gates: list[Gate]
    quantized: list[QuantizedModel]
    warnings: list[str]


# -- open --------------------------------------------------------------------------------------


def _check_files(sources: tuple[object, ...], output: str | os.PathLike[str] | None, options: Options) -> None:
    """Refuse what cannot be written, or is an input, before any work is done."""
    outputs = options.outputs
    beside = [precision_path(output, kind) for kind in outputs.precisions]
    check_targets(sources, output, outputs.plan_out, outputs.report, outputs.html, *beside, stats=options.goal.stats)


def _accepted(form: Canonical, options: Options, *, has_data: bool) -> tuple[Request, Strategy]:
    """The strategy of the method, which can meet the request; raises `InputError` where none can."""
    goal, outputs, gates = options.goal, options.outputs, options.gates
    plan = None if goal.plan is None else load_plan(goal.plan, form.original)
    method = method_named(goal.method if plan is None else plan.method)
    request = Request(method, goal, options.scope, options.solving, options.data.seed, has_data, plan)
    strategy = strategy_for(request)
    refusal = strategy.accepts()
    if refusal is not None:
        raise InputError(refusal)
    if outputs.precisions and not has_data:
        raise InputError(f"--{outputs.precisions[0]} is calibrated and checked on samples: give them with --data")
    limits = {"--max-error": gates.max_error, "--max-drop": gates.max_drop, "--metric": gates.metric}
    asked = next((name for name, value in limits.items() if value is not None), None)
    if asked is not None and not has_data and options.data.eval is None:
        raise InputError(f"{asked} is checked on samples: give them with --data or --eval")
    return request, strategy


# -- prepare -----------------------------------------------------------------------------------


def _prepare(
    running: Run, form: Canonical, train: Dataset, strategy: Strategy, request: Request
) -> tuple[Problem, list[SkippedLayer]]:
    """The problem with the groups that are to be narrowed, and every other layer with its reason."""
    options, goal = running.options, request.goal
    problem = problem_for(
        form,
        running.calibration(train, form.twin),
        options.scope,
        batch_latency=options.runtime.batch_latency,
        plan=request.plan,
        times=goal.needs_times,
    )
    problem = replace(problem, rules=_grid_rules(options, request))
    problem, skipped = selected(problem, options.scope, strategy.refuses)
    if not problem.groups:
        why = "every layer has a reason to stay" if skipped else "the model has no layer with stored weights"
        raise NothingToShrinkError(f"nothing can be shrunk: {why}", pairs(skipped))
    return problem, skipped


def _grid_rules(options: Options, request: Request) -> GridRules:
    multiple = str(options.goal.multiple)
    least = INT8_LEAST if options.outputs.int8 and multiple == "auto" else 1
    return GridRules(multiple, least, drops=options.scope.depth and request.method.drops_blocks)


def _kept_whole(problem: Problem, decision: Decision) -> list[SkippedLayer]:
    """Groups that could be narrowed and are not, with the reason."""
    ranks, own = "two layers in its place do not pay here", "it keeps its full width here"
    return [
        SkippedLayer(name, ranks if name in problem.factors else own)
        for name, width in decision.widths.items()
        if width == decision.full[name]
    ]


# -- emit --------------------------------------------------------------------------------------


def _emit(form: Canonical, patch: Patch, plan: Plan, seed: int) -> Graph:
    """The shrunk model, checked by onnx, with a note of where it comes from."""
    small = emit(form, patch)
    small.set_metadata("pcns_onnx", provenance_note(plan, seed))
    small.check(full=form.original.passes_full_check())
    return small


# -- evaluate ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """What the shrunk model is checked on: samples that were `held_out`, or those of the solve (`train`)."""

    running: Run
    form: Canonical
    train: Dataset
    held_out: Dataset | None
    metric: Metric | None
    has_data: bool

    @property
    def samples(self) -> Samples:
        """The samples of the check."""
        return self.running.samples(self.held_out or self.train, self.form.original)

    def keeps_limits(self, patch: Patch) -> bool:
        """Whether the model with these edits keeps the budgets on what may be lost."""
        engine, original = self.running.engine, self.form.original
        agreement, _ = verify(engine, original, emit(self.form, patch), self.samples, self.metric, Progress())
        return all(gate.passed for gate in quality_gates(self.running.options.goal.qualities, agreement))

    def evaluate(self, small: Graph, calibration: Samples) -> Evaluation:
        """Agreement, latency, gates, and the precisions that are asked for."""
        running, original, options = self.running, self.form.original, self.running.options
        engine, samples, goal = running.engine, self.samples, options.goal
        agreement, warnings = UNCHECKED, [NOTHING_CHECKED]
        if self.has_data or self.held_out is not None:
            agreement, warnings = verify(engine, original, small, samples, self.metric, running.progress)
        if self.held_out is None:
            agreement = agreement.unproved()
        if self.held_out is None and self.has_data:
            warnings.append("checked on the samples that it was solved on: keep some back or give --eval")
        timed = running.timed(samples)
        latency = time_both(engine, original, small, timed, running.progress)
        if latency.ratio > 1 and not (goal.qualities or goal.plan is not None):
            warnings.append(SLOWER)
        warnings += unsteady(latency)
        gates = [*quality_gates(goal.qualities, agreement), *gates_of(options.gates, agreement)]
        quantized = quantize(
            engine, original, small, options.outputs.precisions, calibration, samples, timed, self.metric,
            options.gates, running.progress,
        )  # fmt: skip
        return Evaluation(agreement, latency, gates, quantized, warnings)


def _check_on(running: Run, form: Canonical, data: DataSource | None, metric: Metric | None, *, solves: bool) -> Check:
    """The samples of the solve and of the check; raises `InputError` where a limit needs labels that are not there."""
    train, held_out = datasets(running, form, data, solves=solves)
    options = running.options
    needs_score = options.gates.max_drop is not None or any(b.resource == "drop" for b in options.goal.qualities)
    if needs_score and metric is None and not (held_out or train).has_labels:
        limit = "--max-drop" if options.gates.max_drop is not None else "budget drop"
        raise InputError(f"{limit} needs labels in the data it is checked on, or --metric")
    check = Check(running, form, train, held_out, metric, data is not None)
    if metric is not None:
        own_score(running.engine, form.original, check.samples, metric)  # a metric that does not fit fails here
    return check


# -- report ------------------------------------------------------------------------------------


def _report(
    running: Run,
    shrunk: Shrunk,
    check: Check,
    evaluation: Evaluation,
    models: dict[str, tuple[ModelSource, Graph]],
    data: DataSource | None,
) -> Report:
    options, problem, small = running.options, shrunk.problem, shrunk.small
    is_drawn = options.outputs.html is not None
    infos = group_infos(
        problem.groups,
        shrunk.decision,
        shrunk.solution,
        shrunk.strategy.curves if is_drawn else {},
        eigenvalue_shares(problem) if is_drawn and data is not None else {},
    )
    after = running.dependencies(explicit_biases(small)[0].as_float32(), check.train)
    samples = problem.calibration.samples
    return Report(
        options=options.described() | {"method": shrunk.plan.method},
        before=model_size(check.form.original, problem.whole_dependencies),
        after=model_size(small, after),
        agreement=evaluation.agreement,
        latency=evaluation.latency,
        gates=evaluation.gates + [gate for quantized in evaluation.quantized for gate in quantized.gates],
        groups=infos,
        left_alone=shrunk.skipped,
        folded=list(check.form.folded),
        stages=stages_of(running.engine, check.form.twin, samples, running.progress),
        warnings=[
            *(few_samples(problem) if shrunk.strategy.solves else []),
            *evaluation.warnings,
            *apart(infos),
            *(text for quantized in evaluation.quantized for text in quantized.warnings),
        ],
        versions=library_versions(),
        origin=provenance_of(
            options.outputs.command,
            options.runtime.device,
            options.data.seed,
            running.engine,
            models,
            {"data": data, "eval": options.data.eval},
            shrunk.plan,
        ),
        frontier=shrunk.frontier,
        chosen=point_of(problem, shrunk.decision) if shrunk.frontier else None,
        precisions=[quantized.precision for quantized in evaluation.quantized],
    )


# -- write -------------------------------------------------------------------------------------


def _write(
    shrunk: Shrunk, report: Report, evaluation: Evaluation, output: str | os.PathLike[str] | None, options: Options
) -> ShrinkResult:
    """Plan, report and page; the models, if all limits hold (`GateError`)."""
    if options.outputs.plan_out is not None:
        write_plan(shrunk.plan, options.outputs.plan_out)
    finish(report, options.outputs.report, options.outputs.html, "; no model was written")
    if output is not None:
        shrunk.small.save(output)
    for quantized in evaluation.quantized:
        path = precision_path(output, quantized.precision.kind)
        if path is not None:
            quantized.graph.save(path)
    by_kind = {quantized.precision.kind: quantized.graph.proto for quantized in evaluation.quantized}
    return ShrinkResult(shrunk.small.proto, shrunk.plan, report, by_kind)
