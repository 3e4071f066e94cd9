"""int8 of models that onnxruntime's quantiser trips over: the result computes the same, in all of its outputs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from builders.models import Array, relative
from pcns_onnx.data.dataset import open_data
from pcns_onnx.graph import Graph, Program
from pcns_onnx.rewrite.lowering.quantize import in_precision
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples

node, info = helper.make_node, helper.make_tensor_value_info
Values = Mapping[str, object]


def model(
    nodes: Sequence[NodeProto],
    constants: Values,
    *,
    inputs: Sequence[tuple[str, Sequence[int | str]]] = (("x", ("N", 3, 8, 8)),),
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    ir_version: int = 8,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A checked model of float inputs, whose outputs have the ranks that onnxruntime finds."""
    stored = []
    for name, value in constants.items():
        array = np.asarray(value)
        stored.append(numpy_helper.from_array(array.astype(np.float32) if array.dtype.kind == "f" else array, name))
    fed = [info(name, TensorProto.FLOAT, list(shape)) for name, shape in inputs]
    made = [info(name, TensorProto.FLOAT, None) for name in outputs]
    proto = helper.make_model(
        helper.make_graph(list(nodes), "test", fed, made, stored),
        opset_imports=[helper.make_opsetid("", opset), *(helper.make_opsetid("own", 1) for _ in functions[:1])],
        functions=list(functions),
        ir_version=ir_version,
    )
    feeds = {name: np.zeros([2 if isinstance(d, str) else d for d in shape], np.float32) for name, shape in inputs}
    for value, array in zip(proto.graph.output, run(proto, feeds), strict=True):
        value.CopyFrom(info(value.name, TensorProto.FLOAT, [None] * array.ndim))
    onnx.checker.check_model(proto)
    return proto


def run(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    return [np.asarray(a) for a in Engine().session(Program(proto.SerializeToString())).run(feeds).values()]


def int8(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> tuple[onnx.ModelProto, list[str]]:
    graph = Graph.load(proto)
    data = dict(feeds) if len(feeds) > 1 else next(iter(feeds.values()))
    lowered, notes = in_precision("int8", graph, Samples(open_data(data, graph.inputs), 16))
    onnx.checker.check_model(lowered.proto, full_check=True)
    assert (lowered.inputs, lowered.outputs) == (graph.inputs, graph.outputs)
    return lowered.proto, notes


def images(rng: np.random.Generator, count: int = 32) -> dict[str, Array]:
    return {"x": rng.standard_normal((count, 3, 8, 8)).astype(np.float32)}


def is_near(proto: onnx.ModelProto, feeds: Mapping[str, Array], limit: float = 0.06) -> list[str]:
    """Check that int8 is near in every output; what it warned of."""
    lowered, notes = int8(proto, feeds)
    assert TensorProto.INT8 in {tensor.data_type for tensor in lowered.graph.initializer}
    for before, after in zip(run(proto, feeds), run(lowered, feeds), strict=True):
        assert before.dtype == after.dtype
        assert relative(before, after) < limit
    return notes


def convs(rng: np.random.Generator) -> dict[str, object]:
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (4, 8, 1, 1)}
    return {name: rng.standard_normal(shape) * 0.3 for name, shape in shapes.items()}


def around(middle: Sequence[NodeProto]) -> list[NodeProto]:
    """Nodes from the Relu 'b' of a Conv to the tensor 'c', which a second Conv reads."""
    first = [node("Conv", ["x", "w1", "b1"], ["a"], pads=[1] * 4), node("Relu", ["a"], ["b"])]
    return [*first, *middle, node("Conv", ["c", "w2"], ["y"])]


# -- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [
    ("a", "x_QuantizeLinear_Output", "c"), ("w2_DequantizeLinear_Output", "b1_quantized", "w2_scale"),
    ("x_zero_point", "b1_quantized_scale", "y_QuantizeLinear_Input"),
], ids=lambda names: names[1])  # fmt: skip
def test_tensors_may_have_the_names_that_the_quantiser_would_give(
    names: tuple[str, str, str], rng: np.random.Generator
) -> None:
    first, second, third = names
    nodes = [
        node("Conv", ["x", "w1", "b1"], [first], pads=[1] * 4),
        node("Relu", [first], [second]),
        node("Conv", [second, "w3", "b1"], [third], pads=[1] * 4),
        node("Conv", [third, "w2"], ["y"]),
    ]
    proto = model(nodes, convs(rng) | {"w3": rng.standard_normal((8, 8, 3, 3)) * 0.2})
    is_near(proto, images(rng))


