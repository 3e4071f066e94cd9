"""`inspect`: every linear layer, its cost, whether it can shrink and, with data, what it uses."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

from pcns_onnx.api.inputs import form_of, run
from pcns_onnx.api.options import Choices, Options
from pcns_onnx.calibration.shapes import stated_shapes
from pcns_onnx.data.sources import DataSource
from pcns_onnx.dependency.dependency_graph import build_dependency_graph
from pcns_onnx.graph import ModelSource
from pcns_onnx.methods.pcns.assessment import PcnsAssessment, assess
from pcns_onnx.planning.prepare import problem_for
from pcns_onnx.progress import Progress
from pcns_onnx.report.inspection import group_rows, layer_rows, shrinkable_share
from pcns_onnx.report.schema import Inspection
from pcns_onnx.report.warnings import degenerate, few_samples, put_right, samples_per_neuron


def inspect(
    model: ModelSource,
    data: DataSource | None = None,
    *,
    progress: Progress | None = None,
    **choices: Unpack[Choices],
) -> Inspection:
    """Every linear layer of `model`: its cost, whether it can shrink and, with data, what it uses."""
    options = Options.of(**choices)
    form = form_of(model, options)
    stated = stated_shapes(form.twin, options.scope)
    dependencies = build_dependency_graph(form.twin, stated, heads=options.scope.heads)
    dimensions, per_neuron, warnings = dict[str, dict[str, int]](), dict[str, float](), put_right(form.original)
    assessments = list[PcnsAssessment]()
    if data is not None:
        with run(options, progress) as running:
            running.look_near(model)
            form, opened = running.opened(form, data)
            everything = running.all_of(opened)
            problem = problem_for(form, running.calibration(everything, form.twin), options.scope)
            dimensions, assessments = assess(
                problem, options.scope, variance=options.goal.variance, trials=options.data.trials
            )
        dependencies = problem.dependencies
        per_neuron = {layer.name: samples_per_neuron(problem, layer.name) for layer in dependencies.layers}
        warnings += running.notes
        warnings += few_samples(replace(problem, groups=dependencies.groups))
        warnings += degenerate(problem.calibration.samples.summary, "the data", counts=False)
    layers = layer_rows(dependencies, dimensions, per_neuron)
    if any(layer.macs == 0 for layer in dependencies.layers):
        warnings.append("sizes that the model leaves open hide some costs: give --data, or --shape NAME=1x3x224x224")
    known, share = [layer.macs for layer in layers if layer.macs is not None], shrinkable_share(dependencies)
    return Inspection(
        layers,
        sum(known) if known or not layers else None,
        form.original.parameters,
        share,
        warnings,
        group_rows(dependencies),
        len(layers) - len(known),
        assessments,
    )
