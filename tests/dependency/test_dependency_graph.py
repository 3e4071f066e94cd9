"""The walk over the graph: layers, groups, readers, activations, costs; and odd but valid models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from builders.chains import BACKS, CHAINS, CHW, FRONTS, HALF, LAYERS, C, Chain, K, node, random
from builders.models import Array, build, relative, run
from pcns_onnx import inspect, shrink
from pcns_onnx.dependency.classes import Classes
from pcns_onnx.dependency.dependency_graph import DependencyGraph, build_dependency_graph
from pcns_onnx.graph import Graph, Program
from pcns_onnx.rewrite.channels import narrow
from pcns_onnx.rewrite.explicit_bias import explicit_biases
from pcns_onnx.rewrite.patch import apply
from pcns_onnx.runtime.engine import Engine

H = 16
"""Hidden width of the models that are shrunk."""


def surveyed(model: onnx.ModelProto, feeds: Mapping[str, Sequence[int]] | None = None) -> tuple[Graph, DependencyGraph]:
    graph, _ = explicit_biases(Graph.load(model))
    return graph, build_dependency_graph(graph, feeds)


def graph_model(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Array],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
) -> onnx.ModelProto:
    """A checked model with any number of float inputs and outputs."""
    made = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def outputs_of(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    return dict(Engine().session(Program(model.SerializeToString())).run(feeds))


def rows(count: int, width: int, rank: int = 3) -> Array:
    """Samples that span only `rank` directions: a wide layer on them has neurons to spare."""
    generator = np.random.default_rng(5)
    basis = generator.standard_normal((rank, width))
    return (generator.standard_normal((count, rank)) @ basis).astype(np.float32)


def two_heads() -> onnx.ModelProto:
    nodes = [
        node("Gemm", "x W0 b0", "h", name="trunk"),
        node("Relu", "h", "r"),
        node("Gemm", "r W1", "a", name="head a"),
        node("Gemm", "r W2 b2", "b", name="head b", transB=1),
    ]
    weights = {"W0": random(6, H), "b0": random(H), "W1": random(H, 3), "W2": random(2, H), "b2": random(2)}
    return graph_model(nodes, weights, {"x": ("N", 6)}, {"a": ("N", 3), "b": ("N", 2)})


# -- groups and readers ----------------------------------------------------------------------


def test_a_group_has_all_its_readers() -> None:
    _, dependencies = surveyed(two_heads())
    trunk, a, b = dependencies.groups
    assert (trunk.name, trunk.width, trunk.readers, trunk.frozen) == ("trunk", H, ("head a", "head b"), None)
    assert (a.frozen, b.frozen) == ("it feeds the model's output 'a'", "it feeds the model's output 'b'")
    assert dependencies.shrinkable == (trunk,)
    assert (trunk.writers, trunk.unit, trunk.coupled) == (("trunk",), 1, False)
    assert (
        dependencies.reads(dependencies.layer("head b")) == (trunk,)
        and dependencies.reads(dependencies.layer("trunk")) == ()
    )
    assert dependencies.writes(dependencies.layer("trunk")) == trunk
    labels = np.concatenate([group.labels for group in dependencies.groups])
    np.testing.assert_array_equal(labels, np.arange(H + 3 + 2))


def test_groups_stand_in_topological_order_with_their_own_labels() -> None:
    nodes = [node("Gemm", f"h{i} W{i}", f"h{i + 1}") for i in range(4)]
    weights = {f"W{i}": random(a, b) for i, (a, b) in enumerate(((5, 6), (6, 7), (7, 8), (8, 9)))}
    nodes[0].input[0], nodes[-1].output[0] = "x", "y"
    _, dependencies = surveyed(build(nodes, weights, ("N", 5)))
    assert [g.name for g in dependencies.groups] == ["h1", "h2", "h3", "y"]
    assert [g.readers for g in dependencies.groups] == [("h2",), ("h3",), ("y",), ()]
    assert [g.width for g in dependencies.groups] == [6, 7, 8, 9]


DECOMPOSED_GELU = CHAINS["gelu erf"]
ACTIVATIONS: dict[str, tuple[Chain, str, list[str]]] = {
    "none": (Chain(), "h", []),
    "relu": (Chain([node("Relu", "h")]), "m", ["Relu"]),
    "silu": (CHAINS["silu"], "m", ["Sigmoid", "Mul"]),
    "hardswish": (CHAINS["hardswish decomposed"], "m", ["HardSigmoid", "Mul"]),
    "mish": (CHAINS["mish decomposed"], "m", ["Softplus", "Tanh", "Mul"]),
    "gelu erf": (DECOMPOSED_GELU, "m", ["Div", "Erf", "Add", "Mul", "Mul"]),
    "gelu tanh": (CHAINS["gelu tanh"], "m", ["Pow", "Mul", "Add", "Mul", "Tanh", "Add", "Mul", "Mul"]),
    "relu and pool": (
        Chain([node("Relu", "h", "r"), node("MaxPool", "r", kernel_shape=[1, 1])]),
        "r",
        ["Relu", "MaxPool"],
    ),
    "pool and relu": (
        Chain([node("MaxPool", "h", "p", kernel_shape=[1, 1]), node("Relu", "p")]),
        "h",
        ["MaxPool", "Relu"],
    ),
    "relu and flatten": (Chain([node("Relu", "h", "r"), node("Flatten", "r")], back="wide"), "r", ["Relu", "Flatten"]),
    "relu and norm": (CHAINS["norm behind relu"], "a", ["Relu", "BatchNormalization"]),
    "prelu per channel": (CHAINS["prelu per channel"], "m", ["PRelu"]),
    "relu and scale": (
        Chain([node("Relu", "h", "r"), node("Mul", "r c")], {"c": random(C, 1, 1)}),
        "r",
        ["Relu", "Mul"],
    ),
    "dropout": (Chain([node("Relu", "h", "r"), node("Dropout", "r")]), "m", ["Relu", "Dropout"]),
    "relu and its pool": (
        Chain([node("Relu", "h", "r"), node("MaxPool", "r", "p", kernel_shape=[1, 1]), node("Add", "r p")]),
        "r",
        ["Relu", "MaxPool", "Add"],
    ),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_activation_ends_where_the_pointwise_nodes_meet_again(name: str) -> None:
    chain, activation, path = ACTIVATIONS[name]
    graph, dependencies = surveyed(chain.build())
    group = dependencies.groups[0]
    assert group.activation == activation
    assert [graph.node(key).op for key in group.path] == path


def test_the_activation_of_the_last_layer_is_the_output() -> None:
    model = build([*FRONTS["gemm"][1], node("Relu", "h", "y")], FRONTS["gemm"][2], ("N", 5))
    _, dependencies = surveyed(model)
    assert dependencies.groups[0].activation == "y"


def test_the_activation_of_two_branches_is_the_layer_itself() -> None:
    nodes = [
        *FRONTS["gemm"][1],
        node("Relu", "h", "r"),
        node("Tanh", "h", "t"),
        node("Gemm", "r W1", "y1"),
        node("Gemm", "t W1", "y2"),
        node("Add", "y1 y2", "y"),
    ]
    graph, dependencies = surveyed(build(nodes, {**FRONTS["gemm"][2], "W1": random(C, K)}, ("N", 5)))
    group = dependencies.groups[0]
    assert (group.activation, group.frozen, group.readers) == ("h", None, ("y1", "y2"))
    check_slice(graph, dependencies, rows(4, 5))


def check_slice(graph: Graph, dependencies: DependencyGraph, x: Array) -> Graph:
    """Cut the first group to half where the readers ignore the rest; the outputs must stay."""
    group = dependencies.shrinkable[0]
    kept = group.labels[::2]
    zeroed = graph.copy()
    for layer in dependencies.layers:
        weight = graph.constant(graph.node(layer.key).inputs[layer.linear.weight])
        assert weight is not None
        unread = np.isin(layer.linear.reads, np.setdiff1d(group.labels, kept))
        axis = layer.linear.weight_axes[1]
        mask = ~unread.reshape([-1 if a == axis else 1 for a in range(weight.ndim)])
        zeroed.set_input(layer.key, layer.linear.weight, weight * mask)
    small = apply(zeroed, narrow(zeroed, dependencies, {group.name: kept}))
    small.prune()
    small.check(full=True)
    for name, expected in outputs_of(zeroed.proto, {"x": x}).items():
        assert relative(expected, outputs_of(small.proto, {"x": x})[name]) < 1e-5
    return small


# -- costs -----------------------------------------------------------------------------------

COSTS: dict[str, tuple[onnx.ModelProto, list[tuple[int, int]], list[tuple[str, int, int]]]] = {
    "gemm": (LAYERS["gemm"], [(5 * C, 5 * C + C), (C * K, C * K + K)], []),
    "gemm without bias": (LAYERS["gemm no bias"], [(5 * C, 5 * C), (C * K, C * K)], []),
    "matmul 3d": (LAYERS["matmul 3d"], [(4 * 5 * C, 5 * C + C), (4 * C * K, C * K + K)], []),
    "matmul 4d": (LAYERS["matmul 4d"], [(6 * 5 * C, 5 * C + C), (6 * C * K, C * K + K)], []),
    "conv": (
        Chain([node("Relu", "h")]).build(),
        [(36 * C * 27, C * 27 + C), (16 * K * C * 9, K * C * 9 + K)],
        [],
    ),
    "conv stride dilation": (  # 19 + 1 + 3 -> (23 - 5) // 2 + 1 = 10; 10 + 4 -> 5
        LAYERS["conv1d stride dilation"],
        [(10 * C * 9, C * 9 + C), (5 * K * C * 3, K * C * 3 + K)],
        [],
    ),
    "conv fixed batch": (
        Chain([node("Relu", "h")], batch=4).build(),
        [(36 * C * 27, C * 27 + C), (16 * K * C * 9, K * C * 9 + K)],
        [],
    ),
    "depthwise": (
        Chain([node("Conv", "h D d", group=C, name="dw")], {"D": random(C, 1, 1, 1), "d": random(C)}).build(),
        [(36 * C * 27, C * 27 + C), (16 * K * C * 9, K * C * 9 + K)],
        [("dw", 36 * C, 2 * C)],
    ),
    "grouped": (
        Chain([node("Conv", "h D", group=2, name="two")], {"D": random(C, C // 2, 3, 1)}, back="conv").build(),
        [(36 * C * 27, C * 27 + C), (24 * C * (C // 2) * 3, C * C // 2 * 3), (8 * K * C * 9, K * C * 9 + K)],
        [],
    ),
    "transposed": (
        Chain([node("ConvTranspose", "h D", name="up", strides=[2, 2])], {"D": random(C, C, 2, 2)}).build(),
        [(36 * C * 27, C * 27 + C), (36 * C * C * 4, C * C * 4), (100 * K * C * 9, K * C * 9 + K)],
        [],
    ),
    "attention": (
        build(
            [node("MatMul", "x W", "q", name="q"), node("Transpose", "x", "k", perm=[0, 2, 1]),
             node("MatMul", "q k", "y", name="scores")],
            {"W": random(5, 5)},
            ("N", 4, 5),
        ),
        [(4 * 5 * 5, 5 * 5 + 5)],
        [("scores", 4 * 4 * 5, 0)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COSTS)
def test_costs_are_those_counted_by_hand(name: str) -> None:
    model, layers, rest = COSTS[name]
    _, dependencies = surveyed(model)
    assert [(layer.macs, layer.parameters) for layer in dependencies.layers] == layers
    assert [(node.name, node.macs, node.parameters) for node in dependencies.unsolved] == rest


def test_what_is_not_solved_for_has_its_own_reason() -> None:
    nodes = [node("Conv", "x D", "h", group=3, name="dw"), node("Conv", "h W1", "y", name="pw")]
    model = build(nodes, {"D": random(3, 1, 3, 3), "W1": random(K, 3, 1, 1)}, ("N", 3, 6, 6))
    _, dependencies = surveyed(model)
    found = [(node.name, node.reason) for node in dependencies.unsolved]
    assert found == [("dw", "Conv 'dw' filters the model's own channels one by one")]
    shown = {layer.name: layer for layer in inspect(model).layers}
    assert (shown["dw"].reason, shown["dw"].macs) == (found[0][1], 16 * 27)


def test_layers_of_open_size_are_listed_without_costs() -> None:
    nodes = [node("Conv", "x D", "h", group=3, name="dw"), node("Conv", "h W1", "y", name="pw")]
    weights = {"D": random(3, 1, 3, 3), "W1": random(K, 3, 1, 1)}
    _, dependencies = surveyed(build(nodes, weights, ("N", 3, "H", "W")))
    assert [(layer.name, layer.macs) for layer in dependencies.layers] == [("pw", 0)]
    assert [(node.name, node.macs) for node in dependencies.unsolved] == [("dw", 0)]


# -- shared initializers ---------------------------------------------------------------------


def tied(shared: str) -> onnx.ModelProto:
    """Three Gemms in a row; the first two share their weight, their bias, or both."""
    weight, bias = ("W" if "weight" in shared else "W1"), ("b" if "bias" in shared else "b1")
    nodes = [
        node("Gemm", "x W b", "h", name="first"),
        node("Relu", "h", "r"),
        node("Gemm", f"r {weight} {bias}", "g", name="second"),
        node("Tanh", "g", "t"),
        node("Gemm", "t W2 b2", "y", name="third"),
    ]
    made = {"W": random(H, H), "b": random(H), "W2": random(H, K), "b2": random(K)}
    made |= {"W1": random(H, H) + 1} if weight == "W1" else {}
    made |= {"b1": random(H) + 1} if bias == "b1" else {}
    return build(nodes, made, ("N", H))


def test_a_bias_of_two_weights_comes_apart() -> None:
    graph, dependencies = surveyed(tied("bias"))
    small = check_slice(graph, dependencies, rows(5, H))
    after = build_dependency_graph(small)
    assert [group.width for group in after.groups] == [H // 2, H, K]
    second = small.node(after.layer("second").key)
    weight, bias = (small.constant(name) for name in second.inputs[1:])
    assert weight is not None and bias is not None
    assert weight.shape == (H // 2, H) and bias.shape == (H,)


def test_layers_with_one_bias_are_shrunk_end_to_end() -> None:
    model = tied("bias")
    x = rows(200, H)
    result = shrink(model, x, width=0.5, refine=0)
    assert {name: group.width for name, group in result.plan.groups.items()} == {"first": H // 2, "second": H // 2}
    assert relative(run(model, x), run(result.model, x)) < 0.3
    assert result.report.after.macs < 0.55 * result.report.before.macs


@pytest.mark.parametrize("shared", ["weight", "weight and bias"])
def test_a_weight_that_reads_the_input_elsewhere_stays(shared: str) -> None:
    _, dependencies = surveyed(tied(shared))
    first, second = (dependencies.layer(name) for name in ("first", "second"))
    assert dependencies.uses(second) == dependencies.uses(first) == (first, second)
    reason = dependencies.writes(first).frozen
    assert reason is not None and "share the weight 'W'" in reason
    assert second.is_repeated and second.has_first_bias is ("bias" in shared)


def test_one_constant_may_stand_for_several_roles() -> None:
    """The same vector as a bias, as a slope and as an addend behind a pool."""
    nodes = [
        node("Conv", "x W0 v", "h", pads=[1] * 4),
        node("BatchNormalization", "h v v v p", "n"),
        node("Relu", "n", "r"),
        node("BatchNormalization", "r v v v p", "m"),
        *BACKS["conv"][0],
    ]
    weights = {"W0": random(C, 3, 3, 3), "v": random(C), "p": random(C) ** 2 + 1, **BACKS["conv"][1]}
    graph, dependencies = surveyed(build(nodes, weights, ("N", 3, 6, 6)))
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)
    check_slice(graph, dependencies, x)


def test_a_constant_that_is_also_an_output_is_left_whole() -> None:
    model = two_heads()
    model.graph.output.append(helper.make_tensor_value_info("b0", TensorProto.FLOAT, [H]))
    graph, dependencies = surveyed(model)
    small = check_slice(graph, dependencies, rows(3, 6))
    assert outputs_of(small.proto, {"x": rows(3, 6)})["b0"].shape == (H,)


# -- odd but valid ---------------------------------------------------------------------------


def test_unnamed_layers_go_by_their_outputs() -> None:
    _, dependencies = surveyed(LAYERS["matmul 3d"])
    assert [layer.name for layer in dependencies.layers] == ["h", "y"]
    assert [layer.output for layer in dependencies.layers] == ["h", "y"]
    assert [layer.source for layer in dependencies.layers] == ["x", "m"]


def test_a_layer_named_like_another_ones_output_is_told_apart() -> None:
    model = tied("")
    for item, name in zip(model.graph.node, ("g", "", "", "", ""), strict=True):
        item.name = name
    _, dependencies = surveyed(model)
    assert [layer.name for layer in dependencies.layers] == ["g", "g_1", "y"]


def test_initializers_may_be_graph_inputs() -> None:
    nodes = [*FRONTS["conv"][1], node("Relu", "h"), *BACKS["conv"][0]]
    weights = {**FRONTS["conv"][2], **BACKS["conv"][1]}
    model = build(nodes, weights, ("N", 3, 6, 6), opset=9, ir_version=4)
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in weights.items()
    )
    onnx.checker.check_model(model, full_check=True)
    graph, dependencies = surveyed(model)
    assert [spec.name for spec in graph.inputs] == ["x"]
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)
    small = check_slice(graph, dependencies, x)
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in small.proto.graph.input}
    assert shapes["W0"] == [C // 2, 3, 3, 3] and shapes["W1"] == [K, C // 2, 3, 3]


@pytest.mark.parametrize("opset", range(7, 25))
def test_every_opset_that_onnxruntime_runs(opset: int) -> None:
    nodes = [
        *FRONTS["conv"][1],
        node("LeakyRelu", "h", "a", alpha=0.1),
        node("MaxPool", "a", "p", kernel_shape=[2, 2]),
        node("Flatten", "p"),
        node("Gemm", "m W1 b1", "g", transB=1),
        node("MatMul", "g W2", "s"),
        node("Add", "s b2", "y"),
    ]
    weights = {**FRONTS["conv"][2], "W1": random(6, C * 25), "b1": random(6), "W2": random(6, K), "b2": random(K)}
    model = build(nodes, weights, ("N", 3, 6, 6), opset=opset, ir_version=10 if opset > 21 else 8)
    graph, dependencies = surveyed(model)
    assert [group.width for group in dependencies.shrinkable] == [C, 6]
    check_slice(graph, dependencies, np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32))


def test_stale_shapes_are_not_believed() -> None:
    model = Chain([node("Relu", "h", "r"), node("Flatten", "r")], back="wide").build()
    for name, shape in (("h", ("N", 99, 6, 6)), ("m", ("N", 7)), ("gone", (1,))):
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    graph, dependencies = surveyed(model)
    assert dependencies.shapes["h"] == (2, C, 6, 6) and dependencies.groups[0].frozen is None
    small = apply(graph, narrow(graph, dependencies, {"h": dependencies.groups[0].labels[:3]}))
    small.prune()
    small.check(full=True)
    left = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in small.proto.graph.value_info
    }
    assert left == {"h": [0, 3, 6, 6], "m": [0, 108]}


OPEN = ("N", 3, "H", "W")


def test_open_sizes_pass_a_global_pool() -> None:
    nodes = [*FRONTS["conv"][1], node("Relu", "h", "r"), node("GlobalAveragePool", "r", "p"), node("Flatten", "p")]
    model = build([*nodes, *BACKS["gemm"][0]], {**FRONTS["conv"][2], **BACKS["gemm"][1]}, OPEN)
    graph, dependencies = surveyed(model)
    assert dependencies.groups[0].frozen is None
    check_slice(graph, dependencies, np.random.default_rng(0).standard_normal((2, 3, 9, 7)).astype(np.float32))


def test_open_sizes_stop_at_a_flatten_unless_samples_show_them() -> None:
    model = build(
        [*FRONTS["conv"][1], node("Flatten", "h"), *BACKS["wide"][0]], {**FRONTS["conv"][2], **BACKS["wide"][1]}, OPEN
    )
    _, dependencies = surveyed(model)
    assert dependencies.groups[0].frozen == "Flatten 'm' has a shape that cannot be inferred"
    assert dependencies.layer("y").macs == CHW * K and dependencies.layer("h").macs == 0
    graph, dependencies = surveyed(model, {"x": (7, 3, 6, 6)})
    assert dependencies.groups[0].frozen is None and dependencies.layer("h").macs == 36 * C * 27
    check_slice(graph, dependencies, np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32))


def test_open_sizes_are_read_from_the_samples_end_to_end() -> None:
    model = build(
        [*FRONTS["conv"][1], node("Flatten", "h"), *BACKS["wide"][0]], {**FRONTS["conv"][2], **BACKS["wide"][1]}, OPEN
    )
    x = np.random.default_rng(0).standard_normal((60, 3, 6, 6)).astype(np.float32)
    assert [layer.reason is None for layer in inspect(model).layers] == [False, False]
    result = shrink(model, x, width=0.5, refine=0)
    assert {name: group.width for name, group in result.plan.groups.items()} == {"h": C // 2}


@pytest.mark.parametrize("method", ["obs", "interpolative", "pcns"])
def test_samples_may_differ_in_size(method: str) -> None:
    nodes = [
        *FRONTS["conv"][1],
        node("Relu", "h", "r"),
        node("Conv", "r W2", "g"),
        node("Relu", "g", "a"),
        node("GlobalAveragePool", "a", "p"),
        node("Flatten", "p"),
        *BACKS["gemm"][0],
    ]
    model = build(nodes, {**FRONTS["conv"][2], **BACKS["gemm"][1], "W2": random(C, C, 3, 3)}, OPEN)
    generator = np.random.default_rng(0)
    data = [{"x": generator.standard_normal((16, 3, s, s)).astype(np.float32)} for s in (12, 8, 12, 9, 7, 12) * 5]
    result = shrink(model, data, width=0.5, method=method, refine=0)
    assert {name: group.width <= C // 2 for name, group in result.plan.groups.items()} == {"h": True, "g": True}
    cosine = result.report.agreement.outputs[0].cosine
    assert cosine is not None and cosine > (0.99 if method != "pcns" else 0.9)


@pytest.mark.parametrize("samples", [64, 1025])
def test_sequences_whose_batch_is_not_the_first_axis(samples: int) -> None:
    """All rows count, and a last batch of one sample is not read out of bounds."""
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]),
        node("MatMul", "t W0", "h"),
        node("Relu", "h", "r"),
        node("MatMul", "r W1", "q"),
        node("Transpose", "q", "y", perm=[1, 0, 2]),
    ]
    model = build(nodes, {"W0": random(5, H), "W1": random(H, K)}, ("N", 4, 5))
    graph, dependencies = surveyed(model)
    check_slice(graph, dependencies, rows(12, 5).reshape(3, 4, 5))
    x = rows(4 * samples, 5).reshape(samples, 4, 5)
    result = shrink(model, x, width=0.5, holdout=0.0, refine=0)
    assert [fit.rows for group in result.report.groups for fit in group.fits.values()] == [4 * samples]
    assert relative(run(model, x), run(result.model, x)) < 0.1


def test_many_inputs_and_outputs() -> None:
    nodes = [
        node("Gemm", "a W0", "p", name="left"),
        node("Relu", "p", "p1"),
        node("Gemm", "p1 W1", "p2", name="left out"),
        node("MatMul", "b W2", "q", name="right"),
        node("Sigmoid", "q", "q1"),
        node("Mul", "q q1", "q2"),
        node("MatMul", "q2 W3", "q3", name="right out"),
        node("Add", "p2 q3", "both"),
        node("Mul", "p2 s", "scaled"),
    ]
    weights = {"W0": random(6, H), "W1": random(H, K), "W2": random(7, H), "W3": random(H, K), "s": HALF}
    model = graph_model(nodes, weights, {"a": ("N", 6), "b": ("N", 7)}, {"both": ("N", K), "scaled": ("N", K)})
    _, dependencies = surveyed(model)
    assert [(group.writers, group.frozen) for group in dependencies.groups] == [
        (("left",), None),
        (("left out", "right out"), "it feeds the model's output 'scaled'"),
        (("right",), None),
    ]
    data = {"a": rows(120, 6), "b": rows(120, 7)}
    result = shrink(model, data, width=0.5, refine=0)
    before, after = outputs_of(model, data), outputs_of(result.model, data)
    assert list(after) == ["both", "scaled"]
    assert all(relative(before[name], after[name]) < 0.1 for name in before)
    assert result.report.after.macs == result.report.before.macs // 2


def test_one_constant_reader_and_no_named_batch() -> None:
    """Scalars without axes as bias, slope and addend; an input without a name for its batch."""
    nodes = [
        node("Gemm", "x W0 s", "h"),
        node("PRelu", "h s", "p"),
        node("Add", "p s", "m"),
        node("Gemm", "m W1 s", "y"),
    ]
    graph, dependencies = surveyed(build(nodes, {"W0": random(5, C), "W1": random(C, K), "s": HALF}, (None, 5)))  # type: ignore[arg-type]
    small = check_slice(graph, dependencies, rows(4, 5))
    value = small.constant("s")
    assert value is not None and value.shape == ()


# -- end to end ------------------------------------------------------------------------------


def test_several_readers_are_shrunk_end_to_end() -> None:
    model, x = two_heads(), rows(200, 6)
    result = shrink(model, x, width=0.5, refine=0)
    assert [name for name in result.plan.groups] == ["trunk"]
    before, after = outputs_of(model, {"x": x}), outputs_of(result.model, {"x": x})
    assert all(relative(before[name], after[name]) < 0.1 for name in ("a", "b"))
    assert result.report.after.macs == result.report.before.macs // 2
    assert {name for item in result.report.left_alone for name in item.layers} == {"head a", "head b"}


def weights_as_constant_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    made = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer]
    nodes = [*made, *model.graph.node]
    del model.graph.initializer[:]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def weights_behind_identities(model: onnx.ModelProto) -> onnx.ModelProto:
    """What PyTorch's first exporter writes where two constants are equal."""
    nodes = []
    for tensor in model.graph.initializer:
        nodes.append(node("Identity", f"{tensor.name}.stored", tensor.name))
        tensor.name += ".stored"
    nodes += list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def weights_behind_transposes(model: onnx.ModelProto) -> onnx.ModelProto:
    """What both exporters write for nn.Linear on sequences when they are told not to fold."""
    nodes = []
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.ndim == 2:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value.T), f"{name}.stored"))
            nodes.append(node("Transpose", f"{name}.stored", name, perm=[1, 0]))
    nodes += list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


