"""A model that onnxruntime runs is run, whatever its optimiser makes of the tensors that are looked at."""

from __future__ import annotations

import numpy as np
import pytest

from builders.chains import node, random
from builders.models import build, relative
from pcns_onnx import InputError, inspect, shrink
from pcns_onnx.graph import Graph, Program
from pcns_onnx.runtime.engine import Engine


def transposed_gemm() -> Graph:
    """A Gemm between two Transposes, that onnxruntime makes one Gemm of: an output in the middle is lost by that."""
    nodes = [
        node("Gemm", "x w", "a"), node("Relu", "a", "b"), node("Transpose", "b", "bt", perm=[1, 0]),
        node("Gemm", "bt g", "q", transA=1), node("Transpose", "q", "qt", perm=[1, 0]), node("MatMul", "k qt", "z"),
        node("Transpose", "z", "zt", perm=[1, 0]), node("Gemm", "zt v", "y"),
    ]  # fmt: skip
    weights = {"w": random(5, 32), "g": random(32, 32), "k": random(32, 32), "v": random(32, 4)}
    return Graph.load(build(nodes, weights, ["N", 5]))


X = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)


def test_less_is_optimised_where_the_optimiser_cannot_compile(capfd: pytest.CaptureFixture[str]) -> None:
    graph = transposed_gemm()
    both = Engine().session(graph.extract(["x"], ["q", "y"]).program()).run({"x": X})
    assert relative(Engine().session(graph.program()).run({"x": X})["y"], both["y"]) < 1e-5
    assert both["q"].shape == (64, 32)
    assert inspect(graph.proto, X, threads=1).layers
    shrink(graph.proto, X, width=0.5, refine=0, threads=1)
    assert capfd.readouterr().out == ""


def test_what_does_not_load_is_one_error_with_the_first_reason(capfd: pytest.CaptureFixture[str]) -> None:
    model = transposed_gemm().proto
    model.graph.node[1].op_type = "Nonsense"
    with pytest.raises(InputError, match=r"onnxruntime cannot load the model: .*Nonsense"):
        Engine().session(Program(model.SerializeToString()))
    assert capfd.readouterr().out == ""
