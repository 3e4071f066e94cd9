"""Models with branches and functions that layers hide in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from builders.chains import node, random
from builders.models import Array, build

WIDE = 16
"""Neurons of the layers inside; half of them are copies of the others, and can go."""


def typed(name: str, shape: Sequence[str | int] | None = ("N", 4)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def doubled(rows: int, columns: int) -> Array:
    """(rows, columns), the second half of the columns as the first."""
    half = random(rows, columns // 2)
    return np.concatenate([half, half], axis=1)


def branch(end: str, sign: float, source: str = "x") -> onnx.GraphProto:
    """Gemm, Relu, Gemm with weights of its own; both branches of an If use the same names inside."""
    weights = {"w": doubled(5, WIDE) * np.float32(sign), "v": random(WIDE, 4)}
    nodes = [node("Gemm", f"{source} w", "i", name="one"), node("Relu", "i", "j"), node("Gemm", "j v", end, name="two")]
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    return helper.make_graph(nodes, end, [], [typed(end)], stored)


def chosen(condition: str, output: str = "y", source: str = "x") -> onnx.NodeProto:
    then, other = branch("t", 1, source), branch("e", -1, source)
    name = "choice" if output == "y" else f"choice of {output}"
    return helper.make_node("If", [condition], [output], name=name, then_branch=then, else_branch=other)


def conditional(nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array], opset: int = 17) -> onnx.ModelProto:
    """`nodes`, one of which makes `c` where that is no constant, and an If that it steers."""
    return build([*nodes, chosen("c")], constants, ["N", 5], opset=opset)


def constant_if() -> onnx.ModelProto:
    """The condition is computed from constants."""
    return conditional([node("Equal", "rate wanted", "c")], {"rate": np.array(16000), "wanted": np.array(16000)})


def rate_if() -> onnx.ModelProto:
    """An input of one number says which branch is taken."""
    model = constant_if()
    model.graph.input.append(helper.make_tensor_value_info("rate", TensorProto.INT64, []))
    model.graph.initializer.remove(next(tensor for tensor in model.graph.initializer if tensor.name == "rate"))
    onnx.checker.check_model(model, full_check=True)
    return model


def called_twice(version: int = 17) -> onnx.ModelProto:
    """A function with a layer and an activation whose slope is an attribute, in `version` of ONNX's operator set."""
    inner = [node("MatMul", "i w", "p", name="product"), node("LeakyRelu", "p", "o", name="bend")]
    inner[1].attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    opsets = [helper.make_opsetid("", version)]
    function = helper.make_function("my.own", "Block", ["i", "w"], ["o"], inner, opsets, ["slope"])
    weights = {"w": doubled(5, WIDE), "v": doubled(WIDE, WIDE), "u": random(WIDE, 4)}
    nodes = [
        node("Block", "x w", "a", domain="my.own", slope=0.1),
        node("Block", "a v", "b", domain="my.own", slope=0.2),
        node("MatMul", "b u", "y"),
    ]
    graph = helper.make_graph(
        nodes, "g", [typed("x", ["N", 5])], [typed("y")],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[function])
    onnx.checker.check_model(model, full_check=True)
    return model
