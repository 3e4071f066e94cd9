"""Constants that nodes make of constants are seen through, and edits leave everything else alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from ml_dtypes import bfloat16
from onnx import TensorProto, helper, numpy_helper

from builders.models import Array, build, relative, run
from pcns_onnx import NothingToShrinkError, shrink
from pcns_onnx.dependency.dependency_graph import build_dependency_graph
from pcns_onnx.graph import Graph, Program
from pcns_onnx.graph.constants import OPERATORS
from pcns_onnx.rewrite.explicit_bias import explicit_biases
from pcns_onnx.runtime.engine import Engine

node = helper.make_node


def normal(*shape: int) -> Array:
    return np.random.default_rng([3, *shape]).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def model_of(nodes: Sequence[onnx.NodeProto], weights: Mapping[str, Array], opset: int = 21) -> onnx.ModelProto:
    """Nodes over stored tensors, beside a chain x -> y that has nothing to do with them."""
    return build([*nodes, node("Relu", ["x"], ["y"])], weights, ["n", 4], opset=opset, ir_version=10)


def in_onnxruntime(graph: Graph, name: str) -> Array:
    """A tensor that needs no input, as onnxruntime computes it."""
    return np.asarray(Engine().session(graph.extract([], [name]).program()).run({})[name])


# -- values ----------------------------------------------------------------------------------

W, V = normal(40, 30), normal(40, 1)
POSITIVE = np.abs(W) + 1
CASES: dict[str, tuple[onnx.NodeProto, dict[str, Array]]] = {
    "Identity": (node("Identity", ["w"], ["c"]), {"w": W}),
    "Cast": (node("Cast", ["w"], ["c"], to=TensorProto.FLOAT16), {"w": W}),
    "CastLike": (node("CastLike", ["w", "v"], ["c"]), {"w": W, "v": ints(1)}),
    "DequantizeLinear": (
        node("DequantizeLinear", ["w", "s", "z"], ["c"], axis=1),
        {"w": (W * 30).astype(np.int8), "s": np.abs(normal(30)), "z": np.arange(30).astype(np.int8)},
    ),
    "DequantizeLinear of int4 in blocks": (
        node("DequantizeLinear", ["w", "s"], ["c"], axis=0, block_size=8),
        {"w": (W * 3).astype(helper.tensor_dtype_to_np_dtype(TensorProto.INT4)), "s": np.abs(normal(5, 30))},
    ),
    "Shape": (node("Shape", ["w"], ["c"], start=1), {"w": W}),
    "Size": (node("Size", ["w"], ["c"]), {"w": W}),
    "ConstantOfShape": (
        node("ConstantOfShape", ["w"], ["c"], value=numpy_helper.from_array(np.array([1.5], np.float16))),
        {"w": ints(3, 0, 2)},
    ),
    "Expand": (node("Expand", ["v", "s"], ["c"]), {"v": V, "s": ints(2, 1, 7)}),
    "Transpose": (node("Transpose", ["w"], ["c"]), {"w": W}),
    "Reshape": (node("Reshape", ["w", "s"], ["c"]), {"w": W, "s": ints(0, -1, 5)}),
    "Unsqueeze": (node("Unsqueeze", ["w", "a"], ["c"]), {"w": W, "a": ints(0, -1)}),
    "Squeeze": (node("Squeeze", ["v", "a"], ["c"]), {"v": V, "a": ints(1)}),
    "Flatten": (node("Flatten", ["w"], ["c"], axis=2), {"w": normal(3, 4, 5, 6)}),
    "Concat": (node("Concat", ["w", "v", "w"], ["c"], axis=1), {"w": W, "v": V}),
    "Slice": (
        node("Slice", ["w", "b", "e", "", "s"], ["c"]),
        {"w": W, "b": ints(30, 1), "e": ints(-100, 1 << 60), "s": ints(-3, 2)},
    ),
    "Gather": (node("Gather", ["w", "i"], ["c"], axis=1), {"w": W, "i": ints(3, -1, 3)}),
    "Add": (node("Add", ["w", "v"], ["c"]), {"w": W, "v": V}),
    "Sub": (node("Sub", ["v", "w"], ["c"]), {"w": W, "v": V}),
    "Mul": (node("Mul", ["w", "w"], ["c"]), {"w": W}),
    "Div": (node("Div", ["w", "v"], ["c"]), {"w": W, "v": V}),
    "Div of integers": (node("Div", ["w", "v"], ["c"]), {"w": ints(-7, 7, 9), "v": ints(2, -2, 5)}),
    "Pow": (node("Pow", ["w", "v"], ["c"]), {"w": POSITIVE, "v": V}),
    "Max": (node("Max", ["w", "v"], ["c"]), {"w": W, "v": V}),
    "Min": (node("Min", ["w", "v", "w"], ["c"]), {"w": W, "v": V}),
    "Mod": (node("Mod", ["w", "v"], ["c"]), {"w": ints(-7, 7, 9), "v": ints(2, -2, 5)}),
    "Range": (node("Range", ["a", "b", "d"], ["c"]), {"a": np.array(3), "b": np.array(-9), "d": np.array(-2)}),
    "Less": (node("Less", ["w", "v"], ["c"]), {"w": W, "v": V}),
    "LessOrEqual": (node("LessOrEqual", ["w", "v"], ["c"]), {"w": ints(1, 2, 3), "v": ints(2, 2, 2)}),
    "Greater": (node("Greater", ["w", "v"], ["c"]), {"w": W, "v": V}),
    "GreaterOrEqual": (node("GreaterOrEqual", ["w", "v"], ["c"]), {"w": ints(1, 2, 3), "v": ints(2, 2, 2)}),
    "Not": (node("Not", ["b"], ["c"]), {"b": W > 0}),
    "And": (node("And", ["b", "d"], ["c"]), {"b": W > 0, "d": V > 0}),
    "Or": (node("Or", ["b", "d"], ["c"]), {"b": W > 0, "d": V > 0}),
    "Xor": (node("Xor", ["b", "d"], ["c"]), {"b": W > 0, "d": V > 0}),
    "Equal": (node("Equal", ["w", "v"], ["c"]), {"w": ints(1, 2, 3), "v": ints(1, 3, 3)}),
    "Where": (node("Where", ["b", "w", "v"], ["c"]), {"b": W > 0, "w": W, "v": V}),
    "Neg": (node("Neg", ["w"], ["c"]), {"w": W}),
    "Sqrt": (node("Sqrt", ["w"], ["c"]), {"w": POSITIVE}),
    "Reciprocal": (node("Reciprocal", ["w"], ["c"]), {"w": POSITIVE}),
    "Exp": (node("Exp", ["w"], ["c"]), {"w": W}),
    "Log": (node("Log", ["w"], ["c"]), {"w": POSITIVE}),
    "Floor": (node("Floor", ["w"], ["c"]), {"w": W}),
    "Ceil": (node("Ceil", ["w"], ["c"]), {"w": W}),
}


def test_every_operator_has_a_case() -> None:
    assert {made.op_type for made, _ in CASES.values()} == OPERATORS


@pytest.mark.parametrize(("made", "weights"), CASES.values(), ids=CASES)
def test_a_derived_constant_has_the_value_that_onnxruntime_computes(
    made: onnx.NodeProto, weights: dict[str, Array]
) -> None:
    graph = Graph.load(model_of([made], weights))
    assert graph.derived == {"c"} and graph.is_constant("c")
    value, expected = graph.constant("c"), in_onnxruntime(graph, "c")
    assert value is not None
    assert value.dtype == expected.dtype and value.shape == expected.shape == graph.shapes()["c"]
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)


def test_older_operators_are_computed_by_their_own_rules() -> None:
    """Before opset 13 axes are attributes; onnx's reference has a DequantizeLinear from opset 19 on."""
    nodes = [
        node("Unsqueeze", ["w"], ["a"], axes=[1]),
        node("Squeeze", ["v"], ["c"], axes=[1]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
    ]
    stored: dict[str, Array] = {
        "q": (W * 30 + 99).astype(np.uint8),
        "s": np.array(0.03, np.float32),
        "z": np.array(7, np.uint8),
    }
    graph = Graph.load(model_of(nodes, {"w": W, "v": V, **stored}, opset=11))
    assert graph.derived == {"a", "c", "d"}
    for name in ("a", "c", "d"):
        np.testing.assert_array_equal(graph.constant(name), in_onnxruntime(graph, name))


def test_a_chain_is_seen_through() -> None:
    """A size that is taken from one weight, halved, and shapes another: no step is stored."""
    nodes = [
        node("Constant", [], ["two"], value=numpy_helper.from_array(ints(2))),
        node("Shape", ["w"], ["s"]),
        node("Div", ["s", "two"], ["half"]),
        node("Reshape", ["v", "half"], ["r"]),
        node("Transpose", ["r"], ["t"]),
        node("Exp", ["t"], ["c"]),
    ]
    graph = Graph.load(model_of(nodes, {"w": W, "v": normal(300)}))
    assert graph.derived == {"s", "half", "r", "t", "c"}
    value = graph.constant("c")
    assert value is not None
    np.testing.assert_allclose(value, in_onnxruntime(graph, "c"), rtol=1e-6)
    assert graph.shapes()["c"] == (15, 20)


def test_a_chain_of_thousands_is_no_deep_recursion() -> None:
    links = [node("Neg", [f"c{i}"], [f"c{i + 1}"]) for i in range(3000)]
    graph = Graph(model_of(links, {"c0": W}))
    np.testing.assert_array_equal(graph.constant("c3000"), W)


def test_what_is_rearranged_is_not_copied() -> None:
    graph = Graph.load(model_of([node("Transpose", ["w"], ["c"])], {"w": W}))
    stored, derived = graph.constant("w"), graph.constant("c")
    assert stored is not None and derived is not None and np.shares_memory(stored, derived)


# -- what is not derived ---------------------------------------------------------------------


def branch(name: str) -> onnx.GraphProto:
    made = node("Constant", [], [name], value_float=1.0)
    return helper.make_graph([made], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [])])


