"""`explore`: the whole frontier, with what every point of it does to every layer, and the command that makes it.

One pass of the machinery of `plan`. Widths are chosen as `shrink --budget macs=F` chooses them, which knows no layer
times; the times of the layers say what each choice would take. Where several blocks share channels, a trial says how
much these count, and the commands state what it said. So the command of a point makes that point's plan.
"""

from __future__ import annotations

import os
import shlex
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from pcns_onnx.api.explore.command_line import command_words, output_beside
from pcns_onnx.api.inputs import Run, datasets, run
from pcns_onnx.api.options import FIELDS, Choices, Options, flag_of, is_taken
from pcns_onnx.api.shrinking.preparation import prepared, require_groups
from pcns_onnx.cost.model import model_size
from pcns_onnx.data.fingerprints import SampleSummary
from pcns_onnx.data.sources import DataSource
from pcns_onnx.dependency.groups import Group
from pcns_onnx.errors import InputError
from pcns_onnx.evaluation.provenance import library_versions
from pcns_onnx.files import check_targets
from pcns_onnx.graph import ModelSource
from pcns_onnx.methods.registry import method_named, methods_with
from pcns_onnx.methods.strategy import Request
from pcns_onnx.methods.subset.strategy import SubsetStrategy
from pcns_onnx.methods.subset.stream_weight import statement_of
from pcns_onnx.planning.budget import Budget, Goal
from pcns_onnx.planning.decision import Decision
from pcns_onnx.planning.frontier import STEPS, decisions, point_of
from pcns_onnx.planning.importance import Importance
from pcns_onnx.planning.plan import SkippedLayer
from pcns_onnx.planning.problem import Problem
from pcns_onnx.progress import Progress
from pcns_onnx.report.explore.drawing import drawing_of
from pcns_onnx.report.explore.page import check_explorable, write_exploration
from pcns_onnx.report.explore.record import Exploration, ExploredGroup, ExploredPoint
from pcns_onnx.report.warnings import degenerate, put_right
from pcns_onnx.runtime.targets.timer import timed_in, timed_threads


@dataclass(frozen=True)
class _Source:
    """What is explored, as it was said: what the commands of the points are made of."""

    model: ModelSource
    data: DataSource | None
    choices: Mapping[str, Any]

    def command(self, budget: Budget, streams: str | None) -> str:
        """The line that makes a point, up to where it is written. `streams`: what was found by trial, if anything."""
        data = "DATA" if self.data is None else self.data
        choices = dict(self.choices)
        if streams is not None and choices.get("stats") is None:
            choices.setdefault("streams", streams)
        return shlex.join(command_words(self.model, data, choices, "shrink", "--budget", str(budget)))

    @property
    def name(self) -> str:
        """What the model is called."""
        return Path(self.model).name if isinstance(self.model, str | os.PathLike) else "the model"


def explore(
    model: ModelSource,
    data: DataSource | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
    **choices: Unpack[Choices],
) -> Exploration:
    """The frontier of `model` with all that a page shows of it; nothing is solved. With `output` the page is written.

    With `stats` of an earlier run no data is needed. Raises `InputError`, or `NothingToShrinkError` with the reasons.
    """
    unread = next((name for name in choices if name in FIELDS and not is_taken(FIELDS[name][1], "explore")), None)
    if unread is not None:
        raise InputError(f"{flag_of(FIELDS[unread][1])} is no choice of explore: it shows the whole frontier")
    options = Options.of(**choices)
    strategy = _accepted(options, has_data=data is not None)
    _check_is_model(model)
    check_targets((model, data, options.data.eval), output, stats=options.goal.stats)
    check_explorable(output)
    with run(options, progress, times=True) as running:
        exploration = _explored(running, _Source(model, data, choices), strategy)
    if output is not None:
        write_exploration(exploration, output)
    return exploration


