"""Spectra of what layers put out: by their outputs, or by their inputs where they have more outputs than inputs."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import pytest

from builders.models import Array, build, run
from pcns_onnx import inspect
from pcns_onnx.calibration import layer_outputs
from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.calibration.layer_outputs import output_spectra
from pcns_onnx.calibration.shapes import dependency_graph_of
from pcns_onnx.data.dataset import open_data
from pcns_onnx.dependency.options import Scope
from pcns_onnx.graph import Graph
from pcns_onnx.progress import Progress
from pcns_onnx.rewrite.explicit_bias import explicit_biases
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples

node = onnx.helper.make_node


def normal(*shape: int) -> Array:
    return np.random.default_rng([7, *shape]).standard_normal(shape).astype(np.float32)


def head(kind: str, classes: int) -> tuple[onnx.ModelProto, Array]:
    """A hidden layer of 12 and a head of `classes`, whose Softmax keeps all of them."""
    if kind == "conv":
        nodes = [node("Conv", ["x", "a"], ["h"], name="hidden"), node("Relu", ["h"], ["r"]),
                 node("Conv", ["r", "b", "c"], ["o"], name="head", pads=[0, 1]),
                 node("Softmax", ["o"], ["y"], axis=1)]  # fmt: skip
        weights = {"a": normal(12, 3, 1), "b": normal(classes, 12, 2), "c": normal(classes)}
        return build(nodes, weights, ["n", 3, 5]), normal(80, 3, 5)
    nodes = [node("MatMul", ["x", "a"], ["h"], name="hidden"), node("Relu", ["h"], ["r"]),
             node("MatMul", ["r", "b"], ["p"], name="head"), node("Add", ["p", "c"], ["o"]),
             node("Softmax", ["o"], ["y"], axis=-1)]  # fmt: skip
    return build(nodes, {"a": normal(6, 12), "b": normal(12, classes), "c": normal(classes)}, ["n", 6]), normal(300, 6)


@pytest.mark.parametrize("kind", ["matmul", "conv"])
def test_the_spectrum_from_the_inputs_is_that_of_the_outputs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = head(kind, 40)
    graph, _ = explicit_biases(Graph(model))
    data = open_data({"x": x}, graph.inputs)
    dependencies = dependency_graph_of(graph, Engine(), data, Scope())
    calibration = Calibration(Engine(), Samples(data, 32), 0, Progress())
    expected = {g.name: v for g, v, _ in output_spectra(calibration, graph, dependencies, dependencies.groups)}
    monkeypatch.setattr(layer_outputs, "WIDE", 30)
    by_inputs = {g.name: v for g, v, m in output_spectra(calibration, graph, dependencies, dependencies.groups)}
    values = by_inputs["head"]
    assert len(values) == (24 if kind == "conv" else 12) and len(expected["head"]) == 40
    np.testing.assert_allclose(values, expected["head"][: len(values)], rtol=1e-4, atol=1e-4 * expected["head"][0])
    np.testing.assert_array_equal(by_inputs["hidden"], expected["hidden"])
    monkeypatch.setattr(layer_outputs, "WIDE", 10)
    left = [g.name for g, _, _ in output_spectra(calibration, graph, dependencies, dependencies.groups)]
    assert left == ["hidden"], "wide on both sides, and it stays: not worth a matrix"


def test_a_head_of_many_classes_takes_no_matrix_of_classes() -> None:
    model, x = head("matmul", 20_000)
    assert run(model, x[:2]).shape == (2, 20_000)
    tracemalloc.start()
    try:
        rows = {row.name: row for row in inspect(model, x, threads=1).layers}
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows["head"].reason is not None and rows["head"].dimensions is not None
    assert max(rows["head"].dimensions.values()) <= 12
    assert peak < 100e6, "one float for each pair of classes would take 3.2 GB"
