"""`compare`: agreement, latency and cost of two models with the same inputs and outputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

from pcns_onnx.api.inputs import Run, run
from pcns_onnx.api.options import Choices, Options
from pcns_onnx.calibration.output_layout import OutputLayout
from pcns_onnx.cost.benchmark import unsteady
from pcns_onnx.cost.model import model_size
from pcns_onnx.data.dataset import Dataset
from pcns_onnx.data.sources import DataSource
from pcns_onnx.errors import InputError
from pcns_onnx.evaluation.agreement import time_both, verify
from pcns_onnx.evaluation.gates import gates_of
from pcns_onnx.evaluation.metric import load_metric
from pcns_onnx.evaluation.provenance import library_versions, made_on, provenance_of
from pcns_onnx.evaluation.unseen import Unseen, unseen
from pcns_onnx.files import check_targets
from pcns_onnx.graph import Graph, Layout, ModelSource, TensorSpec
from pcns_onnx.graph.queries import names_of
from pcns_onnx.progress import Progress
from pcns_onnx.report.html.page import check_page
from pcns_onnx.report.schema import Report
from pcns_onnx.report.warnings import all_alike, put_right
from pcns_onnx.report.writer import finish
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.runtime.samples import Samples


def same_axes(dataset: Dataset, form: Canonical) -> Layout | None:
    """The samples' axes for a second model: those of the first, and its own batch."""
    return None if dataset.layout is None else replace(dataset.layout, fixed=form.original.layout.fixed)


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
    options = Options.of(**choices)
    outputs = options.outputs
    check_targets((a, b, data), outputs.report, outputs.html)
    check_page(outputs.html)
    metric = load_metric(options.gates.metric)
    with run(options, progress, times=True) as running:
        forms = load_pair(running, a, b)
        forms[0], opened = running.opened(forms[0], data)
        forms[1] = forms[1].laid_out(same_axes(opened, forms[1]))
        first, second = (form.original for form in forms)
        dataset = running.all_of(running.padded_for(forms[1], running.batched_for(forms[1], opened)))
        if options.gates.max_drop is not None and metric is None and not dataset.has_labels:
            raise InputError("--max-drop needs labels in the data, or --metric")
        samples = running.samples(dataset, first, second)
        counted = _unseen(samples, first, second)
        dependencies = [running.dependencies(form.twin, dataset) for form in forms]
        weights = options.gates.weights([spec.name for spec in first.outputs])
        layout = OutputLayout.of(forms[0].twin, dependencies[0], weights)
        agreement, warnings = verify(
            running.engine, first, second, samples, metric, running.progress, counted.proving, layout
        )
        sizes = [model_size(f.original, of) for f, of in zip(forms, dependencies, strict=True)]
        latency = time_both(running.engine, first, second, samples, running.progress)
    report = Report(
        options=options.described(),
        before=sizes[0],
        after=sizes[1],
        agreement=agreement,
        latency=latency,
        gates=gates_of(options.gates, agreement),
        groups=[],
        left_alone=[],
        folded=[],
        stages={},
        warnings=[*put_right(first, second), *running.notes, *warnings, *counted.notes, *unsteady(latency)],
        versions=library_versions(),
        origin=provenance_of(
            outputs.command,
            options.runtime.device,
            options.data.seed,
            running.engine,
            {"model a": (a, first), "model b": (b, second)},
            {"data": data},
        ),
    )
    finish(report, outputs.report, outputs.html)
    return report


def load_pair(running: Run, a: ModelSource, b: ModelSource) -> list[Canonical]:
    """Both models; an input that a constant has replaced in one of them may be no input of the other."""
    forms = [Canonical.of(running.load(source)) for source in (a, b)]
    first, second = (form.original for form in forms)
    check_targets((*first.files, *second.files), running.options.outputs.report, running.options.outputs.html)
    if [s.name for s in first.inputs] != [s.name for s in second.inputs]:
        raise InputError(f"the models have different inputs: {names_of(first)} and {names_of(second)}")
    pairs = zip(first.inputs, second.inputs, strict=True)
    for one, other in ((a, b) for a, b in pairs if not _take_the_same(a, b, first.layout)):
        sizes = (" x ".join("?" if size is None else str(size) for size in spec.shape) for spec in (one, other))
        narrowed = ". Where --states or --caches has made it narrower, the check of `shrink` has compared them"
        raise InputError(
            f"input '{one.name}' is {' in one model and '.join(sizes)} in the other: no samples fit both"
            + (narrowed if len(one.shape) == len(other.shape) else "")
        )
    stored = first.layout.stored | second.layout.stored
    return [form.laid_out(replace(form.original.layout, stored=stored)) if stored else form for form in forms]


def _take_the_same(one: TensorSpec, other: TensorSpec, layout: Layout) -> bool:
    """Whether a sample of one input fits the other: all sizes that both fix are equal, but those of batches."""
    if len(one.shape) != len(other.shape):
        return False
    pairs = enumerate(zip(one.shape, other.shape, strict=True))
    return all(at == layout.axes.get(one.name, 0) or a == b or not (a and b) for at, (a, b) in pairs)


def _unseen(samples: Samples, *models: Graph) -> Unseen:
    """The samples that prove something about new ones, as far as the models say what they were made on."""
    summary = samples.summary
    known = max(made_on(model, summary.hashes) for model in models)
    why = all_alike(summary, "the check")
    if known:
        why = "these are samples that one of the models was made on"
    return unseen(summary).without_bound(why)
