"""The story, top to bottom: read, look, plan, solve, rewrite, check, report.

`shrink`, `inspect` and `compare` are the public API; the CLI is a thin skin on them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Unpack

import msgspec
from threadpoolctl import threadpool_limits

from pcns_onnx.api.inputs import datasets
from pcns_onnx.api.options import Choices, Options
from pcns_onnx.calibration.shapes import dependency_graph_of
from pcns_onnx.cost.benchmark import unsteady
from pcns_onnx.cost.model import model_size
from pcns_onnx.data.sources import DataSource
from pcns_onnx.errors import InputError, NothingToShrinkError
from pcns_onnx.evaluation.agreement import UNCHECKED, time_both, verify
from pcns_onnx.evaluation.gates import gates_of, quality_gates
from pcns_onnx.evaluation.metric import load_metric
from pcns_onnx.evaluation.precisions import check_precisions, precision_path, quantize
from pcns_onnx.evaluation.provenance import library_versions, provenance_note, provenance_of
from pcns_onnx.files import check_targets
from pcns_onnx.graph import Graph, ModelSource
from pcns_onnx.methods.data_free.strategy import Weighing, ratio_of
from pcns_onnx.methods.pcns.assessment import spectra
from pcns_onnx.methods.registry import method_named
from pcns_onnx.methods.strategy import decided
from pcns_onnx.methods.subset.solve import solve
from pcns_onnx.planning.decision import Decision
from pcns_onnx.planning.frontier import point_of
from pcns_onnx.planning.low_rank import merge_unused_factors
from pcns_onnx.planning.plan import SCHEMA as PLAN_SCHEMA
from pcns_onnx.planning.plan import Plan, SkippedLayer, fingerprint, load_plan, pairs, write_plan
from pcns_onnx.planning.prepare import problem_for, selected
from pcns_onnx.planning.problem import Problem
from pcns_onnx.progress import Progress
from pcns_onnx.report.html.page import check_page
from pcns_onnx.report.schema import GroupInfo, Report
from pcns_onnx.report.warnings import NOTHING_CHECKED, SLOWER, apart, few_samples
from pcns_onnx.report.writer import finish, stages_of
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.rewrite.explicit_bias import drop_zero_biases, explicit_biases
from pcns_onnx.rewrite.low_rank import additions
from pcns_onnx.rewrite.patch import Patch, apply
from pcns_onnx.runtime.dask_executor import executor_for
from pcns_onnx.runtime.engine import choose_engine
from pcns_onnx.runtime.samples import at_latency_batch, samples_of

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
    `choices` are the fields of `Options`. Raises `InputError` (bad input, nothing written),
    `NothingToShrinkError` (with the reasons), or `GateError` (a limit was exceeded: the report
    is written, the model is not).
    """
    options, progress = Options(**choices), progress or Progress()
    options.goal()
    targets = (output, options.plan_out, options.report, options.html)
    check_targets((model, data, options.eval, options.plan), *targets, stats=options.stats)
    check_page(options.html)
    metric = load_metric(options.metric)
    engine = choose_engine(options.device, options.threads, options.libraries)
    with (
        threadpool_limits(options.threads or None),
        executor_for(options.workers, options.scheduler) as executor,
        progress.stage("total"),
    ):
        form = Canonical.of(Graph.load(model))
        lowered_files = [precision_path(output, kind) for kind in options.precisions]
        check_targets(tuple(form.original.files), *targets, *lowered_files, stats=options.stats)
        check_precisions(form.original, options)
        plan = None if options.plan is None else load_plan(options.plan, form.original)
        method = method_named(options.method if plan is None else plan.method)
        options.check_method(method, data=data is not None)
        solves, ratio = method.family != "weights" or bool(options.refit), ratio_of(method, options, plan)
        train, held_out = datasets(form, data, options, solves=solves)
        needs_score = options.max_drop is not None or any(b.resource == "drop" for b in options.qualities)
        if needs_score and metric is None and not (held_out or train).has_labels:
            what = "--max-drop" if options.max_drop is not None else "budget drop"
            raise InputError(f"{what} needs labels in the data it is checked on, or --metric")
        problem = problem_for(form, engine, train, options, progress, plan=plan, executor=executor)
        problem, left = selected(problem, options, method.family)
        if not problem.groups:
            why = "every layer has a reason to stay" if left else "the model has no layer with stored weights"
            raise NothingToShrinkError(f"nothing can be shrunk: {why}", pairs(left))
        warnings = few_samples(problem) if solves else []
        weighing = Weighing(problem, method, ratio) if method.family == "weights" else None

        def judge(edits: Patch) -> bool:
            small = _made(form, edits)
            checked = samples_of(held_out or train, options, form.original)
            seen, _ = verify(engine, form.original, small, checked, metric, Progress())
            return all(gate.passed for gate in quality_gates(options, seen))

        if weighing is not None:
            decision = weighing.decide(options, plan)
        else:
            decision = decided(form, problem, method, options, plan, judge)
        left += [SkippedLayer(n, _stays(n, problem)) for n, w in decision.widths.items() if w == decision.full[n]]
        if not decision.narrowed:
            raise NothingToShrinkError("nothing was shrunk: every layer needs its full width here", pairs(left))
        problem, decision, _ = merge_unused_factors(problem, decision, options)
        patch, infos = solve(problem, decision, options) if weighing is None else weighing.solve(decision, options)
        if options.html is not None:
            infos = _with_curves(problem, decision, infos, looks=data is not None)
        small = _made(form, patch)
        plan = Plan(PLAN_SCHEMA, fingerprint(form.original), method.name, decision.planned(), ratio)
        small.set_metadata("pcns_onnx", provenance_note(plan, options))
        small.check(full=form.original.passes_full_check())
        checked = samples_of(held_out or train, options, form.original)
        agreement, report_warnings = UNCHECKED, [NOTHING_CHECKED]
        if data is not None or held_out is not None:
            agreement, report_warnings = verify(engine, form.original, small, checked, metric, progress)
        if held_out is None:
            agreement = agreement.unproved()
        if held_out is None and data is not None:
            report_warnings.append("checked on the samples that it was solved on: keep some back or give --eval")
        latency = time_both(engine, form.original, small, at_latency_batch(checked, options), progress)
        if latency.ratio > 1 and not (options.qualities or options.plan is not None):
            report_warnings.append(SLOWER)
        report_warnings += unsteady(latency)
        report_warnings += apart(infos)
        gates = [*quality_gates(options, agreement), *gates_of(options, agreement)]
        lowered = quantize(
            engine, form.original, small, problem.calibration.samples, checked, metric, options, progress
        )
    report = Report(
        options=options.described() | {"method": method.name},
        before=model_size(form.original, problem.whole_dependencies),
        after=model_size(small, dependency_graph_of(explicit_biases(small)[0].as_float32(), engine, train, options)),
        agreement=agreement,
        latency=latency,
        gates=gates + [gate for made in lowered for gate in made.gates],
        groups=infos,
        left_alone=left,
        folded=list(form.folded),
        stages=stages_of(engine, form.twin, problem.calibration.samples, progress),
        warnings=warnings + report_warnings + [text for made in lowered for text in made.warnings],
        versions=library_versions(),
        origin=provenance_of(
            options, engine, {"model": (model, form.original)}, {"data": data, "eval": options.eval}, plan
        ),
        frontier=list(decision.frontier),
        chosen=point_of(problem, decision) if decision.frontier else None,
        precisions=[made.precision for made in lowered],
    )
    if options.plan_out is not None:
        write_plan(plan, options.plan_out)
    finish(report, options, "; no model was written")
    if output is not None:
        small.save(output)
    for made, path in zip(lowered, lowered_files, strict=True):
        if path is not None:
            made.graph.save(path)
    return ShrinkResult(small.proto, plan, report, {made.precision.kind: made.graph.proto for made in lowered})


def _made(form: Canonical, patch: Patch) -> Graph:
    """The shrunk model in the original's storage types."""
    small = apply(form.typed, patch)
    drop_zero_biases(small, form.added + additions(small, patch))
    small.prune(form.typed)
    return small


def _stays(name: str, problem: Problem) -> str:
    return "two layers in its place do not pay here" if name in problem.factors else "it keeps its full width here"


def _with_curves(problem: Problem, decision: Decision, infos: list[GroupInfo], *, looks: bool) -> list[GroupInfo]:
    """What the page draws of every group; `looks`: whether there is data to find eigenvalues in."""
    values = spectra(problem) if looks else {}
    return [
        msgspec.structs.replace(
            info,
            curve=[float(e) for e in curve] if (curve := decision.curves.get(info.name)) is not None else None,
            eigenvalues=values.get(info.name),
        )
        for info in infos
    ]