def test_inputs_and_outputs_may_have_them_too(rng: np.random.Generator) -> None:
    nodes = [*around([node("Add", ["b", "x_scale"], ["c"])]), node("Abs", ["y"], ["y_DequantizeLinear_Output"])]
    inputs = [("x", ("N", 3, 8, 8)), ("x_scale", ("N", 1, 8, 8))]
    proto = model(nodes, convs(rng), inputs=inputs, outputs=["y", "y_DequantizeLinear_Output"])
    is_near(proto, {**images(rng), "x_scale": rng.standard_normal((32, 1, 8, 8)).astype(np.float32)})


def test_other_names_stay(rng: np.random.Generator) -> None:
    """Numbers for names would make other bytes of every model."""
    lowered, _ = int8(model(around([node("Identity", ["b"], ["c"])]), convs(rng)), images(rng))
    assert {"w1_quantized", "b1_quantized"} <= {tensor.name for tensor in lowered.graph.initializer}


def test_layers_without_names_share_a_bias(rng: np.random.Generator) -> None:
    """The quantiser gives each its own, by the name of the node."""
    nodes = around([node("Conv", ["b", "w3", "b1"], ["c"], pads=[1] * 4)])
    is_near(model(nodes, convs(rng) | {"w3": rng.standard_normal((8, 8, 3, 3))}), images(rng))


# -- subgraphs ---------------------------------------------------------------------------------


def branch(nodes: Sequence[NodeProto], output: str) -> GraphProto:
    return helper.make_graph(list(nodes), output, [], [info(output, TensorProto.FLOAT, None)])


def chosen(then: GraphProto, otherwise: GraphProto) -> list[NodeProto]:
    return [
        node("ReduceMean", ["x"], ["mean"], keepdims=0),
        node("Greater", ["mean", "zero"], ["is"]),
        node("If", ["is"], ["c"], then_branch=then, else_branch=otherwise),
    ]


CONV, NEGATIVE = (branch([op], "i") for op in (node("Conv", ["b", "w9"], ["i"]), node("Neg", ["b"], ["i"])))
CLASHING = "b_DequantizeLinear_Output"


@pytest.mark.parametrize("then", [
    [node("Identity", ["b"], ["t"])], [node("Conv", ["b", "w9"], ["t"])],
    [node("Conv", ["x", "w1", "b1"], [CLASHING], pads=[1] * 4), node("Abs", [CLASHING], ["t"])],
    [node("If", ["is"], ["t"], then_branch=CONV, else_branch=NEGATIVE)],
], ids=["the tensor", "a weight of its own", "a weight that is quantised outside", "nested"])  # fmt: skip
def test_branches_read_what_the_quantiser_renames(then: list[NodeProto], rng: np.random.Generator) -> None:
    """And both are right, though only one is taken while the ranges are measured."""
    nodes = around(chosen(branch(then, "t"), branch([node("Mul", ["b", "two"], ["e"])], "e")))
    proto = model(nodes, convs(rng) | {"zero": 0.0, "two": 2.0, "w9": rng.standard_normal((8, 8, 1, 1)) * 0.3})
    x = images(rng)["x"]
    x -= x.mean(axis=(1, 2, 3), keepdims=True)
    lowered, _ = int8(proto, {"x": x + np.float32(0.1)})
    for shift in (-0.1, 0.1):
        (before,), (after,) = (run(p, {"x": x + np.float32(shift)}) for p in (proto, lowered))
        assert relative(before, after) < 0.06
    assert [value.name for value in lowered.graph.input] == ["x"]


def test_a_branch_that_cannot_be_taken_is_not(rng: np.random.Generator, capfd: pytest.CaptureFixture[str]) -> None:
    """As torch.squeeze is exported: one branch runs where the axis is of size 1, the other one elsewhere."""
    squeezed = [node("Squeeze", ["b", "axis"], ["s"]), node("Unsqueeze", ["s", "axis"], ["t"])]
    then, otherwise = branch(squeezed, "t"), branch([node("Identity", ["b"], ["e"])], "e")
    nodes = around([
        node("Shape", ["b"], ["shape"]), node("Gather", ["shape", "axis"], ["size"]),
        node("Equal", ["size", "one"], ["is"]), node("If", ["is"], ["c"], then_branch=then, else_branch=otherwise),
    ])  # fmt: skip
    is_near(model(nodes, {**convs(rng), "axis": np.array([0]), "one": np.array([1])}), images(rng))
    assert capfd.readouterr().err == ""


