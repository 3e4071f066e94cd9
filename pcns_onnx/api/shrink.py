"""`shrink`, step by step: open, canonicalise, prepare, decide, solve, emit, heal, evaluate, report, write.

From preparing to healing it is a step (`shrinking.step`), of which there may be several (`shrinking.rounds`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Unpack

from pcns_onnx.api.check import Check, Evaluation, check_on
from pcns_onnx.api.heal import kept_aside_from, require_torch
from pcns_onnx.api.inputs import run
from pcns_onnx.api.options import Choices, Options
from pcns_onnx.api.shrinking.rounds import Rounds, take_all
from pcns_onnx.api.shrinking.step import Narrowed, size_of
from pcns_onnx.api.shrinking.streams import NarrowStreams, narrow_streams
from pcns_onnx.data.sources import DataSource
from pcns_onnx.errors import InputError
from pcns_onnx.evaluation.metric import load_metric
from pcns_onnx.evaluation.precisions import check_precisions, precision_path
from pcns_onnx.evaluation.provenance import library_versions, provenance_of
from pcns_onnx.files import check_targets
from pcns_onnx.graph import Graph, ModelSource
from pcns_onnx.graph.model_source import ModelFolder, translator
from pcns_onnx.methods.registry import method_named
from pcns_onnx.methods.strategy import Request, Strategy, strategy_for
from pcns_onnx.planning.plan import Plan, load_plan, write_plan
from pcns_onnx.progress import Progress
from pcns_onnx.report.genai_config import NAME as GENAI_CONFIG
from pcns_onnx.report.genai_config import Contract, contract_of
from pcns_onnx.report.html.page import check_page
from pcns_onnx.report.schema import Report
from pcns_onnx.report.warnings import apart, grown, put_right, unique
from pcns_onnx.report.writer import finish, stages_of
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.rewrite.contract import close_states

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
    report says which failed and why (`failed_precisions`); nor does a later one of several `rounds`: the model is that
    of the rounds before (`failed_round`).
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
    with run(options, progress, times=options.goal.needs_times or options.scope.low_rank) as running:
        form = running.form(model)
        _check_files(tuple(form.original.files), output, options)
        check_precisions(form.original, options.outputs.precisions)
        request, strategy = _accepted(form, options, has_data=data is not None)
        if request.plan is not None and request.plan.rounds > 1:
            origin = f"the plan was made in {request.plan.rounds} rounds with healing between them"
            running.say(f"{origin}: its widths and channels are replayed in one step, the weights will be others")
        check = _keeping_aside(check_on(running, form, data, metric, request.plan, solves=strategy.solves))
        streams = narrow_streams(running, check.form, check.train, request.plan)
        check = replace(check, form=streams.form, streams=streams)
        form = check.form
        rounds = take_all(check, request, strategy)
        last = rounds.last
        check = last.check
        evaluation = check.evaluate(last.small, running.samples(check.train, form.twin), rounds.weak)
        contract = contract_of(form.original, last.small, model, output)
    report = _report(rounds, contract, evaluation, {"model": (model, form.original)}, data)
    return _write(last, contract, report, evaluation, output, options)


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
        why = "heals between its steps" if unread == "rounds" else "says how --heal learns"
        raise InputError(f"--{unread.replace('_', '-')} {why}: give --heal, too, or leave it out")
    if (options.healing.rounds or 1) > 1 and (undivided := goal.undivided) is not None:
        raise InputError(f"--rounds divides a budget on costs, or --width: {undivided} is met in one step")
    if (options.healing.rounds or 1) > 1 and "narrow" in (options.scope.states, options.scope.caches):
        raise InputError("--rounds leaves states and caches alone: leave it out where --states or --caches is narrow")
    if options.healing.resume:
        raise InputError("--resume goes on from a checkpoint of `heal`: `shrink` leaves none, begin again")
    if options.healing.heal is not None and not has_data:
        raise InputError("--heal learns from the original on samples: give them with --data")
    weights = {name for node in form.original.nodes for name in node.inputs if form.original.is_constant(name)}
    glob = options.healing.matching_none([*weights, *(node.label for node in form.original.nodes)])
    if glob is not None:
        raise InputError(f"--freeze '{glob}' matches no layer and no initializer of the model")
    if (goal.rotate_streams is not None or (plan is not None and plan.streams)) and not has_data:
        raise InputError("--rotate-streams finds its basis on samples: give them with --data")
    if outputs.precisions and not has_data:
        raise InputError(f"--{outputs.precisions[0]} is calibrated and checked on samples: give them with --data")
    limits = {"--max-error": gates.max_error, "--max-drop": gates.max_drop, "--metric": gates.metric}
    asked = next((name for name, value in limits.items() if value is not None), None)
    if asked is not None and not has_data and options.data.eval is None:
        raise InputError(f"{asked} is checked on samples: give them with --data or --eval")
    return request, strategy


# -- heal --------------------------------------------------------------------------------------


def _keeping_aside(check: Check) -> Check:
    """The same, with samples kept from the solve by which the healed model will be judged, if it is to be healed."""
    if check.running.options.healing.heal is None:
        return check
    train, aside = kept_aside_from(check.running, check.train, check.form.original)
    return replace(check, train=train, aside=aside)


# -- report ------------------------------------------------------------------------------------


def _report(
    rounds: Rounds,
    contract: Contract,
    evaluation: Evaluation,
    models: dict[str, tuple[ModelSource, Graph]],
    data: DataSource | None,
) -> Report:
    last, check = rounds.last, rounds.last.check
    running, options = check.running, check.running.options
    streams = check.streams or NarrowStreams(check.form)
    before, groups = rounds.steps[0].before, rounds.groups
    after = size_of(check, last.small, contract.closed)
    return Report(
        options=options.described() | {"method": last.plan.method},
        before=before,
        after=after,
        agreement=evaluation.agreement,
        latency=evaluation.latency,
        gates=evaluation.gates + evaluation.quantized.gates,
        groups=groups,
        left_alone=[*streams.skipped, *rounds.skipped],
        folded=list(check.form.folded),
        stages=stages_of(
            running.engine, check.form.twin, running.samples(check.train, check.form.twin), running.progress
        ),
        warnings=unique(
            *put_right(check.form.original),
            *running.notes,
            *rounds.of_samples,
            *streams.notes,
            *rounds.notes,
            *contract.notes,
            *evaluation.warnings,
            *grown(before, after),
            *apart(groups),
            *evaluation.quantized.warnings,
        ),
        versions=library_versions() | ({} if last.healing is None else last.healing.versions),
        origin=provenance_of(
            options.outputs.command,
            options.runtime.device,
            options.data.seed,
            running.engine,
            models,
            {"data": data, "eval": options.data.eval},
            last.plan,
        ),
        frontier=last.frontier,
        chosen=last.chosen if last.frontier else None,
        precisions=[quantized.precision for quantized in evaluation.quantized.models],
        failed_precisions=evaluation.quantized.failed,
        healing=last.healing,
        rounds=list(rounds.records),
        failed_round=rounds.failed,
        contract=contract.states,
        streams=dict(streams.plans),
    )


# -- write -------------------------------------------------------------------------------------


def _write(
    last: Narrowed,
    contract: Contract,
    report: Report,
    evaluation: Evaluation,
    output: str | os.PathLike[str] | None,
    options: Options,
) -> ShrinkResult:
    """Plan, report and page; the models, if all limits hold (`GateError`)."""
    if options.outputs.plan_out is not None:
        write_plan(last.plan, options.outputs.plan_out)
    finish(report, options.outputs.report, options.outputs.html, "; no model was written")
    states = last.small.layout.states
    if output is not None:
        contract.save(output)
    for quantized in evaluation.quantized.models:
        path = precision_path(output, quantized.precision.kind)
        if path is not None:
            close_states(quantized.graph, states).save(path)
    by_kind = {model.precision.kind: close_states(model.graph, states).proto for model in evaluation.quantized.models}
    return ShrinkResult(contract.closed.proto, last.plan, report, by_kind)
