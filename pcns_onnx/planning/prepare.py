"""Which groups, and which widths for them: what `shrink` and `plan` have in common."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from pcns_onnx.api.inputs import Canonical, at_latency_batch, census_of, samples_of
from pcns_onnx.api.options import Options
from pcns_onnx.calibration.group_inputs import Setup
from pcns_onnx.cost.latency_model import measure_layers
from pcns_onnx.cost.model import Costs
from pcns_onnx.data import Dataset
from pcns_onnx.dependency.groups import Census, Group
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.methods.data_free.strategy import refusal as weights_refusal
from pcns_onnx.methods.pcns.rebuild import refusal as basis_refusal
from pcns_onnx.methods.registry import Method
from pcns_onnx.methods.subset.search import Judge, hold_latency, search
from pcns_onnx.methods.subset.solve import decide_bases
from pcns_onnx.methods.subset.stream_weight import spared
from pcns_onnx.planning.decision import Decision
from pcns_onnx.planning.frontier import points
from pcns_onnx.planning.importance import Findings, Work, look
from pcns_onnx.planning.low_rank import NONE, candidates, paying
from pcns_onnx.planning.plan import Plan, fingerprint
from pcns_onnx.planning.stats_file import load as load_stats
from pcns_onnx.planning.stats_file import save as save_stats
from pcns_onnx.progress import Progress
from pcns_onnx.report.schema import Left
from pcns_onnx.rewrite.channels import apply
from pcns_onnx.rewrite.low_rank import ENDING
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.executor import Alone, Crew


def decided(
    form: Canonical, work: Work, method: Method, options: Options, plan: Plan | None, judge: Judge
) -> Decision:
    """A width for every group: the plan's, or the best that all budgets allow."""
    if method.family == "basis":
        return decide_bases(work, method, options, plan, options.costs)
    found = findings_of(form, work, method, options, probes=bool(options.budgets) and plan is None)
    if options.qualities:
        decision = search(work, method, found, options, judge, options.costs)
    else:
        decision = hold_latency(work, method, found, options, plan, options.costs)
    if options.html is None or plan is not None or not options.budgets:
        return decision  # only probed groups can be added up
    return replace(decision, frontier=tuple(points(work, method, found, options)))


def findings_of(form: Canonical, work: Work, method: Method, options: Options, *, probes: bool) -> Findings:
    """What the data says of the groups; from --stats where that file is there, else written to it."""
    if options.stats is not None and os.path.exists(options.stats):
        return load_stats(options.stats, work, fingerprint(form.original), method.name)
    probes = probes or options.stats is not None
    found = look(work, method, options, probes=probes)
    if probes:
        found = spared(work, method, found, options)
    if options.stats is not None:
        save_stats(options.stats, found, fingerprint(form.original), method.name, probed=True)
    return found


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


def pairs(left: Sequence[Left]) -> tuple[tuple[str, str], ...]:
    """Names and reasons, as errors carry them."""
    return tuple((item.name, item.reason) for item in left)
