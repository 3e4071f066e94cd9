"""`shrink`, step by step: open, canonicalise, prepare, decide, solve, emit, heal, evaluate, report, write."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from pcns_onnx.api.check import Check, Evaluation, check_on
from pcns_onnx.api.heal import heal_samples, kept_aside_from, not_accepted, require_torch
from pcns_onnx.api.inputs import Run, run
from pcns_onnx.api.options import Choices, Options
from pcns_onnx.cost.model import model_size
from pcns_onnx.data.dataset import Dataset
from pcns_onnx.data.fingerprints import sketch
from pcns_onnx.data.sources import DataSource
from pcns_onnx.errors import InputError, NothingToShrinkError, PcnsError
from pcns_onnx.evaluation.healing import Healing
from pcns_onnx.evaluation.metric import load_metric
from pcns_onnx.evaluation.precisions import check_precisions, precision_path
from pcns_onnx.evaluation.provenance import library_versions, provenance_note, provenance_of
from pcns_onnx.files import check_targets
from pcns_onnx.graph import Graph, ModelSource
from pcns_onnx.graph.model_source import ModelFolder, translator
from pcns_onnx.methods.pcns.assessment import eigenvalue_shares
from pcns_onnx.methods.registry import method_named
from pcns_onnx.methods.strategy import Request, Solution, Strategy, strategy_for
from pcns_onnx.planning.decision import Decision
from pcns_onnx.planning.frontier import point_of
from pcns_onnx.planning.grids import INT8_LEAST, GridRules
from pcns_onnx.planning.plan import SCHEMA as PLAN_SCHEMA
from pcns_onnx.planning.plan import SKETCH, FrontierPoint, Plan, SkippedLayer, fingerprint, load_plan, pairs, write_plan
from pcns_onnx.planning.prepare import kept_whole, problem_for, selected
from pcns_onnx.planning.problem import Problem
from pcns_onnx.progress import Progress
from pcns_onnx.report.genai_config import NAME as GENAI_CONFIG
from pcns_onnx.report.genai_config import Contract, contract_of
from pcns_onnx.report.html.page import check_page
from pcns_onnx.report.schema import Report
from pcns_onnx.report.summary import group_infos
from pcns_onnx.report.warnings import apart, grown, of_samples, put_right, starved, still
from pcns_onnx.report.writer import finish, stages_of
from pcns_onnx.rewrite.canonical import Canonical, emit
from pcns_onnx.rewrite.contract import as_narrowed, close_states
from pcns_onnx.rewrite.explicit_bias import explicit_biases
from pcns_onnx.rewrite.patch import Patch

if TYPE_CHECKING:
    from onnx import ModelProto


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

    If `model` is a folder (`graph.model_source`), `output` is one, too, and what lies around the model goes along.
    `data` may be None for the methods that look at weights only; the report then says that nothing was checked.
    `choices` are the fields of the records in `api.options`. Raises `InputError` (bad input, nothing written),
    `NothingToShrinkError` (with the reasons), or `GateError` (a limit was exceeded: the report
    is written, the model is not). An `int8` or `fp16` that fails raises nothing: the model is written, and the
    report says which failed and why (`failed_precisions`).
    """
    folder = ModelFolder.of(model)
    if folder is not None and output is not None:
        with folder.brought_along(output) as place:
            result = shrink(folder.model, data, place.target, progress=progress, **choices)
            if result.report.contract:
                place.untrue.add(GENAI_CONFIG)  # it was written anew, or it is not true any more
            return result
    options = Options.of(**choices)
    options.goal.chosen_way()
    if options.healing.heal is not None:
        require_torch()
    _check_files((model, data, options.data.eval, options.goal.plan), output, options)
    check_page(options.outputs.html)
    metric = load_metric(options.gates.metric)
    with run(options, progress) as running:
        form = running.form(model)
        _check_files(tuple(form.original.files), output, options)
        check_precisions(form.original, options.outputs.precisions)
        request, strategy = _accepted(form, options, has_data=data is not None)
        check = _keeping_aside(check_on(running, form, data, metric, request.plan, solves=strategy.solves))
        form = check.form
        problem, skipped = _prepare(running, form, check.train, strategy, request)
        check = replace(check, layout=problem.layout)
        decision = strategy.decide(problem, check.keeps_limits)
        skipped += kept_whole(problem, decision)
        if not decision.narrowed:
            raise NothingToShrinkError("nothing was shrunk: every layer needs its full width here", pairs(skipped))
        frontier = strategy.frontier(problem) if options.outputs.html is not None else []
        problem, decision = strategy.settle(problem, decision)
        forecast = check.forecast(problem, lambda trial: strategy.outline(trial, decision))
        if forecast is not None:
            running.say(forecast)
        solution = strategy.solve(problem, decision)
        groups = decision.planned()
        hashes = np.concatenate([np.zeros(0, np.uint64), *check.used])
        chosen_on = sketch(hashes, SKETCH) if request.plan is None else request.plan.samples
        model_hash, ratio = fingerprint(form.original), strategy.rank_ratio
        plan = Plan(PLAN_SCHEMA, model_hash, request.method.name, groups, ratio, chosen_on)
        small = _emit(form, solution.patch, provenance_note(plan, options.data.seed, hashes))
        small, healing, notes = _healed(check, problem, small)
        evaluation = check.evaluate(small, problem.calibration.samples, [*starved(solution, problem), *still(solution)])
        contract = contract_of(form.original, small, model, output)
        notes += contract.notes
        shrunk = Shrunk(strategy, problem, decision, solution, plan, small, frontier, skipped, healing, notes, contract)
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
    healing: Healing | None
    notes: list[str]
    contract: Contract


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
    unread = options.healing.unread
    if unread is not None:
        raise InputError(f"--{unread.replace('_', '-')} says how --heal learns: give --heal, too, or leave it out")
    if options.healing.heal is not None and not has_data:
        raise InputError("--heal learns from the original on samples: give them with --data")
    weights = {name for node in form.original.nodes for name in node.inputs if form.original.is_constant(name)}
    glob = options.healing.matching_none([*weights, *(node.label for node in form.original.nodes)])
    if glob is not None:
        raise InputError(f"--freeze '{glob}' matches no layer and no initializer of the model")
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
        weights=options.gates.weights([spec.name for spec in form.original.outputs]),
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


