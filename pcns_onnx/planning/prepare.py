"""Which groups, and which widths for them: what `shrink` and `plan` have in common."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase

from pcns_onnx.api.options import Options
from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.calibration.shapes import dependency_graph_of
from pcns_onnx.cost.latency_model import measure_layers
from pcns_onnx.cost.model import Costs
from pcns_onnx.data.dataset import Dataset
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.methods.data_free.strategy import refusal as weights_refusal
from pcns_onnx.methods.pcns.eligibility import refusal as basis_refusal
from pcns_onnx.planning.low_rank import NONE, candidates, paying
from pcns_onnx.planning.plan import Plan, SkippedLayer
from pcns_onnx.planning.problem import Problem
from pcns_onnx.progress import Progress
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.rewrite.low_rank import ENDING
from pcns_onnx.rewrite.patch import apply
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.executor import Executor, LocalExecutor
from pcns_onnx.runtime.samples import at_latency_batch, samples_of


def problem_for(
    form: Canonical,
    engine: Engine,
    train: Dataset,
    options: Options,
    progress: Progress,
    *,
    plan: Plan | None = None,
    times: bool = False,
    executor: Executor | None = None,
) -> Problem:
    """The float32 form with its census and costs; latency too with `times`, or where a budget needs it.

    With `low_rank`, or in a `plan` that was made with it, some layers are put as two.
    """
    graph = form.twin
    dependencies = whole = dependency_graph_of(graph, engine, train, options)
    factors = candidates(whole, options, plan)
    if factors:
        graph = apply(graph, tuple(factors.values()))
        dependencies = dependency_graph_of(graph, engine, train, options)
    samples = samples_of(train, options, graph)
    calibration = Calibration(engine, samples, options.seed, progress, options.shares, executor or LocalExecutor())
    batch, latency_model = at_latency_batch(calibration.samples, options).batch, None
    if times or options.times:
        latency_model = measure_layers(engine, graph, dependencies, batch, progress=progress)
    costs = Costs(dependencies, graph.parameters, form.original.parameters, latency_model, factors)
    return Problem(graph, dependencies, calibration, (), costs, batch, form.twin, whole, factors)


def selected(problem: Problem, options: Options, family: str) -> tuple[Problem, list[SkippedLayer]]:
    """The work with the groups that are to be narrowed, and every other layer with its reason."""
    groups, left = _select(problem.graph, problem.dependencies, options, family)
    groups, ranks, none = paying(problem, groups)
    none += [NONE] if options.low_rank and not problem.factors else []
    return replace(problem, groups=tuple(groups), ranks=ranks), left + none


def _select(
    graph: Graph, dependencies: DependencyGraph, options: Options, family: str
) -> tuple[list[Group], list[SkippedLayer]]:
    """Groups to narrow, and every other layer with its reason."""
    for pattern in (*options.include, *options.exclude):
        if not any(fnmatchcase(group.name, pattern) for group in dependencies.groups):
            raise InputError(f"'{pattern}' matches no layer: `pcns-onnx inspect` lists their names")
    chosen: list[Group] = []
    left = [SkippedLayer(node.name, node.reason) for node in dependencies.unsolved if node.scales is None]
    for group in dependencies.groups:
        reason = group.frozen
        if reason is None and group.coupled and not options.coupled:
            reason = "several blocks share its channels, and --no-coupled leaves those alone"
        if reason is None and not options.wants(group.name.removesuffix(ENDING)):
            reason = "it was left out by --include or --exclude"
        if reason is None and family == "weights":
            reason = weights_refusal(group)
        if reason is None and family == "basis":
            reason = basis_refusal(graph, dependencies, group, refit=options.refit is not False)
        if reason is None:
            chosen.append(group)
        else:
            left += [SkippedLayer(name, reason) for name in group.writers]
    return chosen, left
