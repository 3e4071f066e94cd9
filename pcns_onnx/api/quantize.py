"""`quantize`: a model in int8 or float16 as it is, nothing narrowed; checked as `shrink --int8` checks its own."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Unpack

from msgspec import structs

from pcns_onnx.api.check import Check, check_on
from pcns_onnx.api.inputs import Run, run
from pcns_onnx.api.options import Choices, Options
from pcns_onnx.calibration.output_layout import OutputLayout
from pcns_onnx.cost.benchmark import unsteady
from pcns_onnx.cost.model import ModelSize, model_size
from pcns_onnx.data.sources import DataSource
from pcns_onnx.errors import InputError
from pcns_onnx.evaluation.metric import load_metric
from pcns_onnx.evaluation.precisions import QuantizedModel, check_not_quantized, check_precisions
from pcns_onnx.evaluation.precisions import quantize as quantized_models
from pcns_onnx.evaluation.provenance import Provenance, library_versions, provenance_of
from pcns_onnx.files import check_targets
from pcns_onnx.graph import Graph, ModelSource
from pcns_onnx.graph.model_source import ModelFolder
from pcns_onnx.progress import Progress
from pcns_onnx.report.html.page import check_page
from pcns_onnx.report.schema import Report
from pcns_onnx.report.warnings import degenerate, grown, of_precision, put_right
from pcns_onnx.report.writer import finish
from pcns_onnx.rewrite.canonical import Canonical

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class QuantizeResult:
    """The model in fewer bits, and the report: `before` is the original, `after` this."""

    model: ModelProto
    report: Report


def quantize(
    model: ModelSource,
    data: DataSource,
    output: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
    **choices: Unpack[Choices],
) -> QuantizeResult:
    """`model` in int8, or with `fp16` in float16, calibrated on `data`; with `output` also written there, atomically.

    A share of the samples is held out for the check as `shrink` holds it out, unless `eval` gives others. Raises
    `InputError` (also where onnxruntime cannot make it, or it would be another model), `UnsupportedError` where the
    model is not in float32, or `GateError` with the report.
    """
    folder = ModelFolder.of(model)
    if folder is not None and output is not None:
        with folder.brought_along(output) as place:
            return quantize(folder.model, data, place.target, progress=progress, **choices)
    options = Options.of(**choices)
    outputs, kind = options.outputs, "fp16" if options.outputs.fp16 else "int8"
    check_targets((model, data, options.data.eval), output, outputs.report, outputs.html)
    check_page(outputs.html)
    metric = load_metric(options.gates.metric)
    with run(options, progress) as running:
        form = Canonical.of(running.load(model))
        check_targets(tuple(form.original.files), output, outputs.report, outputs.html)
        check_precisions(form.original, [kind])
        check_not_quantized(form.original)
        check = check_on(running, form, data, metric, None, solves=True)
        original, dependencies = check.form.original, running.dependencies(check.form.twin, check.train)
        weights = options.gates.weights([spec.name for spec in original.outputs])
        check = replace(check, layout=OutputLayout.of(check.form.twin, dependencies, weights))
        quantized, notes = _quantized(running, check, kind)
    report = _report(running, quantized, kind, model_size(original, dependencies), notes)
    report = structs.replace(report, origin=_origin(running, (model, original), data))
    finish(report, outputs.report, outputs.html, "; no model was written")
    if output is not None:
        quantized.graph.save(output)
    return QuantizeResult(quantized.graph.proto, report)


def _report(running: Run, quantized: QuantizedModel, kind: str, before: ModelSize, notes: list[str]) -> Report:
    """The record; parameters and multiply-adds are the original's, in fewer bits."""
    after, precision = structs.replace(before, bytes=quantized.precision.bytes), quantized.precision
    return Report(
        options=running.options.described() | {"precision": kind},
        before=before,
        after=after,
        agreement=precision.agreement,
        latency=precision.latency,
        gates=quantized.gates,
        groups=[],
        left_alone=[],
        folded=[],
        stages={},
        warnings=[
            *notes,
            *quantized.warnings,
            *of_precision(precision),
            *grown(before, after),
            *unsteady(precision.latency),
        ],
        versions=library_versions(),
    )


def _origin(running: Run, model: tuple[ModelSource, Graph], data: DataSource) -> Provenance:
    options, sources = running.options, {"data": data, "eval": running.options.data.eval}
    return provenance_of(
        options.outputs.command, options.runtime.device, options.data.seed, running.engine, {"model": model}, sources
    )


def _quantized(running: Run, check: Check, kind: str) -> tuple[QuantizedModel, list[str]]:
    """The model of that kind, and what is to be said of the samples; raises `InputError` where there is none."""
    calibration, checked = running.samples(check.train, check.form.twin), check.samples
    original, unseen = check.form.original, check.unseen()
    result = quantized_models(
        running.engine, original, original, [kind], calibration, checked, running.timed(checked), check.metric,
        unseen.proving, running.options.gates, running.progress, check.layout,
    )  # fmt: skip
    if result.failed:
        raise InputError(f"{kind} cannot be made: {result.failed[0].reason}")
    return result.models[0], [
        *put_right(original),
        *running.notes,
        *degenerate(calibration.summary, "the calibration"),
        *unseen.notes,
    ]
