"""The problem of a run, and which of its groups are to be narrowed: what `shrink` and `plan` have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.calibration.output_weight import OutputWeight
from pcns_onnx.calibration.shapes import dependency_graph_of
from pcns_onnx.cost.latency_model import measure_layers
from pcns_onnx.cost.model import Costs, model_size
from pcns_onnx.cost.resources import RESOURCES
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.dependency.options import Scope
from pcns_onnx.dependency.recurrence import WrittenOutCell, written_out_cells
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Array, Graph
from pcns_onnx.planning.decision import Decision
from pcns_onnx.planning.low_rank import NONE, candidates, paying
from pcns_onnx.planning.plan import Plan, SkippedLayer, by_cause
from pcns_onnx.planning.problem import Problem, Undivided
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.rewrite.low_rank import ENDING
from pcns_onnx.rewrite.patch import apply
from pcns_onnx.runtime.samples import at_latency_batch

Refusal = Callable[[Graph, DependencyGraph, Group], str | None]
"""Why a method must leave a group alone, None if it need not."""


def problem_for(
    form: Canonical,
    calibration: Calibration,
    scope: Scope,
    *,
    batch_latency: int | None = None,
    plan: Plan | None = None,
    times: bool = False,
    weights: tuple[OutputWeight, ...] = (),
) -> Problem:
    """The float32 form with its dependency graph and costs; latency too with `times`. `weights`: what counts more.

    With `low_rank`, or in a `plan` that was made with it, some layers are put as two.
    """
    graph, engine, data = form.twin, calibration.engine, calibration.samples.data
    dependencies = whole = dependency_graph_of(graph, engine, data, scope)
    factors, undivided = candidates(whole, scope, plan), None
    if factors:
        undivided = Undivided(graph, whole, factors)
        graph = apply(graph, tuple(factors.values()))
        dependencies = dependency_graph_of(graph, engine, data, scope)
    batch, latency_model = at_latency_batch(calibration.samples, batch_latency).batch, None
    if times or scope.low_rank:
        feeds = _real_feeds(graph, calibration, batch)
        latency_model = measure_layers(engine, graph, dependencies, batch, feeds=feeds, progress=calibration.progress)
    totals, original = dict[str, float](), dict[str, float]()
    for name, row in RESOURCES.items():
        if row.counter is not None and row.counter.totals is not None:
            totals[name], original[name] = row.counter.totals(form, graph)
    if form.unrotated is not None:
        original |= _costs_of_unrotated(
            form, form.unrotated, calibration, scope, None if latency_model is None else batch
        )
    costs = Costs(dependencies, totals, original, latency_model, factors)
    return Problem(form, graph, dependencies, calibration, (), costs, batch, undivided=undivided, weights=weights)


def _costs_of_unrotated(
    form: Canonical, graph: Graph, calibration: Calibration, scope: Scope, batch: int | None
) -> dict[str, float]:
    """What budgets are fractions of where residual streams are narrower already: multiply-adds, seconds at `batch`."""
    dependencies = dependency_graph_of(graph, calibration.engine, calibration.samples.data, scope)
    costs = {"macs": float(model_size(form.original, dependencies).macs)}
    if batch is None:
        return costs
    feeds, engine = _real_feeds(graph, calibration, batch), calibration.engine
    times = measure_layers(engine, graph, dependencies, batch, feeds=feeds, progress=calibration.progress)
    return costs | {"latency": float(Costs(dependencies, {}, {}, times).total[-1])}


def _real_feeds(graph: Graph, calibration: Calibration, batch: int) -> Mapping[str, Array] | None:
    """Samples to time the whole model on where noise will not do: a sampling rate chooses what is run."""
    if all(axis == 0 for axis in graph.layout.axes.values()):
        return None
    return next(iter(calibration.samples.formed("given"))).repeated(batch)


def selected(problem: Problem, scope: Scope, refuses: Refusal) -> tuple[Problem, list[SkippedLayer]]:
    """The problem with the groups that are to be narrowed, and why the others are not: once for each cause."""
    groups, skipped = _select(problem.graph, problem.dependencies, scope, refuses)
    groups, ranks, unpaid = paying(problem, groups)
    undivided = problem.undivided if problem.undivided is None else replace(problem.undivided, ranks=ranks)
    unpaid += [NONE] if scope.low_rank and undivided is None else []
    return replace(problem, groups=tuple(groups), undivided=undivided), by_cause(skipped + unpaid)


def _select(
    graph: Graph, dependencies: DependencyGraph, scope: Scope, refuses: Refusal
) -> tuple[list[Group], list[SkippedLayer]]:
    """Groups to narrow, and every other layer with its reason."""
    for pattern in (*scope.include, *scope.exclude):
        if not any(fnmatchcase(group.name, pattern) for group in dependencies.groups):
            raise InputError(f"'{pattern}' matches no layer: `pcns-onnx inspect` lists their names")
    chosen: list[Group] = []
    cells = {
        name: cell
        for cell in written_out_cells(graph, dependencies.layers, dependencies.groups)
        for name in cell.layers
    }
    named: dict[WrittenOutCell, str] = {}
    skipped = [SkippedLayer(node.name, node.reason) for node in dependencies.unsolved if node.scales is None]
    for group in dependencies.groups:
        reason = group.frozen
        if reason is None and group.coupled and not scope.coupled:
            reason = "several blocks share its channels, and --no-coupled leaves those alone"
        if reason is None and not scope.wants(group.name.removesuffix(ENDING)):
            reason = "it was left out by --include or --exclude"
        if reason is None:
            reason = refuses(graph, dependencies, group)
        if reason is None:
            chosen.append(group)
        else:
            cell = next((cells[name] for name in group.writers if name in cells), None)
            if cell is not None:  # one cause for all of its layers: the first one's
                reason = named.setdefault(cell, f"{cell}: {reason}")
            skipped += [SkippedLayer(name, reason, [] if cell is None else [name]) for name in group.writers]
    return chosen, skipped


def kept_whole(problem: Problem, decision: Decision) -> list[SkippedLayer]:
    """Groups that could be narrowed and are not, with the reason."""
    ranks = "two layers of lower rank in its place would cost as much"
    own = "at this budget or width all its channels stay: a smaller one may narrow it"
    return by_cause(
        [
            SkippedLayer(name, ranks if name in problem.factors else own)
            for name, width in decision.widths.items()
            if width == decision.full[name]
        ]
    )
