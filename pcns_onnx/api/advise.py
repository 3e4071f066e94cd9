"""`advise`: what to do with a model, before anything is done: candidates, really made and measured, and one of them.

Nothing is written. What a full run would lose is predicted (`report.advice.prediction`), what it would take measured
on models of the right shapes (`report.advice.candidates`); the rule is in `report.advice.recommendation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any, Unpack

from pcns_onnx.api.check import Check, check_on
from pcns_onnx.api.explore.command_line import command_line
from pcns_onnx.api.inputs import Run, run
from pcns_onnx.api.options import FIELDS, Choices, Options, flag_of, is_taken
from pcns_onnx.api.shrinking.preparation import prepared
from pcns_onnx.cost.latency_model import seconds_within
from pcns_onnx.cost.model import model_size
from pcns_onnx.data.dataset import split
from pcns_onnx.data.sources import DataSource
from pcns_onnx.distillation.schedule import suitable
from pcns_onnx.errors import InputError
from pcns_onnx.evaluation.metric import Metric, load_metric
from pcns_onnx.evaluation.provenance import library_versions
from pcns_onnx.files import check_targets
from pcns_onnx.graph import ModelSource
from pcns_onnx.graph.queries import has_attention
from pcns_onnx.methods.registry import method_named
from pcns_onnx.methods.strategy import Request
from pcns_onnx.methods.subset.strategy import SubsetStrategy
from pcns_onnx.planning.frontier import points
from pcns_onnx.planning.plan import SkippedLayer
from pcns_onnx.planning.trial import Trial, trial_of
from pcns_onnx.progress import Progress
from pcns_onnx.report.advice.candidates import TrialRunner
from pcns_onnx.report.advice.obstacles import does_not_pay, held_back, out_of_reach, starved_layers, unfit
from pcns_onnx.report.advice.recommendation import explained, recommended
from pcns_onnx.report.advice.record import Advice
from pcns_onnx.report.advice.table import SHARES, CandidateTable
from pcns_onnx.report.html.page import check_page
from pcns_onnx.report.warnings import put_right
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.runtime.samples import Samples, at_latency_batch
from pcns_onnx.runtime.targets.registry import DEVICES, ONNXRUNTIME
from pcns_onnx.runtime.targets.timer import target_of, timed_in, timed_threads

JUDGED = 512
"""Samples of `eval` that candidates are judged on."""


def advise(
    model: ModelSource,
    data: DataSource,
    *,
    progress: Progress | None = None,
    **choices: Unpack[Choices],
) -> Advice:
    """What to do with `model`: a table of candidates and the one that is recommended; no model is written.

    Candidates are made on a few samples of `data` and judged on others, of `eval` where that is given, and timed on
    `target` (a device of onnxruntime, 'auto': CUDA where there is a GPU; 'openvino', 'onnxruntime-web') at batch 1, or
    at `batch_latency`. `max_drop` and `max_error` say what may be lost. Raises `InputError`; a model of which nothing
    can be shrunk is no error: the record says why.
    """
    unread = next((name for name in choices if not _is_taken(name)), None)
    if unread is not None:
        raise InputError(f"{flag_of(FIELDS[unread][1])} is no choice of advise: it tries what is in its table")
    chosen = _on_device(choices)
    options = Options.of(**chosen)
    check_targets((model, data, options.data.eval), options.outputs.html)
    check_page(options.outputs.html)
    metric = load_metric(options.gates.metric)
    with run(options, progress, times=True) as running:
        form = Canonical.of(running.load(model))
        check_targets(tuple(form.original.files), options.outputs.html)
        check = check_on(running, form, data, metric, None, solves=True)
        runner, skipped = _runner(running, check)
        table = _filled(running, runner, partial(command_line, model, data, chosen))
        advice = _advice(running, runner, table, skipped)
    if options.outputs.html is not None:
        from pcns_onnx.report.advice.page import write_advice

        write_advice(advice, options.outputs.html)
    return advice


def _is_taken(name: str) -> bool:
    """Whether a choice says something here; unknown names are refused with all others."""
    return name in ("device", "command") or name not in FIELDS or is_taken(FIELDS[name][1], "advise")


def _on_device(choices: Mapping[str, Any]) -> dict[str, Any]:
    """The choices with what is timed by itself, and a target that is a device as one, which all rows' commands take."""
    chosen = {"batch_latency": 1} | dict(choices)
    target = chosen.get("target")
    if target in DEVICES and chosen.get("device", "auto") in ("auto", target):
        chosen["device"] = chosen.pop("target")
    return chosen