COMPUTED = {
    "from the input": [node("Shape", ["x"], ["c"])],
    "partly from the input": [node("CastLike", ["w", "x"], ["c"])],
    "drawn": [node("RandomNormalLike", ["w"], ["c"])],
    "drawn without an input": [node("RandomUniform", [], ["c"], shape=[2])],
    "by a subgraph": [node("If", ["on"], ["c"], then_branch=branch("a"), else_branch=branch("b"))],
    "by an operator of somebody else": [node("Identity", ["w"], ["c"], domain="acme.corp")],
    "absurdly large": [node("ConstantOfShape", ["huge"], ["c"])],
    "absurdly large, by broadcast": [node("Expand", ["w", "wide"], ["c"])],
    "absurdly large, by many steps": [
        node("Unsqueeze", ["line", "zero"], ["row"]),
        node("Unsqueeze", ["line", "one"], ["column"]),
        node("Mul", ["row", "column"], ["c"]),
    ],
}


@pytest.mark.parametrize("nodes", COMPUTED.values(), ids=COMPUTED)
def test_other_tensors_stay_computed(nodes: list[onnx.NodeProto]) -> None:
    weights = {
        "w": W, "on": np.array(True), "huge": ints(1 << 40, 1 << 20), "wide": ints(1 << 22, 40, 30),
        "line": np.zeros(1 << 16, np.float32), "zero": ints(0), "one": ints(1),
    }  # fmt: skip
    model = model_of([], weights)
    model.graph.node.extend([*nodes, node("Neg", ["c"], ["d"])])
    model.opset_import.append(helper.make_opsetid("acme.corp", 1))
    graph = Graph(model)
    assert not {"c", "d"} & graph.derived
    assert not graph.is_constant("c") and not graph.is_constant("d")
    assert graph.constant("c") is None and graph.constant("d") is None