# -- emit --------------------------------------------------------------------------------------


def _emit(form: Canonical, patch: Patch, provenance: str) -> Graph:
    """The shrunk model, its states still open, checked by onnx, with a note of where it comes from."""
    small = emit(form, patch)
    small.set_metadata("pcns_onnx", provenance)
    close_states(small).check(full=form.original.passes_check(full=True))
    return small


# -- heal --------------------------------------------------------------------------------------


def _keeping_aside(check: Check) -> Check:
    """The same, with samples kept from the solve by which the healed model will be judged, if it is to be healed."""
    if check.running.options.healing.heal is None:
        return check
    train, aside = kept_aside_from(check.running, check.train, check.form.original)
    return replace(check, train=train, aside=aside)


def _healed(check: Check, problem: Problem, small: Graph) -> tuple[Graph, Healing | None, list[str]]:
    """The shrunk model after it has learnt from the original, if it is to, and what is said of it; whatever fails here
    leaves the shrunk model as it is."""
    running, original = check.running, check.form.original
    if running.options.healing.heal is None:
        return small, None, []
    try:
        before = model_size(original, problem.whole_dependencies)
        after = model_size(small, running.dependencies(explicit_biases(small)[0].as_float32(), check.train))
        teacher, sizes = as_narrowed(original, small), (after, before)
        healed = heal_samples(running, teacher, small, check.train, check.aside, problem.layout, sizes, check.metric)
    except PcnsError as error:
        return small, None, [f"not healed, the shrunk model is as it was: {error}"]
    return healed.graph, healed.record, not_accepted(healed.record)


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
    before = model_size(check.form.original, problem.whole_dependencies)
    size = model_size(shrunk.contract.closed, after)
    return Report(
        options=options.described() | {"method": shrunk.plan.method},
        before=before,
        after=size,
        agreement=evaluation.agreement,
        latency=evaluation.latency,
        gates=evaluation.gates + evaluation.quantized.gates,
        groups=infos,
        left_alone=shrunk.skipped,
        folded=list(check.form.folded),
        stages=stages_of(running.engine, check.form.twin, samples, running.progress),
        warnings=[
            *put_right(check.form.original),
            *running.notes,
            *(of_samples(problem, shrunk.solution) if shrunk.strategy.solves else []),
            *shrunk.notes,
            *evaluation.warnings,
            *grown(before, size),
            *apart(infos),
            *evaluation.quantized.warnings,
        ],
        versions=library_versions() | ({} if shrunk.healing is None else shrunk.healing.versions),
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
        precisions=[quantized.precision for quantized in evaluation.quantized.models],
        failed_precisions=evaluation.quantized.failed,
        healing=shrunk.healing,
        contract=shrunk.contract.states,
    )


# -- write -------------------------------------------------------------------------------------


def _write(
    shrunk: Shrunk, report: Report, evaluation: Evaluation, output: str | os.PathLike[str] | None, options: Options
) -> ShrinkResult:
    """Plan, report and page; the models, if all limits hold (`GateError`)."""
    if options.outputs.plan_out is not None:
        write_plan(shrunk.plan, options.outputs.plan_out)
    finish(report, options.outputs.report, options.outputs.html, "; no model was written")
    states = shrunk.small.layout.states
    if output is not None:
        shrunk.contract.save(output)
    for quantized in evaluation.quantized.models:
        path = precision_path(output, quantized.precision.kind)
        if path is not None:
            close_states(quantized.graph, states).save(path)
    by_kind = {model.precision.kind: close_states(model.graph, states).proto for model in evaluation.quantized.models}
    return ShrinkResult(shrunk.contract.closed.proto, shrunk.plan, report, by_kind)