STORED: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "constant nodes": weights_as_constant_nodes,
    "identities": weights_behind_identities,
    "transposes": weights_behind_transposes,
}


@pytest.mark.parametrize("how", STORED)
@pytest.mark.parametrize("rank", [2, 3])
def test_weights_are_found_however_they_are_stored(how: str, rank: int) -> None:
    plain = LAYERS["matmul add" if rank == 2 else "matmul 3d"]
    model = onnx.ModelProto()
    model.CopyFrom(plain)
    model = STORED[how](model)
    onnx.checker.check_model(model, full_check=True)
    x = rows(200, 5).reshape(200 if rank == 2 else 50, *((4,) if rank == 3 else ()), 5)
    np.testing.assert_array_equal(run(model, x), run(plain, x))
    result = shrink(model, x, width=0.5, refine=0)
    assert {name: group.width for name, group in result.plan.groups.items()} == {"h": C // 2}
    half = C // 2
    assert result.report.after.parameters == Graph.load(result.model).parameters == 5 * half + half + half * K + K
    assert result.report.after.bytes < result.report.before.bytes
    assert relative(run(model, x), run(result.model, x)) < 0.5


# -- classes ---------------------------------------------------------------------------------


def test_ties_merge_labels_into_classes() -> None:
    classes = Classes()
    a, b, c = classes.fresh(4), classes.fresh(4), classes.fresh(2)
    assert (a.tolist(), b.tolist(), c.tolist()) == ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9])
    np.testing.assert_array_equal(classes.of(np.array([[3, -1], [9, 4]])), [[3, -1], [9, 4]])
    classes.tie(b[:2], c)
    classes.tie(a, b)
    classes.tie(a[:1], a[:1])
    assert classes.roots.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, -1]
    later = classes.fresh(1)
    classes.tie(later, c[1:])
    assert classes.of(later).tolist() == [1]


def test_an_axis_along_which_a_class_does_not_change_has_size_one() -> None:
    classes = Classes()
    labels = classes.fresh(6).reshape(1, 2, 3)
    np.testing.assert_array_equal(classes.compact(labels), labels)
    classes.tie(labels[:, 0], labels[:, 1])  # two heads of three dimensions
    assert classes.compact(labels).tolist() == [[[0, 1, 2]]]
    classes.tie(labels[:, 0, :2], labels[:, 0, 1:])
    assert classes.compact(labels).tolist() == [[[0]]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_classes_are_those_of_union_and_find(pairs: list[tuple[int, int]]) -> None:
    classes, groups = Classes(), {i: {i} for i in range(20)}
    classes.fresh(20)
    for a, b in pairs:
        classes.tie(np.array([a]), np.array([b]))
        merged = groups[a] | groups[b]
        groups |= dict.fromkeys(merged, merged)
    assert classes.roots[:-1].tolist() == [min(groups[i]) for i in range(20)]


def test_every_class_has_one_owner() -> None:
    model = two_heads()
    _, dependencies = surveyed(model)
    assert dependencies.owner.tolist() == [0] * H + [1] * 3 + [2] * 2 + [3]