def test_what_cannot_be_computed_has_no_value() -> None:
    """onnxruntime will say what is wrong with it, if it is used at all."""
    graph = Graph(model_of([node("Gather", ["w", "i"], ["c"]), node("Neg", ["c"], ["d"])], {"w": W, "i": ints(99)}))
    assert graph.constant("c") is None and graph.constant("d") is None


def test_an_absurd_constant_does_no_harm_to_the_rest() -> None:
    weights = {"w1": normal(4, 16), "w2": normal(16, 3), "huge": ints(1 << 40)}
    nodes = [
        node("ConstantOfShape", ["huge"], ["unread"]),
        node("Gemm", ["x", "w1"], ["h"], name="first"),
        node("Relu", ["h"], ["r"]),
        node("Gemm", ["r", "w2"], ["y"]),
    ]
    graph, _ = explicit_biases(Graph.load(build(nodes, weights, ["n", 4])))
    assert [layer.width for layer in build_dependency_graph(graph).layers] == [16, 3]


# -- quantised layers ------------------------------------------------------------------------


def quantised(inputs_too: bool, through: str = "") -> onnx.ModelProto:
    """x -> 4x16 -> Relu -> 16x3, weights in int8; with `inputs_too` each layer's input passes int8 as well."""
    nodes, source = list[onnx.NodeProto](), "x"
    weights: dict[str, Array] = {"scale": np.array(0.05, np.float32), "zero": np.array(0, np.int8)}
    for index, weight in enumerate((normal(4, 16), normal(16, 3))):
        stored = np.round(weight / 0.05).clip(-127, 127).astype(np.int8)
        weights[f"w{index}"] = stored.T if through else stored
        nodes.append(node("DequantizeLinear", [f"w{index}", "scale", "zero"], [f"d{index}"]))
        if through:
            nodes.append(node(through, [f"d{index}"], [f"t{index}"]))
        if inputs_too:
            nodes.append(node("QuantizeLinear", [source, "scale", "zero"], [f"q{index}"]))
            nodes.append(node("DequantizeLinear", [f"q{index}", "scale", "zero"], [f"p{index}"]))
            source = f"p{index}"
        weight_name = f"{'t' if through else 'd'}{index}"
        nodes.append(node("MatMul", [source, weight_name], [f"h{index}"], name=f"layer{index}"))
        source = f"h{index}"
        if index == 0:
            nodes.append(node("Relu", [source], ["r"]))
            source = "r"
    nodes[-1].output[0] = "y"
    return build(nodes, weights, ["n", 4], opset=21, ir_version=10)


