"""A model at another opset computes what it did."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from builders.models import Array
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph, at_least_opset
from pcns_onnx.graph.opset import inlined, without_named_axes
from pcns_onnx.runtime.engine import Engine

info = helper.make_tensor_value_info


def graph_of(text: str, constants: Mapping[str, object], opset: int, shape: list[int | str] | None = None) -> Graph:
    """A model from 'x' to 'y' of nodes as onnx writes them."""
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    nodes: list[NodeProto] = [onnx.parser.parse_node(line) for line in text.split("; ")]
    fed = info("x", TensorProto.FLOAT, shape or ["N", 2, 9, 8])
    graph = helper.make_graph(nodes, "test", [fed], [info("y", TensorProto.FLOAT, [None] * 4)], stored)
    return Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))


def run(graph: Graph) -> Array:
    x = np.random.default_rng(0).standard_normal((3, 2, 9, 8)).astype(np.float32)
    return np.asarray(Engine().session(graph.program()).run({"x": x})["y"])


def same(before: Graph, after: Graph) -> None:
    np.testing.assert_allclose(run(after), run(before), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", [0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0])
def test_an_old_resize_samples_where_it_did(mode: str, scale: float) -> None:
    scales = {"s": np.array([1, 1, scale, scale], np.float32)}
    before = graph_of(f'y = Resize <mode = "{mode}"> (x, s)', scales, 10)
    after = at_least_opset(before, 13)
    assert after.opset == 13
    same(before, after)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", [1.5, 2.0])
@pytest.mark.parametrize("opset", [7, 9])
def test_an_upsample_becomes_such_a_resize(mode: str, scale: float, opset: int) -> None:
    text = f'y = Upsample <mode = "{mode}"> (x, s)'
    if opset == 7:
        text = f'y = Upsample <mode = "{mode}", scales = [1.0, 1.0, {scale}, {scale}]> (x)'
    before = graph_of(text, {"s": np.array([1, 1, scale, scale], np.float32)} if opset == 9 else {}, opset)
    same(before, at_least_opset(before, 13))


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2, None])
@pytest.mark.parametrize("shape", [[3, 2, 9, 8], ["N", 2, "H", "W"]], ids=str)
def test_an_old_softmax_takes_all_axes_behind_its_own(op: str, axis: int | None, shape: list[int | str]) -> None:
    attribute = "" if axis is None else f"<axis = {axis}>"
    before = graph_of(f"y = {op} {attribute} (x)", {}, 11, shape)
    same(before, at_least_opset(before, 13))


def test_a_newer_model_is_left_alone() -> None:
    graph = graph_of("y = Relu(x)", {}, 17)
    assert at_least_opset(graph, 13) is graph and without_named_axes(graph) is graph and inlined(graph) is graph


@pytest.mark.parametrize(("text", "constants"), [
    ('y = Resize <axes = [3, 2], mode = "linear"> (x, , s)', {"s": np.array([1.5, 2], np.float32)}),
    ('y = Resize <axes = [-2, -1]> (x, , , s)', {"s": np.array([12, 16])}),
    ('s = Constant <value = int64[2] {12, 16}> (); y = Resize <axes = [2, 3]> (x, , , s)', {}),
    ('y = Resize <axes = [2], coordinate_transformation_mode = "tf_crop_and_resize"> (x, r, , s)',
     {"s": np.array([8]), "r": np.array([0.2, 0.9], np.float32)}),
    ('y = Pad <mode = "reflect"> (x, s, , a)', {"s": np.array([1, 2, 0, 3]), "a": np.array([-1, 2])}),
    ('y = Pad (x, s, v, a)', {"s": np.array([1, 2]), "a": np.array([3]), "v": np.array(0.5, np.float32)}),
    ('y = Resize (x, , s)', {"s": np.array([1, 1, 1.5, 2], np.float32)}),
])  # fmt: skip
def test_axes_that_are_named_are_written_out(text: str, constants: dict[str, object]) -> None:
    before = graph_of(text, constants, 18)
    after = without_named_axes(before)
    same(before, after)
    assert not any("axes" in node.attrs or (node.op == "Pad" and len(node.inputs) > 3) for node in after.nodes)


def test_axes_that_cannot_be_written_out_are_refused() -> None:
    text = 'y = Resize <axes = [2, 3], keep_aspect_ratio_policy = "not_larger"> (x, , , s)'
    with pytest.raises(InputError, match="Resize 'y' names its axes"):
        without_named_axes(graph_of(text, {"s": np.array([12, 20])}, 18))


def test_functions_are_inlined_in_functions_and_branches() -> None:
    body = [onnx.parser.parse_node(text) for text in ("k = Constant <value_float = 0.5> ()", "o = Mul(i, k)")]
    function = helper.make_function("own", "Half", ["i"], ["o"], body, [helper.make_opsetid("", 17)])
    branches = [
        helper.make_graph([onnx.parser.parse_node(text)], "branch", [], [info("t", TensorProto.FLOAT, None)])
        for text in ("t = own.Half(x)", "t = Neg(x)")
    ]
    proto = graph_of("m = ReduceMax <keepdims = 0> (x); is = Cast <to = 9> (m)", {}, 17).proto
    choose = helper.make_node("If", ["is"], ["y"], then_branch=branches[0], else_branch=branches[1])
    proto.graph.node.append(choose)
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("own", 1))
    before, after = Graph(proto), inlined(Graph(proto))
    assert not after.functions and [entry.domain for entry in after.proto.opset_import] == [""]
    same(before, after)
