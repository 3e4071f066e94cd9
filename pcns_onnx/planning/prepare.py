"""Which groups, and which widths for them: what `shrink` and `plan` have in common."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase

from pcns_onnx.api.options import Options
from pcns_onnx.calibration.calibration import Setup
from pcns_onnx.calibration.shapes import census_of
from pcns_onnx.cost.latency_model import measure_layers
from pcns_onnx.cost.model import Costs
from pcns_onnx.data.dataset import Dataset
from pcns_onnx.dependency.dependency_graph import Census
from pcns_onnx.dependency.groups import Group
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.methods.data_free.strategy import refusal as weights_refusal
from pcns_onnx.methods.pcns.eligibility import refusal as basis_refusal
from pcns_onnx.planning.low_rank import NONE, candidates, paying
from pcns_onnx.planning.plan import Left, Plan
from pcns_onnx.planning.problem import Work
from pcns_onnx.progress import Progress
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.rewrite.low_rank import ENDING
from pcns_onnx.rewrite.patch import apply
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.executor import Alone, Crew
from pcns_onnx.runtime.samples import at_latency_batch, samples_of


def work_for(
    form: Canonical,
    engine: Engine,
    train: Dataset,
    options: Options,
    progress: Progress,
    *,
    plan: Plan | None = None,
    times: bool = False,
    crew: Crew | None = None,
) -> Work:
    """The float32 form with its census and costs; latency too with `times`, or where a budget needs it.

    With `low_rank`, or in a `plan` that was made with it, some layers are put as two.
    """
    graph = form.twin
    census = whole = census_of(graph, engine, train, options)
    factors = candidates(whole, options, plan)
    if factors:
        graph = apply(graph, tuple(factors.values()))
        census = census_of(graph, engine, train, options)
    samples = samples_of(train, options, graph)
    setup = Setup(engine, samples, options.seed, progress, options.shares, crew or Alone())
    batch, timings = at_latency_batch(setup.samples, options).batch, None
    if times or options.times:
        timings = measure_layers(engine, graph, census, batch, progress=progress)
    costs = Costs(census, graph.parameters, form.original.parameters, timings, factors)
    return Work(graph, census, setup, (), costs, batch, form.twin, whole, factors)


def selected(work: Work, options: Options, family: str) -> tuple[Work, list[Left]]:
    """The work with the groups that are to be narrowed, and every other layer with its reason."""
    groups, left = _select(work.graph, work.census, options, family)
    groups, ranks, none = paying(work, groups)
    none += [NONE] if options.low_rank and not work.factors else []
    return replace(work, groups=tuple(groups), ranks=ranks), left + none


def _select(graph: Graph, census: Census, options: Options, family: str) -> tuple[list[Group], list[Left]]:
    """Groups to narrow, and every other layer with its reason."""
    for pattern in (*options.include, *options.exclude):
        if not any(fnmatchcase(group.name, pattern) for group in census.groups):
            raise InputError(f"'{pattern}' matches no layer: `pcns-onnx inspect` lists their names")
    chosen: list[Group] = []
    left = [Left(node.name, node.reason) for node in census.unsolved if node.scales is None]
    for group in census.groups:
        reason = group.frozen
        if reason is None and group.coupled and not options.coupled:
            reason = "several blocks share its channels, and --no-coupled leaves those alone"
        if reason is None and not options.wants(group.name.removesuffix(ENDING)):
            reason = "it was left out by --include or --exclude"
        if reason is None and family == "weights":
            reason = weights_refusal(group)
        if reason is None and family == "basis":
            reason = basis_refusal(graph, census, group, refit=options.refit is not False)
        if reason is None:
            chosen.append(group)
        else:
            left += [Left(name, reason) for name in group.writers]
    return chosen, left