def _explored(running: Run, source: _Source, strategy: SubsetStrategy) -> Exploration:
    problem, skipped = _problem(running, source, strategy)
    untimed = replace(problem, costs=problem.costs.untimed)
    importance = strategy.importance(untimed, probes=True)
    seconds = float(problem.costs.total[problem.costs.resources.index("latency")])
    summary = SampleSummary(importance.samples)
    return Exploration(
        model=source.name,
        groups=[_group(problem, group) for group in problem.groups],
        points=list(_points(untimed, problem, importance, running.options.goal, source)),
        left_alone=skipped,
        drawing=drawing_of(problem, skipped),
        before=model_size(problem.form.original, problem.whole_dependencies),
        milliseconds=1e3 * seconds,
        batch=problem.latency_batch,
        threads=timed_threads(running.engine),
        provider=timed_in(running.engine),
        samples=summary.count,
        warnings=[*put_right(problem.form.original), *running.notes, *degenerate(summary, "the frontier")],
        versions=library_versions(),
    )


def _accepted(options: Options, *, has_data: bool) -> SubsetStrategy:
    """The strategy of the method; raises `InputError` where there is no frontier to be drawn."""
    goal, method = options.goal, method_named(options.goal.method)
    if not has_data and (goal.stats is None or not os.path.exists(goal.stats)):
        raise InputError("explore needs to see what neurons do: give --data, or --stats of an earlier run")
    if not method.plans:
        raise InputError(f"explore is for {methods_with('plans')}: other methods have no frontier")
    return SubsetStrategy(Request(method, goal, options.scope, options.solving, options.data.seed, has_data))


def _check_is_model(model: ModelSource) -> None:
    """Raise `InputError` where statistics are given in the model's place."""
    if isinstance(model, str | os.PathLike) and os.path.isfile(model) and zipfile.is_zipfile(model):
        raise InputError(f"'{model}' holds statistics or samples, no model: write MODEL --stats {model}")


def _problem(running: Run, source: _Source, strategy: SubsetStrategy) -> tuple[Problem, list[SkippedLayer]]:
    """What can be narrowed, with the layers timed, and what cannot."""
    fed = datasets(running, running.form(source.model), source.data, solves=True)
    problem, skipped = prepared(running, fed.form, fed.train, strategy.request, strategy, times=True)
    require_groups(problem, skipped)
    return problem, skipped


def _group(problem: Problem, group: Group) -> ExploredGroup:
    layers = [problem.dependencies.layer(name) for name in group.writers]
    total = max(sum(layer.macs for layer in problem.dependencies.layers), 1)
    return ExploredGroup(
        name=group.name,
        kind=layers[0].kind,
        writers=list(group.writers),
        readers=list(group.readers),
        width=group.width,
        unit=group.unit,
        coupled=group.coupled,
        macs=sum(layer.macs for layer in layers) / total,
        parameters=sum(layer.parameters for layer in layers),
    )


def _points(
    untimed: Problem, problem: Problem, importance: Importance, goal: Goal, source: _Source
) -> Iterator[ExploredPoint]:
    """The points, as far as each differs from the one before; widths are chosen without the layers' times."""
    before: Mapping[str, int] = {}
    every = decisions(untimed, importance, goal)
    for budget, decision in problem.calibration.progress.track(every, "frontier", len(STEPS)):
        if decision.widths != before:
            yield _point(problem, importance, decision, budget, source)
        before = decision.widths


def _point(
    problem: Problem, importance: Importance, decision: Decision, budget: Budget, source: _Source
) -> ExploredPoint:
    names = [group.name for group in problem.groups]
    place = point_of(problem, decision)
    added = [float(importance.curves[name][decision.widths[name]]) for name in names]
    return ExploredPoint(
        budget=budget.limit,
        costs=place.costs,
        error=place.error,
        widths=[int(decision.widths[name]) for name in names],
        losses=[float(decision.errors[name]) for name in names],
        shares=[value / max(sum(added), 1e-300) for value in added],
        command=source.command(budget, statement_of(problem, importance)),
        output=os.fspath(output_beside(source.model, f"{budget.limit:g}")),
    )
