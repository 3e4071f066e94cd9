"""Small pre-norm decoders whose residual stream is planted, and the same in the other forms of their norms."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from builders.models import Array
from robustness.transformer_blocks import Net
from robustness.transformers import row

WRITERS = ("table", "positions", "o.weight", "o.bias", "down.weight", "down.bias", "conv", "class_token")
MICROSOFT = "com.microsoft"


def decoder(name: str, form: str, rank: int | None = None, **changes: Any) -> tuple[onnx.ModelProto, Net]:
    """An architecture of two layers; with a `rank` all that is written into its stream lies in so many dimensions."""
    model, net = row(name, form, **{"layers": 2, **changes})
    if rank is not None:
        width = 64
        axes = np.linalg.qr(np.random.default_rng(3).standard_normal((width, width)))[0][:, :rank]
        for tensor in model.graph.initializer:
            value = numpy_helper.to_array(tensor)
            if tensor.name.endswith(WRITERS) and value.shape[-1:] == (width,):
                planted = (value.astype(np.float64) @ axes @ axes.T).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(planted, tensor.name))
    return model, net


def tied(model: onnx.ModelProto, *, scale: Array | None = None, centred: bool = False) -> onnx.ModelProto:
    """The same with its table as head; `scale` is that of the last norm, `centred`: rows of the table without mean."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    if centred:
        table = numpy_helper.to_array(weights["table"])
        table = table - table.mean(axis=1, keepdims=True)
        weights["table"].CopyFrom(numpy_helper.from_array(table.astype(np.float32), "table"))
    if scale is not None:
        weights["last_norm.weight"].CopyFrom(numpy_helper.from_array(scale.astype(np.float32), "last_norm.weight"))
    head = next(node for node in model.graph.node if node.name == "lm_head")
    at = list(model.graph.node).index(head)
    model.graph.node.insert(at, helper.make_node("Transpose", ["table"], ["head"], name="head"))
    model.graph.node[at + 1].input[1] = "head"
    model.graph.initializer.remove(weights["lm_head.weight"])
    return model


def with_skip_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with onnxruntime's norms of sums instead of a sum and a norm."""
    made = {node.output[0]: node for node in model.graph.node}
    stored = {tensor.name for tensor in model.graph.initializer}
    kinds = {
        "LayerNormalization": "SkipLayerNormalization",
        "SimplifiedLayerNormalization": "SkipSimplifiedLayerNormalization",
    }
    gone, nodes = set[str](), list[onnx.NodeProto]()
    for node in model.graph.node:
        total = made.get(node.input[0]) if node.op_type in kinds else None
        if total is not None and total.op_type == "Add" and stored.isdisjoint(total.input):
            gone.add(total.output[0])
            fused = helper.make_node(
                kinds[node.op_type], [*total.input, *node.input[1:]], [node.output[0], "", "", total.output[0]],
                name=node.name, domain=MICROSOFT, epsilon=helper.get_attribute_value(node.attribute[-1]),
            )  # fmt: skip
            fused.attribute[0].f = next(a.f for a in node.attribute if a.name == "epsilon")
            node = fused
        nodes.append(node)
    kept = [node for node in nodes if node.output[0] not in gone]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def with_norms_in_pieces(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with LayerNormalizations as exporters wrote them below opset 17."""
    nodes = list[onnx.NodeProto]()
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("two", 2.0), ("tiny", 1e-5))
    )
    for node in model.graph.node:
        if node.op_type != "LayerNormalization":
            nodes.append(node)
            continue
        x, name = node.input[0], node.name
        names = {part: f"{name}.{part}" for part in ("mean", "less", "square", "power", "more", "root", "div", "scale")}
        nodes += [
            helper.make_node("ReduceMean", [x], [names["mean"]], axes=[-1]),
            helper.make_node("Sub", [x, names["mean"]], [names["less"]]),
            helper.make_node("Pow", [names["less"], "two"], [names["square"]]),
            helper.make_node("ReduceMean", [names["square"]], [names["power"]], axes=[-1]),
            helper.make_node("Add", [names["power"], "tiny"], [names["more"]]),
            helper.make_node("Sqrt", [names["more"]], [names["root"]]),
            helper.make_node("Div", [names["less"], names["root"]], [names["div"]]),
            helper.make_node("Mul", [names["div"], node.input[1]], [names["scale"]]),
            helper.make_node("Add", [names["scale"], node.input[2]], [node.output[0]]),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
