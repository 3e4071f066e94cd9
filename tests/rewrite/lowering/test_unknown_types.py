"""int8 reaches what stands behind operators of other domains, whose types onnx does not know."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from builders.models import relative
from pcns_onnx.data.dataset import open_data
from pcns_onnx.graph import Graph, Program
from pcns_onnx.rewrite.lowering.quantize import in_precision
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples

node = helper.make_node
D = 16
RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 4, D)).astype(np.float32)
FLAT = node("Reshape", ["x", "rows"], ["f"])
SCALED = node("Scaler", ["f"], ["s"], domain="ai.onnx.ml", offset=[0.5] * D, scale=[2.0] * D)
MIDDLES: dict[str, Sequence[NodeProto]] = {
    "a scaler of another domain": [FLAT, SCALED],
    "a scaler, counted": [FLAT, SCALED, node("Shape", ["s"], ["n"]), node("Cast", ["n"], ["c"], to=TensorProto.INT64)],
    "onnxruntime's skip norm": [
        node("SkipSimplifiedLayerNormalization", ["x", "x", "one"], ["s"], domain="com.microsoft")],
    "onnxruntime's norm": [node("SimplifiedLayerNormalization", ["x", "one"], ["s"])],
    "onnxruntime's gate": [node("QuickGelu", ["x"], ["s"], domain="com.microsoft")],
}  # fmt: skip


def net(middle: Sequence[NodeProto], shape: Sequence[str | int]) -> onnx.ModelProto:
    """x -> `middle` -> s -> two layers -> y."""
    back = [
        node("MatMul", ["s", "w1"], ["h"]), node("Add", ["h", "b1"], ["a"]), node("Relu", ["a"], ["r"]),
        node("MatMul", ["r", "w2"], ["y"]),
    ]  # fmt: skip
    stored = {
        "one": np.ones(D), "w1": RNG.standard_normal((D, 32)) / 4, "b1": RNG.standard_normal(32),
        "w2": RNG.standard_normal((32, 3)) / 6,
    }  # fmt: skip
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in stored.items()]
    tensors.append(numpy_helper.from_array(np.array([-1, D]), "rows"))
    read = {name for item in (*middle, *back) for name in item.input}
    graph = helper.make_graph(
        [*middle, *back], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, D])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [tensor for tensor in tensors if tensor.name in read],
    )  # fmt: skip
    sets = [("", 17), ("ai.onnx.ml", 3), ("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*one) for one in sets], ir_version=8)


@pytest.mark.parametrize("name", MIDDLES)
def test_layers_behind_it_compute_in_integers(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    rank = 2 if MIDDLES[name][0] is FLAT else 3
    model = net(MIDDLES[name], ["A"] * rank)
    graph = Graph.load(model)
    lowered, warnings = in_precision("int8", graph, Samples(open_data(X, graph.inputs), 16))
    made = {output: item for item in lowered.proto.graph.node for output in item.output}
    layers = [item for item in lowered.proto.graph.node if item.op_type == "MatMul"]
    assert len(layers) == 2
    assert {made[item.input[0]].op_type for item in layers} == {"DequantizeLinear"}
    assert not warnings and capfd.readouterr() == ("", "")
    first, second = (Engine().session(Program(m.SerializeToString())).run({"x": X}) for m in (model, lowered.proto))
    assert relative(first["y"], second["y"]) < 0.05


def test_a_wrong_rank_of_an_output_is_no_warning_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    model = net(MIDDLES["onnxruntime's gate"], [])
    graph = Graph.load(model)
    in_precision("int8", graph, Samples(open_data(X, graph.inputs), 16))
    assert capfd.readouterr() == ("", "")