def test_the_body_of_a_loop_reads_a_relu(rng: np.random.Generator) -> None:
    body = helper.make_graph(
        [node("MatMul", ["s", "wl"], ["p"]), node("Add", ["p", "b"], ["q"]), node("Identity", ["go"], ["on"])], "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("s", TensorProto.FLOAT, None)],
        [info("on", TensorProto.BOOL, []), info("q", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        node("MatMul", ["x", "w1"], ["a"]), node("Relu", ["a"], ["b"]),
        node("Loop", ["times", "yes", "b"], ["c"], body=body), node("MatMul", ["c", "w2"], ["y"]),
    ]  # fmt: skip
    constants = {"w1": rng.standard_normal((8, 16)), "w2": rng.standard_normal((16, 4)), "times": np.array(2)}
    constants |= {"wl": rng.standard_normal((16, 16)) * 0.1, "yes": np.array(True)}
    proto = model(nodes, constants, inputs=[("x", ("N", 8))])
    is_near(proto, {"x": rng.standard_normal((64, 8)).astype(np.float32)})


# -- outputs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [
    ("y", "anchors"), ("x", "y"), ("w1", "y", "b1", "x"), ("y", "scale"), ("a", "y"), ("y", "b", "a"),
], ids=", ".join)  # fmt: skip
def test_outputs_are_constants_inputs_or_in_front_of_a_relu(outputs: tuple[str, ...], rng: np.random.Generator) -> None:
    constants = convs(rng) | {"anchors": [1.0, 2.0, 3.0], "scale": rng.standard_normal((1, 8, 1, 1))}
    proto = model(around([node("Mul", ["b", "scale"], ["c"])]), constants, outputs=outputs)
    is_near(proto, images(rng))


# -- operators ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("middle", "constants"), [
    (node("Resize", ["b", "", "s"], ["c"], axes=[3, 2], mode="linear"), {"s": [1.5, 2.0]}),
    (node("Resize", ["b", "", "", "s"], ["c"], axes=[-2, -1], mode="cubic"), {"s": np.array([12, 16])}),
    (node("Resize", ["b", "r", "", "s"], ["c"], axes=[2, 3], mode="linear",
          coordinate_transformation_mode="tf_crop_and_resize"), {"s": np.array([8, 8]), "r": [0.1, 0.2, 0.8, 0.9]}),
    (node("Pad", ["b", "s", "", "axes"], ["c"], mode="edge"),
     {"s": np.array([1, 2, 1, 0]), "axes": np.array([-1, -2])}),
    (node("Pad", ["b", "s", "v", "axes"], ["c"]), {"s": np.array([1, 1]), "axes": np.array([3]), "v": 0.5}),
], ids=["scales", "sizes", "roi", "edge", "value"])  # fmt: skip
def test_resize_and_pad_name_their_axes(middle: NodeProto, constants: Values, rng: np.random.Generator) -> None:
    """onnxruntime moves them to the layout of its integer kernels and forgets that the axes move, too."""
    is_near(model(around([middle]), {**convs(rng), **constants}, opset=18), images(rng))


