"""The story, top to bottom: read, look, plan, solve, rewrite, check, report.

`shrink`, `inspect` and `compare` are the public API; the CLI is a thin skin on them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Unpack

import msgspec
from threadpoolctl import threadpool_limits

from pcns_onnx import basis
from pcns_onnx.capture import Samples, measure
from pcns_onnx.checking import finish, gates_of, library_versions, provenance, size_of, stages_of, time_both, verify
from pcns_onnx.data import Dataset, DataSource, open_data, split
from pcns_onnx.errors import InputError, NothingToShrinkError
from pcns_onnx.fold import drop_zero_biases, explicit_biases, fold_batch_norms
from pcns_onnx.graph import Graph, ModelSource, write_atomic
from pcns_onnx.groups import Census, Group, survey
from pcns_onnx.inspecting import group_rows, layer_rows, shrinkable_share
from pcns_onnx.methods import method_named
from pcns_onnx.ops import Heads
from pcns_onnx.options import HEADS, ORDERS, Choices, Options, check_targets
from pcns_onnx.outlook import look
from pcns_onnx.passes import Setup
from pcns_onnx.plan import SCHEMA as PLAN_SCHEMA
from pcns_onnx.plan import Costs, Plan, fingerprint, load_plan
from pcns_onnx.progress import Progress
from pcns_onnx.report import Inspection, Left, Outlook, Report
from pcns_onnx.rewrite import apply
from pcns_onnx.runtime import Engine, choose_engine
from pcns_onnx.shrinking import Work, decide, solve
from pcns_onnx.sizes import settled
from pcns_onnx.verify import load_metric

if TYPE_CHECKING:
    from onnx import ModelProto

FEW = 5.0
"""Samples per neuron below which a warning is given (the PCNS drafts ask for 5 to 10)."""


@dataclass(frozen=True)
class ShrinkResult:
    """The shrunk model (whole, weights of large ones included), the plan that replays it, and the report."""

    model: ModelProto
    plan: Plan
    report: Report


@dataclass(frozen=True)
class _Canonical:
    """The original, and the form that is solved: norms folded, every layer with a bias.

    `typed` has the original's storage types, `twin` is float32.
    """

    original: Graph
    typed: Graph
    twin: Graph
    folded: tuple[str, ...]
    added: tuple[str, ...]

    @classmethod
    def of(cls, original: Graph) -> _Canonical:
        norms_folded, folded = fold_batch_norms(settled(original))
        typed, added = explicit_biases(norms_folded)
        return cls(original, typed, typed.as_float32(), folded, added)


def shrink(
    model: ModelSource,
    data: DataSource | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
    **choices: Unpack[Choices],
) -> ShrinkResult:
    """Shrink `model` on `data`; with `output` the new model is also written there, atomically.

    `choices` are the fields of `Options`. Raises `InputError` (bad input, nothing written),
    `NothingToShrinkError` (with the reasons), or `GateError` (a limit was exceeded: the report
    is written, the model is not).
    """
    options, progress = Options(**choices), progress or Progress()
    options.goal()
    if data is None:
        raise InputError(f"method '{options.method}' looks at what neurons do: give samples with --data")
    check_targets((model, data, options.eval, options.plan), output, options.plan_out, options.report)
    metric = load_metric(options.metric)
    engine = choose_engine(options.device, options.threads)
    with threadpool_limits(options.threads or None), progress.stage("total"):
        form = _Canonical.of(Graph.load(model))
        check_targets(tuple(form.original.files), output, options.plan_out, options.report)
        plan = None if options.plan is None else load_plan(options.plan, form.original)
        method = method_named(options.method if plan is None else plan.method)
        if method.family != "basis" and (options.order != ORDERS[0] or not options.refit):
            raise InputError(f"--order and --no-refit are choices of method pcns: '{method.name}' has neither")
        train, held_out = _datasets(form, data, options)
        if options.max_drop is not None and metric is None and not (held_out or train).has_labels:
            raise InputError("--max-drop needs labels in the data it is checked on, or --metric")
        work = _work(form, engine, train, options, progress)
        groups, left = _select(form.twin, work.census, options, method.family)
        if not groups:
            why = "every layer has a reason to stay" if left else "the model has no layer with stored weights"
            raise NothingToShrinkError(f"nothing can be shrunk: {why}", _pairs(left))
        work = replace(work, groups=tuple(groups))
        warnings = _few_samples(work)
        decision = decide(work, method, options, plan)
        left += [Left(n, "it keeps its full width here") for n, w in decision.widths.items() if w == decision.full[n]]
        if not decision.narrowed:
            raise NothingToShrinkError("nothing was shrunk: every layer needs its full width here", _pairs(left))
        patch, infos = solve(work, decision, options)
        small = apply(form.typed, patch)
        drop_zero_biases(small, form.added)
        small.prune()
        plan = Plan(PLAN_SCHEMA, fingerprint(form.original), method.name, decision.planned())
        small.set_metadata("pcns_onnx", provenance(plan, options))
        small.check(full=form.original.passes_full_check())
        checked = _samples(held_out or train, options, form.original)
        agreement, report_warnings = verify(engine, form.original, small, checked, metric, progress)
        if held_out is None:
            agreement = agreement.unproved()
            report_warnings.append("checked on the samples that it was solved on: keep some back or give --eval")
    report = Report(
        options=options.described() | {"method": method.name},
        before=size_of(form.original, work.census),
        after=size_of(small, _census(explicit_biases(small)[0].as_float32(), engine, train, options)),
        agreement=agreement,
        latency=time_both(engine, form.original, small, checked, progress),
        gates=gates_of(options, agreement),
        groups=infos,
        left_alone=left,
        folded=list(form.folded),
        stages=stages_of(engine, form.twin, work.setup.samples, progress),
        warnings=warnings + report_warnings,
        versions=library_versions(),
    )
    if options.plan_out is not None:
        write_atomic(options.plan_out, msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n")
    finish(report, options, "; no model was written")
    if output is not None:
        small.save(output)
    return ShrinkResult(small.proto, plan, report)


def inspect(
    model: ModelSource,
    data: DataSource | None = None,
    *,
    progress: Progress | None = None,
    **choices: Unpack[Choices],
) -> Inspection:
    """Every linear layer of `model`: its cost, whether it can shrink and, with data, what it uses."""
    options, progress = Options(**choices), progress or Progress()
    form = _Canonical.of(Graph.load(model))
    census = survey(form.twin, _stated_shapes(form.twin, options), heads=_heads(options))
    dimensions, per_neuron, warnings = dict[str, dict[str, int]](), dict[str, float](), list[str]()
    outlooks = list[Outlook]()
    if data is not None:
        engine = choose_engine(options.device, options.threads)
        everything, _ = split(_open(form, data, options), holdout=0.0, seed=options.seed, samples=options.samples)
        work = _work(form, engine, everything, options, progress)
        census = work.census
        with threadpool_limits(options.threads or None):
            dimensions, outlooks = look(work, options)
        per_neuron = {layer.name: _samples_per_neuron(work, layer.name) for layer in census.layers}
        warnings = _few_samples(replace(work, groups=census.groups))
    layers = layer_rows(census, dimensions, per_neuron)
    if any(layer.macs == 0 for layer in census.layers):
        warnings.append("sizes that the model leaves open hide some costs: give --data, or --shape NAME=1x3x224x224")
    macs, share = sum(layer.macs for layer in layers), shrinkable_share(census)
    return Inspection(layers, macs, form.original.parameters, share, warnings, group_rows(census), outlooks)


def compare(
    a: ModelSource,
    b: ModelSource,
    data: DataSource,
    *,
    progress: Progress | None = None,
    **choices: Unpack[Choices],
) -> Report:
    """Agreement, latency and cost of two models with the same inputs and outputs.

    Raises `GateError`, with the report, if a limit in `choices` is exceeded.
    """
    options, progress = Options(**choices), progress or Progress()
    check_targets((a, b, data), options.report)
    metric = load_metric(options.metric)
    engine = choose_engine(options.device, options.threads)
    forms = [_Canonical.of(Graph.load(source)) for source in (a, b)]
    first, second = (form.original for form in forms)
    check_targets((*first.files, *second.files), options.report)
    if [s.name for s in first.inputs] != [s.name for s in second.inputs]:
        raise InputError(f"the models have different inputs: {_names(first)} and {_names(second)}")
    dataset, _ = split(_open(forms[0], data, options), holdout=0.0, seed=options.seed, samples=options.samples)
    if options.max_drop is not None and metric is None and not dataset.has_labels:
        raise InputError("--max-drop needs labels in the data, or --metric")
    samples = _samples(dataset, options, first, second)
    agreement, warnings = verify(engine, first, second, samples, metric, progress)
    sizes = [size_of(form.original, _census(form.twin, engine, dataset, options)) for form in forms]
    report = Report(
        options=options.described(),
        before=sizes[0],
        after=sizes[1],
        agreement=agreement,
        latency=time_both(engine, first, second, samples, progress),
        gates=gates_of(options, agreement),
        groups=[],
        left_alone=[],
        folded=[],
        stages={},
        warnings=warnings,
        versions=library_versions(),
    )
    finish(report, options)
    return report


# -- reading ---------------------------------------------------------------------------------


def _open(form: _Canonical, data: DataSource, options: Options) -> Dataset:
    return open_data(data, form.twin.inputs, normalize=options.normalize)


def _datasets(form: _Canonical, data: DataSource, options: Options) -> tuple[Dataset, Dataset | None]:
    """What the solve sees, and what the check sees: `eval`, or a share held out."""
    holdout = options.holdout if options.eval is None else 0.0
    everything = _open(form, data, options)
    train, held_out = split(everything, holdout=holdout, seed=options.seed, samples=options.samples)
    if options.eval is not None:
        return train, _open(form, options.eval, options)
    if held_out is not None and _is_empty(held_out, _fixed_batch(form.original)):
        return split(everything, holdout=0.0, seed=options.seed, samples=options.samples)
    return train, held_out


def _is_empty(dataset: Dataset, fixed: int | None) -> bool:
    """Whether there is not even one batch; data that cannot be read is refused where it is used."""
    try:
        return next(iter(Samples(dataset, fixed or 1, fixed is not None)), None) is None
    except InputError:
        return True


def _fixed_batch(*graphs: Graph) -> int | None:
    """The batch that the first of these models with a fixed one takes."""
    return next((s.shape[0] for g in graphs for s in g.inputs if s.shape and s.shape[0] is not None), None)


def _samples(dataset: Dataset, options: Options, *graphs: Graph) -> Samples:
    """Batches as the models take them: a model with a fixed batch is fed in that."""
    fixed = _fixed_batch(*graphs)
    samples = Samples(dataset, fixed or options.batch, fixed is not None)
    if samples.count == 0:
        raise InputError(f"the model takes batches of exactly {fixed} samples and the data holds fewer: give more")
    return samples


def _stated_shapes(graph: Graph, options: Options) -> dict[str, tuple[int, ...]]:
    """The shapes of --shape, each of an input and of its rank."""
    ranks = {spec.name: len(spec.shape) for spec in graph.inputs}
    for name, shape in options.shapes().items():
        if name not in ranks:
            raise InputError(f"--shape names '{name}', which is no input: the model has {_names(graph)}")
        if ranks[name] not in (0, len(shape)):
            raise InputError(f"--shape gives '{name}' {len(shape)} sizes, the input has {ranks[name]}")
    return options.shapes()


def _heads(options: Options) -> Heads:
    return next(choice for choice in HEADS if choice == options.heads)


def _census(graph: Graph, engine: Engine, dataset: Dataset, options: Options) -> Census:
    """The survey; shapes that cannot be inferred (behind a custom operator) are measured on some samples."""
    shapes = {name: array.shape for name, array in next(dataset.batches(1)).feeds.items()}
    shapes |= _stated_shapes(graph, options)
    census = survey(graph, shapes, heads=_heads(options))
    made = (name for node in graph.nodes for name in node.outputs if name and not graph.is_constant(name))
    unknown = [name for name in made if None in census.shapes.get(name, (None,))]
    if not unknown:
        return census
    fixed = _fixed_batch(graph)
    measured = measure(engine, graph, Samples(dataset, fixed or 1, fixed is not None), unknown)
    return survey(graph, shapes | measured, heads=_heads(options))


def _work(form: _Canonical, engine: Engine, train: Dataset, options: Options, progress: Progress) -> Work:
    census = _census(form.twin, engine, train, options)
    setup = Setup(engine, _samples(train, options, form.twin), options.seed, progress)
    return Work(form.twin, census, setup, (), Costs(census, form.twin.parameters, form.original.parameters))


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
        if reason is None and not options.wants(group.name):
            reason = "it was left out by --include or --exclude"
        if reason is None and family == "basis":
            reason = basis.refusal(graph, census, group, refit=options.refit)
        if reason is None:
            chosen.append(group)
        else:
            left += [Left(name, reason) for name in group.writers]
    return chosen, left


def _pairs(left: Sequence[Left]) -> tuple[tuple[str, str], ...]:
    return tuple((item.name, item.reason) for item in left)


def _names(graph: Graph) -> str:
    return ", ".join(spec.name for spec in graph.inputs)


# -- warnings --------------------------------------------------------------------------------


def _samples_per_neuron(work: Work, name: str) -> float:
    layer = work.census.layer(name)
    shape = tuple(int(d or 1) for d in work.census.shapes[layer.source])
    return work.setup.samples.count * layer.linear.op.positions(shape) / max(layer.width, 1)


def _few_samples(work: Work) -> list[str]:
    few = {g.name: r for g in work.groups if (r := _samples_per_neuron(work, g.name)) < FEW}
    if not few:
        return []
    worst = min(few, key=lambda name: few[name])
    return [
        f"few samples: {len(few)} of {len(work.groups)} layers have under {FEW:g} per neuron (least: '{worst}' with "
        f"{few[worst]:.1f}); more samples would do better"
    ]