def _runner(running: Run, check: Check) -> tuple[TrialRunner, list[SkippedLayer]]:
    """What candidates are made of, and what cannot be narrowed."""
    options = running.options
    request = Request(method_named("auto"), options.goal, options.scope, options.solving, options.data.seed)
    strategy = SubsetStrategy(request)
    problem, skipped = prepared(running, check.form, check.train, request, strategy)
    importance = strategy.importance(problem, probes=True) if problem.groups else None
    trial = trial_of(problem, options.data.seed)
    timed = at_latency_batch(check.samples, options.runtime.batch_latency)
    judged, metric = _judged(running, check, trial)
    return TrialRunner(problem, trial, importance, request, judged, timed, metric), skipped


def _judged(running: Run, check: Check, trial: Trial | None) -> tuple[Samples, Metric | None]:
    """What candidates are judged on, and by: samples of `eval`, not too many of them, else what a trial leaves."""
    if trial is not None and running.options.data.eval is None:
        return check.judging_of(trial)
    data, _ = split(check.samples.data, holdout=0.0, seed=running.options.data.seed, samples=JUDGED)
    return running.samples(data, check.form.original), check.metric


def _filled(running: Run, runner: TrialRunner, command: partial[str]) -> CandidateTable:
    """The table with all rows."""
    size = model_size(runner.original, runner.problem.whole_dependencies)
    learnt = runner.problem.calibration.samples.count

    attends = has_attention(runner.original)

    def shown(share: float) -> int:
        return suitable(round(share * size.macs), size.macs, learnt, unknown=bool(size.unknown), attends=attends)

    looked = sum(seconds for name, seconds in running.progress.seconds.items() if name != "latency")
    table = CandidateTable(
        runner, command, running.options.gates, looked, find_spec("torch") is not None, shown, running.progress
    )
    if not runner.problem.groups:
        table.why_none = "no layer can get narrower"
    elif runner.trial is None:
        table.why_none = "there are too few samples to try anything on"
    table.fill()
    return table


def _advice(running: Run, runner: TrialRunner, table: CandidateTable, skipped: list[SkippedLayer]) -> Advice:
    problem, limit = runner.problem, table.limit
    batch = next(iter(runner.timed))
    feeds = batch.repeated(runner.timed.batch)
    total, within = seconds_within(running.engine, problem.form.twin, problem.whole_dependencies, feeds)
    useless = unfit(problem.calibration.samples.summary)
    starved = None if table.solution is None else starved_layers(problem, table.solution, runner.more)
    fixed = out_of_reach(problem.whole_dependencies, total, within)
    int8, both = table.rows[1], table.rows[2 + len(SHARES)]
    against = list(does_not_pay(int8, table.shrunk, both, limit or 0.0, fixed))
    if not problem.groups:
        against.insert(0, "no layer can get narrower")
    rows = table.rows if useless is None else table.rows[:1]
    best = recommended(rows, limit or 0.0)
    frontier = [] if runner.importance is None else list(points(problem, runner.importance, runner.request.goal))
    return Advice(
        rows=table.rows,
        recommended=best.name,
        why=explained(best, rows, limit) if useless is None else useless,
        allowed=limit,
        against=[*against, *([] if starved is None or useless is not None else [starved])],
        held_back=held_back(problem.whole_dependencies, skipped, total, within),
        before=model_size(runner.original, problem.whole_dependencies),
        samples=problem.calibration.samples.count,
        judged=runner.judged.count,
        milliseconds=runner.milliseconds,
        batch=runner.timed.batch,
        threads=timed_threads(running.engine),
        provider=timed_in(running.engine),
        target=running.engine.device if target_of(running.engine) is ONNXRUNTIME else running.engine.target,
        frontier=frontier,
        warnings=[*put_right(runner.original), *running.notes],
        versions=library_versions(),
    )
