"""What cannot follow when channels go is left alone, with words that say why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.chains import (
    BATCH,
    CHW,
    FRONTS,
    HALF,
    MODELS,
    NHWC,
    NORM,
    C,
    Chain,
    K,
    ints,
    node,
    random,
)
from builders.intact import SHRUNK
from builders.joins import JOINS
from builders.models import build
from builders.norms import MIXED, PASSED
from builders.topologies import TOPOLOGIES
from builders.transposed import LAYERS as TRANSPOSED
from pcns_onnx.dependency.dependency_graph import build_dependency_graph
from pcns_onnx.graph import Graph
from pcns_onnx.ops import rules
from pcns_onnx.ops.unsupported import BARRIERS, INTACT
from pcns_onnx.rewrite.explicit_bias import explicit_biases
from pcns_onnx.runtime.engine import Engine


def subgraph(op: str) -> onnx.ModelProto:
    """If or Loop whose body reads h without its being an input of the node."""
    typed = helper.make_tensor_value_info
    if op == "If":
        bodies = [
            helper.make_graph([node(inner, "h", out)], out, [], [typed(out, TensorProto.FLOAT, [*"abcd"])])
            for inner, out in (("Relu", "t"), ("Neg", "e"))
        ]
        item = helper.make_node("If", ["unknown"], ["m"], then_branch=bodies[0], else_branch=bodies[1])
    else:
        body = helper.make_graph(
            [node("Identity", "go", "again"), node("Add", "state h", "next")],
            "body",
            [
                typed("i", TensorProto.INT64, []),
                typed("go", TensorProto.BOOL, []),
                typed("state", TensorProto.FLOAT, [*"abcd"]),
            ],
            [typed("again", TensorProto.BOOL, []), typed("next", TensorProto.FLOAT, [*"abcd"])],
        )
        item = helper.make_node("Loop", ["trips", "cond", "start"], ["m"], body=body)
    model = Chain([node("Relu", "h")]).build()
    model.graph.node[1].CopyFrom(item)
    for made in (node("Cast", "size", "unknown", to=TensorProto.BOOL), node("Abs", "trips", "size")):
        model.graph.node.insert(0, made)  # nothing folds an Abs
    model.graph.output[0].CopyFrom(typed("y", TensorProto.FLOAT, [*"abcd"]))
    constants = {"cond": np.array(True), "trips": ints(2)[0], "start": np.zeros((1, C, 1, 1), np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.checker.check_model(model)
    return model


def custom_op() -> onnx.ModelProto:
    model = Chain([node("Relu", "h")]).build()
    model.graph.node[1].domain = "my.ops"
    model.graph.node[1].op_type = "Fancy"
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    return model


def exposed() -> onnx.ModelProto:
    model = Chain([node("Relu", "h")]).build()
    model.graph.output.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, [*"abcd"]))
    return model


def exposed_shape() -> onnx.ModelProto:
    model = Chain([node("Shape", "h", "s"), node("Relu", "h")]).build()
    model.graph.output.append(helper.make_tensor_value_info("s", TensorProto.INT64, [4]))
    return model


def exposed_mask() -> onnx.ModelProto:
    model = Chain([node("Dropout", "h", "m mask")]).build()
    model.graph.output.append(helper.make_tensor_value_info("mask", TensorProto.BOOL, [*"abcd"]))
    return model


def single_channel() -> onnx.ModelProto:
    nodes = [node("Conv", "x W0", "h"), node("Relu", "h"), node("Conv", "m W1", "y")]
    return build(nodes, {"W0": random(1, 3, 3, 3), "W1": random(K, 1, 3, 3)}, ("N", 3, 6, 6))


LSTM = {"Wl": random(1, 4 * C, C), "Rl": random(1, 4 * C, C)}
FROZEN: dict[str, tuple[onnx.ModelProto, str]] = {
    "model output": (exposed(), "it feeds the model's output 'm'"),
    "residual of the input": (
        build(
            [node("MatMul", "x W0", "h"), node("Add", "h x"), node("MatMul", "m W1", "y")],
            {"W0": random(C, C), "W1": random(C, K)},
            ("N", C),
        ),
        "Add 'm' joins its channels with a tensor's that must stay",
    ),
    **{
        op.lower(): (Chain([node(op, "h", axis=1)]).build(), f"{op} 'm' normalises over several channels")
        for op in ("Softmax", "LogSoftmax", "Hardmax")
    },
    "layer norm": (
        Chain([node("LayerNormalization", "h g")], {"g": random(C)}, "rows", "rows").build(),
        "LayerNormalization 'm' normalises over several channels",
    ),
    "custom domain": (custom_op(), "my.ops.Fancy 'm' is not understood"),
    "if": (subgraph("If"), "a subgraph of If 'm' reads it"),
    "loop": (subgraph("Loop"), "a subgraph of Loop 'm' reads it"),
    "arg max": (
        Chain([node("ArgMax", "h", "i", axis=1), node("Cast", "i", "c", to=1), node("Tile", "c r")],
              {"r": ints(1, C, 1, 1)}).build(),
        "ArgMax 'i' looks for the largest or smallest channel",
    ),
    "lstm": (
        Chain([node("ReduceMax", "x", "top", keepdims=0), node("Mul", "Rl top", "r"),
               node("LSTM", "h Wl r", "s", hidden_size=C), node("Squeeze", "s a", "m")],
              {**LSTM, "a": ints(1)}, "rows", "rows").build(),
        "LSTM 's' has weights that are computed, not stored ('R')",
    ),
    "max pool with indices": (
        Chain([node("MaxPool", "h", "m i", kernel_shape=[2, 2])]).build(),
        "MaxPool 'm' also returns indices",
    ),
    "norm in training": (
        Chain([node("BatchNormalization", "h g be mu va", "m m1 v1", training_mode=1)], NORM).build(),
        "BatchNormalization 'm' is in training mode",
    ),
    "norm by computed values": (
        Chain([node("Abs", "g", "g2"), node("BatchNormalization", "h g2 be mu va")], NORM).build(),
        "BatchNormalization 'm' does not normalise the channels by stored values",
    ),
    "dropout in training": (
        Chain([node("Dropout", "h ratio on")], {"ratio": HALF, "on": np.array(True)}).build(),
        "Dropout 'm' may be in training mode",
    ),
    "dropout mask": (exposed_mask(), "it feeds the model's output 'mask'"),
    "computed weight": (
        Chain([node("Relu", "W2", "W3"), node("Conv", "h W3")], {"W2": random(C, C, 1, 1)}).build(),
        "Conv 'm' has a weight that is computed, not stored",
    ),
    "computed gemm weight": (
        Chain([node("Relu", "W2", "W3"), node("Gemm", "h W3")], {"W2": random(C, C)}, "gemm", "gemm").build(),
        "Gemm 'm' multiplies two computed matrices",
    ),
    "computed bias": (
        Chain([node("Relu", "b2", "b3"), node("Conv", "h W2 b3")], {"W2": random(C, C, 1, 1), "b2": random(C)}).build(),
        "Conv 'm' has a bias that is computed, not stored",
    ),
    "bias per sample": (
        build([*FRONTS["gemm"][1], node("Gemm", "h W1 b1", "y")],
              {**FRONTS["gemm"][2], "W1": random(C, K), "b1": random(BATCH, 1)}, (BATCH, 5)),
        "Gemm 'y' has a bias that is not one value per neuron",
    ),
    "spread over one another": (
        build([node("MatMul", "x W0", "h"), node("Unsqueeze", "h last", "a"), node("Unsqueeze", "h before", "b"),
               node("Add", "a b", "m"), node("MatMul", "m W1", "y")],
              {"W0": random(5, C), "W1": random(C, K), "last": ints(-1), "before": ints(-2)}, ("N", 5)),
        "Add 'm' spreads channels over one another",
    ),
    "spread over another layer": (
        build([node("MatMul", "x W2", "h"), node("MatMul", "x W0", "g"), node("Mul", "h g", "m"),
               node("MatMul", "m W1", "y")],
              {"W2": random(5, 1), "W0": random(5, C), "W1": random(C, K)}, ("N", 5)),
        "Mul 'm' spreads it over the channels of another layer",
    ),
    "norm by another layer": (
        build([node("Gemm", "x W0", "h"), node("Reshape", "h s", "v"), node("BatchNormalization", "x v be mu va", "y")],
              {"W0": random(C, C), "s": ints(-1), **NORM}, (1, C)),
        "BatchNormalization 'y' takes the channels of a layer as a parameter",
    ),
    "shape is an output": (exposed_shape(), "the number of channels is read by Shape 's'"),
    "whole shape is used": (
        Chain([node("Shape", "h", "s"), node("ReduceProd", "s", "n", keepdims=0), node("Cast", "n", "z", to=1),
               node("Add", "h z")]).build(),
        "the number of channels is read by Shape 's'",
    ),
    "computed channel axis": (
        Chain([node("Shape", "x", "s", start=0, end=1), node("Shape", "x", "c", start=1, end=2),
               node("Mul", "c hw", "c1"), node("Concat", "s c1", "shape", axis=0), node("Reshape", "h shape")],
              {"hw": ints(CHW // 3)}, back="wide").build(),
        "Reshape 'm' computes the size of the channel axis",
    ),
    "channels regrouped": (
        Chain([node("Reshape", "h s", "m")], {"s": ints(0, 9, C, 4), "W1": random(4, 9, 3, 3)}, back="conv").build(),
        "its channels can only go all at once",
    ),
    "channels as rows": (
        Chain([node("Transpose", "h", "t", perm=[1, 0]), node("Gemm", "t W2", "m", transA=0)], {"W2": random(4, C)},
              "gemm", "gemm", batch=4).build(),
        "Gemm 'm' reads channels along its rows",
    ),
    "channels along another axis": (
        Chain([node("MatMul", "h W2", name="mix")], {"W2": random(6, 6)}).build(),
        "MatMul 'mix' reads channels along another axis",
    ),
    "conv across positions": (
        Chain([node("Transpose", "h", "t", perm=[0, 2, 1, 3]), node("Conv", "t W2", "m", kernel_shape=[1, 1])],
              {"W2": random(C, 6, 1, 1)}).build(),
        "Conv 'm' reads channels along another axis",
    ),
    "pool across channels": (
        Chain([*NHWC, node("MaxPool", "t", "p", kernel_shape=[1, 1]),
               node("Transpose", "p", perm=[0, 3, 1, 2])]).build(),
        "MaxPool 'p' pools across channels",
    ),
    "reduction across channels": (
        Chain([node("ReduceMean", "h", "a", axes=[1]), node("Sub", "h a")]).build(),
        "ReduceMean 'a' normalises over several channels",
    ),
    "reduction over everything": (
        Chain([node("ReduceMean", "h", "a"), node("Sub", "h a")]).build(),
        "ReduceMean 'a' normalises over several channels",
    ),
    "single channel": (single_channel(), "it has a single channel"),
    "unread": (
        build([*FRONTS["gemm"][1], node("Relu", "h"), node("Gemm", "x W1 b1", "y")],
              {**FRONTS["gemm"][2], "W1": random(5, K), "b1": random(K)}, ("N", 5)),
        "no linear layer reads it",
    ),
}  # fmt: skip
"""Models whose first layer must stay, and what its reason says."""


@pytest.mark.parametrize("name", FROZEN)
def test_what_cannot_follow_is_frozen_with_the_reason(name: str) -> None:
    model, reason = FROZEN[name]
    graph, _ = explicit_biases(Graph.load(model))
    dependencies = build_dependency_graph(graph)
    frozen = dependencies.groups[0].frozen
    assert frozen is not None and reason in frozen
    assert dependencies.groups[0] not in dependencies.shrinkable
    if name != "custom domain":
        Engine().session(graph.program())


def test_every_operator_with_a_rule_is_exercised() -> None:
    models = [*MODELS.values(), *(model for model, _ in FROZEN.values()), *(model for model, _ in TRANSPOSED.values())]
    models += [make() for make in (*JOINS.values(), *TOPOLOGIES.values())]
    models += [chain.build() for chain in PASSED.values()] + [case.build() for case in SHRUNK.values()]
    used = {item.op_type for model in models for item in model.graph.node}
    ruled = {op for domain, op in rules() if not domain}
    alike = {
        "IsInf",
        "Swish",
        "Pow",
        "And",
        "Or",
        "Xor",
        "Equal",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Min",
        "Mean",
        "Sum",
        "Mod",
    }
    reductions = {op for op in ruled if op.startswith("Reduce")}
    barriers = {op for ops in BARRIERS.values() for op in ops}
    norms = {item.op_type for chain, _ in MIXED.values() for item in chain.middle} | {"SimplifiedLayerNormalization"}
    fused = {"Attention", "RotaryEmbedding"}  # tests/ops/attention
    fused |= {"ConstantOfShape"}  # tests/ops/test_filled.py
    assert ruled - used - fused <= alike | reductions | barriers | norms | INTACT.keys()