@pytest.mark.parametrize("group", [2, 8])
@pytest.mark.parametrize("biased", [True, False])
def test_conv_transpose_in_groups(group: int, biased: bool, rng: np.random.Generator) -> None:
    middle = node("ConvTranspose", ["b", "wt", *(["bt"] if biased else [])], ["t"], group=group, strides=[2, 2])
    constants = {**convs(rng), "wt": rng.standard_normal((8, 8 // group, 3, 3)) * 0.3, "bt": rng.standard_normal(8)}
    is_near(model(around([middle, node("Relu", ["t"], ["c"])]), constants), images(rng))


@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (-3.0, -0.5), (0.0, 2.0)])
def test_a_clip_to_a_range_without_zero_stays(low: float, high: float, rng: np.random.Generator) -> None:
    """The quantiser takes it for the range of an integer, and that always has 0 in it."""
    proto = model(around([node("Clip", ["a", "low", "high"], ["c"])]), {**convs(rng), "low": low, "high": high})
    notes = is_near(proto, images(rng))
    assert ("Clip" in "".join(notes)) == (low > 0 or high < 0)


@pytest.mark.parametrize("mask", [-1e9, float(np.finfo(np.float32).min), -1e4, -np.inf])
def test_masks_leave_room_for_scores(mask: float, rng: np.random.Generator) -> None:
    nodes = [
        node("MatMul", ["x", "wq"], ["q"]), node("Transpose", ["x"], ["k"], perm=[0, 2, 1]),
        node("MatMul", ["q", "k"], ["s"]), node("Where", ["seen", "s", "mask"], ["m"], name="hide"),
        node("Softmax", ["m"], ["p"], name="weigh"), node("MatMul", ["p", "x"], ["z"]),
        node("MatMul", ["z", "wo"], ["y"]),
    ]  # fmt: skip
    constants = {"wq": rng.standard_normal((8, 8)) * 0.3, "wo": rng.standard_normal((8, 8)), "mask": mask}
    proto = model(nodes, constants | {"seen": np.tril(np.ones((6, 6))) > 0}, inputs=[("x", ("N", 6, 8))])
    notes = is_near(proto, {"x": rng.standard_normal((32, 6, 8)).astype(np.float32)})
    assert "Where 'hide', Softmax 'weigh'" in notes[0]


@pytest.mark.parametrize(
    "attributes", [{"alpha": 0.5}, {"beta": 2.0}, {"alpha": 0.5, "beta": -1.0, "transB": 1}], ids=str
)
@pytest.mark.parametrize("shape", [(32,), (1, 32), (1,), ()], ids=str)
def test_gemms_scale_their_operands(
    attributes: dict[str, Any], shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    nodes = [
        node("Gemm", ["x", "w1", "b"], ["a"], **attributes),
        node("Relu", ["a"], ["h"]),
        node("Gemm", ["h", "w2", "b2"], ["y"]),
    ]
    weights = rng.standard_normal((16, 32))
    constants = {"w1": weights.T if "transB" in attributes else weights, "w2": rng.standard_normal((32, 4))}
    constants |= {"b": np.full(shape, 3.0) + rng.standard_normal(shape), "b2": rng.standard_normal((1, 4))}
    proto = model(nodes, constants, inputs=[("x", ("N", 16))])
    is_near(proto, {"x": rng.standard_normal((64, 16)).astype(np.float32)})


# -- older models and functions ----------------------------------------------------------------


@pytest.mark.parametrize("opset", [11, 17])
def test_local_functions_are_written_out(opset: int, rng: np.random.Generator) -> None:
    """onnx's converter drops them, and so would the quantiser leave what is in them alone."""
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    inner = [node("Conv", ["i", "w"], ["q"]), node("Relu", ["q"], ["o"])]
    functions = [
        helper.make_function("own", "Layer", ["i", "w"], ["o"], inner, opsets[:1]),
        helper.make_function("own", "Twice", ["i", "w"], ["o"], [
            node("Layer", ["i", "w"], ["q"], domain="own"), node("Layer", ["q", "w"], ["o"], domain="own")], opsets),
    ]  # fmt: skip
    nodes = around([node("Twice", ["b", "w9"], ["c"], domain="own")])
    proto = model(nodes, {**convs(rng), "w9": rng.standard_normal((8, 8, 1, 1))}, opset=opset, functions=functions)
    lowered, _ = int8(proto, images(rng))
    assert not lowered.functions and "own" not in {entry.domain for entry in lowered.opset_import}
    is_near(proto, images(rng))


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_old_softmaxes_take_all_axes_behind_theirs(op: str, rng: np.random.Generator) -> None:
    proto = model(around([node(op, ["b"], ["c"], axis=2)]), convs(rng), opset=11, ir_version=4)
    # Where two numbers are as good as equal, the largest is another one in int8.
    is_near(proto, images(rng), 0.3 if op == "Hardmax" else 0.06)


def test_the_path_of_modules_stays_what_it_was() -> None:
    """onnxruntime's tools put a folder on it whose modules have names like 'benchmark'."""
    text = """
import sys
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from pcns_onnx.data.dataset import open_data
from pcns_onnx.graph import Graph
from pcns_onnx.rewrite.lowering.quantize import in_precision
from pcns_onnx.runtime.samples import Samples

sizes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in (("x", 8), ("y", 4))]
weights = numpy_helper.from_array(np.eye(8, 4, dtype=np.float32), "w")
graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", sizes[:1], sizes[1:], [weights])
graph = Graph.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
before = list(sys.path)
in_precision(sys.argv[1], graph, Samples(open_data(np.ones((8, 8), np.float32), graph.inputs), 8))
assert sys.path == before
"""
    for kind in ("int8", "fp16"):
        done = subprocess.run(
            [sys.executable, "-c", text, kind], capture_output=True, text=True, cwd=Path(__file__).parents[2]
        )
        assert (done.returncode, done.stderr) == (0, "")
