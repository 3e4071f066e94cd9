"""Whole small transformers: the blocks of `transformer_blocks` between a stem and a head, and samples for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from robustness.transformer_blocks import (
    FORMS,
    HEADS,
    LENGTH,
    ORT,
    RECIPES,
    VOCABULARY,
    WIDTH,
    Array,
    D,
    Net,
    Recipe,
)

OPSETS = {"plain": 17, "onnx": 23, "ort": 17}


def row(name: str, form: str, **changes: Any) -> tuple[onnx.ModelProto, Net]:
    """The model of an architecture in a form, and what it was made with; `changes` to its recipe."""
    net = Net(replace(RECIPES[name], **changes), form)
    x = _stem(net)
    states = _states(net) if net.recipe.cross else ""
    for layer in range(net.recipe.layers):
        x = _block(net, x, f"layer{layer}", states)
    if not net.recipe.post_norm:
        x = net.norm(x, "last_norm")
    _head(net, x)
    return _model(net, OPSETS[form]), net


def convnext(layers: int = 1) -> tuple[onnx.ModelProto, Net]:
    """Blocks of ConvNeXt: a depthwise Conv on the stream, a norm over channels, an FFN on positions."""
    net = Net(Recipe(layers=layers), "plain")
    _image(net)
    x = net.op("Conv", "pixels", net.keep(net.matrix(3 * 16, D).T.reshape(D, 3, 4, 4), "stem"), strides=[4, 4])
    for layer in range(net.recipe.layers):
        kernel = net.keep(0.2 * net.rng.standard_normal((D, 1, 3, 3)), f"layer{layer}.depthwise")
        y = net.op("Conv", x, kernel, group=D, pads=[1, 1, 1, 1])
        y = net.op("Transpose", y, perm=[0, 2, 3, 1])
        y = net.ffn(net.norm(y, f"layer{layer}.norm"), f"layer{layer}.ffn")
        x = net.op("Add", x, net.op("Transpose", y, perm=[0, 3, 1, 2]))
    net.nodes.append(helper.make_node("ReduceMean", [x], ["y"], axes=[2, 3], keepdims=0))
    net.outputs.insert(0, helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", D]))
    return _model(net, 17), net


def samples(model: onnx.ModelProto, net: Net, count: int, seed: int = 1, length: int = LENGTH) -> dict[str, Array]:
    """Inputs for so many samples of this length; padding at the end of some; behind a cache, the last position only."""
    rng, feeds = np.random.default_rng(seed), dict[str, Array]()
    step = 1 if net.recipe.cache else length
    for value in model.graph.input:
        shape = [dim.dim_value or {"N": count, "S": step, "P": length - 1, "T": length}[dim.dim_param]
                 for dim in value.type.tensor_type.shape.dim]  # fmt: skip
        if value.name == "attention_mask":
            feeds[value.name] = (np.arange(length)[None] < rng.integers(length // 2, length + 1, (count, 1))).astype(
                np.int32
            )
        elif value.type.tensor_type.elem_type == TensorProto.INT64:
            feeds[value.name] = rng.integers(0, VOCABULARY, shape)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


def _block(net: Net, x: str, name: str, states: str) -> str:
    r = net.recipe
    parts = [("attention", ""), *([("cross", states)] if states else []), ("ffn", "")]
    for part, source in parts:
        inner = x if r.post_norm else net.norm(x, f"{name}.{part}_norm")
        label = f"{name}.{part}"
        y = net.ffn(inner, label) if part == "ffn" else _attention(net, inner, label, source)
        if r.post_norm:
            x, _ = net.add_norm(y, x, f"{label}_norm")
        else:
            x = net.op("Add", x, y)
    return x


def _attention(net: Net, x: str, name: str, states: str) -> str:
    if net.recipe.stem != "windows":
        return net.attention(x, name, states)
    # (N, 4, 4, D) in windows of 2 by 2, and back.
    cut = net.op("Reshape", x, net.keep(np.array([-1, 2, 2, 2, 2, D])))
    windows = net.op("Reshape", net.op("Transpose", cut, perm=[0, 1, 3, 2, 4, 5]), net.keep(np.array([-1, 4, D])))
    y = net.attention(windows, name)
    y = net.op("Reshape", y, net.keep(np.array([-1, 2, 2, 2, 2, D])))
    return net.op("Reshape", net.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), net.keep(np.array([-1, 4, 4, D])))


def _image(net: Net) -> None:
    net.inputs.append(helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, 16, 16]))


def _stem(net: Net) -> str:
    r = net.recipe
    if r.stem == "tokens":
        return _tokens(net)
    if r.stem == "signal":
        net.inputs.append(helper.make_tensor_value_info("signal", TensorProto.FLOAT, ["N", 10, 2 * LENGTH]))
        x = "signal"
        for layer, (channels, stride) in enumerate(((10, 1), (D, 2))):
            weight = net.matrix(3 * channels, D).T.reshape(D, channels, 3)
            if not layer:  # every second channel is a copy
                weight[1::2] = weight[::2]
            kernel = net.keep(weight, f"conv{layer}")
            x = net.activate(net.op("Conv", x, kernel, pads=[1, 1], strides=[stride], name=f"conv{layer}"), "gelu")
        x = net.op("Transpose", x, perm=[0, 2, 1])
        return net.op("Add", x, net.keep(0.3 * net.rng.standard_normal((LENGTH, D)), "positions"))
    _image(net)
    x = net.op("Conv", "pixels", net.keep(net.matrix(48, D).T.reshape(D, 3, 4, 4), "patches"), strides=[4, 4])
    if r.stem == "windows":
        return net.op("Transpose", x, perm=[0, 2, 3, 1])
    x = net.op("Transpose", net.op("Reshape", x, net.keep(np.array([0, D, 16]))), perm=[0, 2, 1])
    extra = 2 if "two" in r.stem else 1
    sizes = net.op("Concat", net.op("Shape", x, start=0, end=1), net.keep(np.array([extra, D])), axis=0)
    token = net.op("Expand", net.keep(net.rng.standard_normal((1, extra, D)), "class_token"), sizes)
    joined = net.op("Concat", token, x, axis=1)
    return net.op("Add", joined, net.keep(0.3 * net.rng.standard_normal((16 + extra, D)), "positions"))


def _tokens(net: Net) -> str:
    net.inputs.append(helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["N", "S"]))
    x = net.op("Gather", net.keep(net.rng.standard_normal((VOCABULARY, D)), "table"), "input_ids")
    if net.recipe.positions == "learned":
        places = net.op("Range", net.keep(np.array(0)),
                        net.op("Squeeze", net.op("Shape", "input_ids", start=1, end=2), net.keep(np.array([0]))),
                        net.keep(np.array(1)))  # fmt: skip
        x = net.op("Add", x, net.op("Gather", net.keep(0.3 * net.rng.standard_normal((32, D)), "positions"), places))
    if net.recipe.mask:
        net.inputs.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT32, ["N", "S"]))
        if net.form != "ort":
            shown = net.op("Cast", "attention_mask", to=TensorProto.FLOAT)
            hidden = net.op("Mul", net.op("Sub", net.keep(np.float32(1)), shown), net.keep(np.float32(-1e4)))
            net.padding = net.op("Unsqueeze", hidden, net.keep(np.array([1, 2])))
            if net.form == "onnx":
                zeros = net.op("Mul", net.op("Unsqueeze", shown, net.keep(np.array([1, 3]))), net.keep(np.float32(0)))
                net.padding = net.op("Add", net.padding, zeros)
    return net.norm(x, "embedding_norm") if net.recipe.post_norm else x


def _states(net: Net) -> str:
    """What an encoder has made."""
    net.inputs.append(helper.make_tensor_value_info("states", TensorProto.FLOAT, ["N", "T", D]))
    return "states"


def _head(net: Net, x: str) -> None:
    if net.recipe.head:
        x = net.linear(x, net.matrix(D, VOCABULARY), "lm_head")
    elif net.recipe.stem.startswith("windows"):
        x = net.op("Reshape", x, net.keep(np.array([-1, 16, D])))
    net.nodes.append(helper.make_node("Identity", [x], ["y"]))
    width = VOCABULARY if net.recipe.head else D
    net.outputs.insert(0, helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", None, width]))


def _model(net: Net, opset: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        net.nodes,
        "transformer",
        net.inputs,
        net.outputs,
        [numpy_helper.from_array(value, name) for name, value in net.weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(ORT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def rows() -> list[tuple[str, str]]:
    """Every architecture in every form that it has."""
    return [(name, form) for name in RECIPES for form in FORMS if (name, form) not in ABSENT]


ABSENT: set[tuple[str, str]] = {("Swin", "onnx"), ("Gemma", "onnx")}
"""Forms that say nothing new."""

__all__ = ["HEADS", "WIDTH", "Any", "convnext", "row", "rows", "samples"]
