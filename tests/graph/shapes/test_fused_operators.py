"""Shapes behind onnxruntime's own operators: those that it makes, with sizes that are open kept open."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders import fused_attention as fused
from builders.attention import D, E, H, S
from builders.chains import node
from builders.models import Array, run
from pcns_onnx.graph import Graph
from pcns_onnx.graph.shapes.fused_operators import PREFIX, REPLACEMENTS
from robustness.transformers import row, rows, samples

G, B = np.ones(E, np.float32), np.zeros(E, np.float32)
ONE_TO_ONE: dict[str, tuple[str, dict[str, Array], dict[str, object]]] = {
    "Gelu": ("x", {}, {}),
    "QuickGelu": ("x", {}, {}),
    "BiasGelu": ("x b", {"b": B}, {}),
    "FastGelu": ("x", {}, {}),
    "BiasSplitGelu": ("x b", {"b": B}, {}),
    "SkipLayerNormalization": ("x x g b", {"g": G, "b": B}, {}),
    "SkipSimplifiedLayerNormalization": ("x x g", {"g": G}, {}),
    "MatMulNBits": (
        "x w s",
        {"w": np.zeros((7, 1, 8), np.uint8), "s": np.ones(7, np.float32)},
        {"K": E, "N": 7, "bits": 4, "block_size": 16},
    ),
}


def single(op: str) -> onnx.ModelProto:
    inputs, weights, attributes = ONE_TO_ONE[op]
    graph = helper.make_graph(
        [node(op, inputs, "y", domain="com.microsoft", **attributes)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "S", E])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


@pytest.mark.parametrize("op", [op for op in ONE_TO_ONE if op in REPLACEMENTS])
def test_an_operator_has_the_shape_that_it_makes(op: str) -> None:
    model = single(op)
    made = run(model, np.zeros((2, 3, E), np.float32)).shape
    assert Graph(model).shapes({"x": (2, 3, E)}, batch=2)["y"] == made
    assert Graph(model).shapes(batch=2)["y"] == (2, None, made[-1])


@pytest.mark.parametrize("name", fused.FORMS)
def test_attention_has_the_shape_that_it_makes(name: str) -> None:
    graph = Graph(fused.FORMS[name]())
    shapes = graph.shapes(batch=2)
    assert shapes["joined"] == (2, S, shapes["o.w"][0]) and not any(key.startswith(PREFIX) for key in shapes)


def test_attention_with_weights_inside_is_as_wide_as_its_last_third() -> None:
    model = fused.packed_weights()
    assert Graph(model).shapes(batch=3)["joined"] == (3, S, H * D)
    model.graph.node[0].attribute.append(helper.make_attribute("qkv_hidden_sizes", [15, 15, 6]))
    assert Graph(model).shapes(batch=3)["joined"] == (3, S, 6)


def test_packed_heads_of_q_are_those_that_come_out() -> None:
    assert Graph(fused.grouped_query(2, packed=True)).shapes(batch=2)["joined"] == (2, S, 32)


def test_lengths_of_an_embedding_are_integers() -> None:
    """A part that is cut there has an input of that type."""
    weights = {"words": np.ones((9, E), np.float32), "places": np.ones((9, E), np.float32), "g": G, "b": B}
    graph = helper.make_graph(
        [node("EmbedLayerNormalization", "ids - words places - g b", "y lengths", domain="com.microsoft"),
         node("Cast", "lengths", "z", to=TensorProto.FLOAT)],
        "embedding",
        [helper.make_tensor_value_info("ids", TensorProto.INT32, ["N", "S"])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    read = Graph(helper.make_model(graph, opset_imports=opsets, ir_version=9))
    assert read.shapes({"ids": (2, 5)}, batch=2)["y"] == (2, 5, E)
    part = read.extract(["lengths"], ["z"])
    assert [spec.dtype for spec in part.inputs] == [np.dtype(np.int32)]


@pytest.mark.parametrize(("name", "form"), [one for one in rows() if one[1] == "ort"])
def test_nothing_in_a_fused_transformer_has_an_unknown_rank(name: str, form: str) -> None:
    model, net = row(name, form)
    graph = Graph.load(model)
    feeds = samples(model, net, 2)
    shapes = graph.shapes({key: value.shape for key, value in feeds.items()}, batch=2)
    unknown = {output for item in graph.nodes for output in item.outputs[:1] if output not in shapes}
    assert not unknown