@pytest.mark.parametrize("through", ["", "Transpose"])
def test_a_weight_that_is_quantised_alone_is_seen_through(through: str) -> None:
    model, x = quantised(False, through), normal(300, 4)
    result = shrink(model, x, width=0.5, refine=0)
    assert {name: group.width for name, group in result.plan.groups.items()} == {"layer0": 8}
    assert relative(run(model, x), run(result.model, x)) < 0.5
    # What changed is stored as it was (see `test_quantized_weights`).
    assert [n.op_type for n in result.model.graph.node].count("DequantizeLinear") == 2
    stored = {t.name: t for t in result.model.graph.initializer}
    assert [stored[name].data_type for name in ("w0", "w1")] == [TensorProto.INT8] * 2


@pytest.mark.parametrize("through", ["", "Transpose"])
def test_a_layer_that_is_quantised_with_its_input_is_kept_intact(through: str) -> None:
    model = quantised(True, through)
    graph = Graph.load(model)
    assert graph.derived == frozenset() and graph.constant("d0") is None
    with pytest.raises(NothingToShrinkError):
        shrink(model, normal(300, 4), width=0.5, refine=0)


def test_a_weight_shared_with_a_quantised_layer_is_kept_intact() -> None:
    model = quantised(True)
    model.graph.node.append(node("MatMul", ["x", "d0"], ["z"]))
    assert not Graph(model).is_constant("d0")


# -- edits -----------------------------------------------------------------------------------


def two_readers(dtype: Any, made: onnx.NodeProto) -> onnx.ModelProto:
    """Two products by one derived matrix of type `dtype`, and an addition of both."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        made,
        node("Cast", ["x"], ["i"], to=kind),
        node("MatMul", ["i", "c"], ["a"], name="first"),
        node("MatMul", ["i", "c"], ["b"], name="second"),
        node("Sub", ["a", "b"], ["s"]),
        node("Cast", ["s"], ["y"], to=TensorProto.FLOAT),
    ]
    return build(nodes, {"w": normal(30, 4).astype(dtype), "n": ints(4, 30)}, ["n", 4])


TRANSPOSED = node("Transpose", ["w"], ["c"])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, bfloat16])
def test_an_input_is_replaced_for_one_reader_in_the_same_type(dtype: Any) -> None:
    model = two_readers(dtype, TRANSPOSED)
    graph = Graph.load(model)
    graph.set_input("a", 1, 2 * normal(30, 4).T.astype(np.float64))
    first, second = graph.node("a").inputs[1], graph.node("b").inputs[1]
    assert second == "c" and first != "c" and first not in graph.derived
    old, new = graph.constant(second), graph.constant(first)
    assert old is not None and new is not None and new.dtype == old.dtype == dtype
    np.testing.assert_array_equal(new, 2 * old)
    graph.check()
    if dtype != bfloat16:
        x = normal(5, 4)
        assert relative(x.astype(dtype) @ normal(30, 4).T.astype(dtype), run(graph.proto, x)) < 2e-3


def test_a_bias_beside_a_derived_weight_has_its_type() -> None:
    explicit, added = explicit_biases(Graph.load(two_readers(np.float16, TRANSPOSED)))
    assert list(added) == ["a", "b"]
    bias = explicit.constant(explicit.node("a").inputs[1])
    assert bias is not None and bias.dtype == np.float16 and bias.shape == (30,)


def test_prune_drops_what_nobody_reads_any_more_and_nothing_else() -> None:
    nodes = [
        node("Identity", ["w"], ["i"]),
        node("Transpose", ["i"], ["t"]),
        node("Exp", ["t"], ["e"]),
        node("Neg", ["v"], ["out"]),
        node("Relu", ["v"], ["unread"]),
        node("MatMul", ["x", "e"], ["y"]),
    ]
    model = build(nodes, {"w": normal(30, 4), "v": V}, ["n", 4])
    model.graph.output.append(helper.make_tensor_value_info("out", TensorProto.FLOAT, [40, 1]))
    graph = Graph(model)
    graph.prune()
    assert [n.key for n in graph.nodes] == ["i", "t", "e", "out", "unread", "y"]
    graph.set_input("y", 1, normal(4, 30))
    graph.prune()
    assert [n.key for n in graph.nodes] == ["out", "unread", "y"]
    assert graph.constant("w") is None and graph.constant("v") is not None
    graph.check()


def test_parameters_are_those_that_are_stored() -> None:
    nodes = [node("Transpose", ["w"], ["c"]), node("Expand", ["v", "s"], ["d"])]
    graph = Graph(model_of(nodes, {"w": W, "v": V, "s": ints(5, 40, 1)}))
    assert graph.parameters == W.size + V.size


HALVES = {
    "cast": node("Cast", ["w"], ["c"], to=TensorProto.BFLOAT16),
    "constant of shape": node(
        "ConstantOfShape", ["n"], ["c"], value=numpy_helper.from_array(np.array([0.5], dtype=bfloat16))
    ),
}


@pytest.mark.parametrize("made", HALVES.values(), ids=HALVES)
def test_the_twin_of_a_half_precision_constant_is_float32(made: onnx.NodeProto) -> None:
    """onnxruntime has no bfloat16 kernels on CPU: the twin runs there, whatever was stored."""
    nodes = [made, node("Cast", ["x"], ["i"], to=TensorProto.BFLOAT16), node("MatMul", ["i", "c"], ["h"]),
             node("Cast", ["h"], ["y"], to=TensorProto.FLOAT)]  # fmt: skip
    graph = Graph.load(build(nodes, {"w": normal(4, 30), "n": ints(4, 30)}, ["n", 4], opset=21, ir_version=10))
    assert graph.storage == "bfloat16"
    twin = graph.as_float32()
    value, half = twin.constant("c"), graph.constant("c")
    assert value is not None and half is not None and value.dtype == np.float32 and half.dtype == bfloat16
    x = normal(5, 4)
    assert relative(x @ half.astype(np.float32), run(twin.proto, x)) < 1e-2


# -- sizes -----------------------------------------------------------------------------------


def test_a_size_that_is_derived_is_kept_in_step() -> None:
    """The target of a Reshape is multiplied out of constants: narrowing the layer narrows it too."""
    nodes = [
        node("Conv", ["x", "w1"], ["h"], name="first"),
        node("Relu", ["h"], ["r"]),
        node("Mul", ["eight", "area"], ["columns"]),
        node("Concat", ["batch", "columns"], ["target"], axis=0),
        node("Reshape", ["r", "target"], ["f"]),
        node("Gemm", ["f", "w2"], ["y"], transB=1),
    ]
    weights = {"w1": normal(8, 3, 3, 3), "w2": normal(5, 8 * 16), "eight": ints(8), "area": ints(16), "batch": ints(-1)}
    model = build(nodes, weights, ["n", 3, 6, 6])
    x = normal(200, 3, 6, 6)
    result = shrink(model, x, width=0.5, refine=0)
    assert [group.width for group in result.plan.groups.values()] == [4]
    assert run(result.model, x).shape == (200, 5)
    assert "Mul" not in {n.op_type for n in result.model.graph.node}


# -- sparse initializers ---------------------------------------------------------------------


def sparse_model() -> onnx.ModelProto:
    """x -> 16 -> 8 -> a sparse 8x6 -> y."""
    matrix = normal(8, 6) * (normal(6, 8).T > 0)
    at = np.flatnonzero(matrix)
    values = numpy_helper.from_array(matrix.reshape(-1)[at], "s")
    nodes = [
        node("Gemm", ["x", "w0"], ["h"], name="first"),
        node("Relu", ["h"], ["r"]),
        node("Gemm", ["r", "w1"], ["g"], name="second"),
        node("Relu", ["g"], ["q"]),
        node("MatMul", ["q", "s"], ["y"], name="sparse"),
    ]
    graph = helper.make_graph(
        nodes, "sparse",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6])],
        [numpy_helper.from_array(normal(*shape), f"w{i}") for i, shape in enumerate([(4, 16), (16, 8)])],
        sparse_initializer=[helper.make_sparse_tensor(values, numpy_helper.from_array(at, "s.at"), [8, 6])],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_sparse_initializer_is_kept_intact_and_its_reader_left_alone() -> None:
    model, x = sparse_model(), normal(300, 4)
    graph = Graph.load(model)
    assert [spec.name for spec in graph.inputs] == ["x"]
    assert graph.constant("s") is None
    result = shrink(model, x, width=0.5, refine=0)
    assert {name: group.width for name, group in result.plan.groups.items()} == {"first": 8}
    assert {name for left in result.report.left_alone for name in left.layers} == {"second", "sparse"}
    assert list(result.model.graph.sparse_initializer) == list(model.graph.sparse_initializer)
    before = Engine().session(Program(model.SerializeToString())).run({"x": x})["y"]
    assert relative(before, run(result.model, x)) < 0.5
