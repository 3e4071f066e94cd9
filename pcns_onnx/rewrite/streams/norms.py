"""Norms of a stream in another basis: root mean squares alone, of fewer channels.

    1 / sqrt(|x|² / D + e) = sqrt(D / d) / sqrt(|x|² / d + e D / d)

Centring goes into what writes the stream, scales and shifts into what reads it, and so does sqrt(D / d). A
LayerNormalization becomes an RMSNormalization where the operators have one (23), else its pieces, which onnxruntime
fuses; a SkipLayerNormalization becomes a SkipSimplifiedLayerNormalization.
"""

from __future__ import annotations

import numpy as np

from pcns_onnx.dependency.streams.norms import Norm
from pcns_onnx.graph import Graph, Node

_EPSILON = {"SkipLayerNormalization": 1e-12, "SkipSimplifiedLayerNormalization": 1e-12}
"""What an operator adds where it does not say; the others 1e-5."""
_RMS = 23
"""The operator set that has RMSNormalization."""


def narrow_norm(graph: Graph, norm: Norm, width: int, kept: int) -> None:
    """Let a norm over `width` channels be one over `kept` of a centred stream, in place."""
    if norm.kind == "pieces":
        _narrow_pieces(graph, norm, width / kept)
        return
    node = graph.node(norm.key)
    epsilon = float(node.attrs.get("epsilon", _EPSILON.get(node.op, 1e-5))) * width / kept
    position = 2 if norm.kind == "skip" else 1
    graph.set_input(norm.key, position, np.ones(kept))
    node = graph.node(norm.key)
    if not norm.centres:
        graph.set_attributes(norm.key, epsilon=epsilon)
    elif norm.kind == "skip":
        inputs = (*node.inputs[:3], *node.inputs[4:5])
        op = "SkipSimplifiedLayerNormalization"
        graph.replace(
            norm.key, [Node(node.key, op, node.domain, node.name, inputs, node.outputs, {"epsilon": epsilon})]
        )
    elif graph.opset >= _RMS:
        attributes = {"axis": -1, "epsilon": epsilon}
        attributes |= {"stash_type": node.attrs["stash_type"]} if "stash_type" in node.attrs else {}
        whole = Node(node.key, "RMSNormalization", "", node.name, node.inputs[:2], (node.outputs[0],), attributes)
        graph.replace(norm.key, [whole])
    else:
        graph.replace(norm.key, _pieces(graph, node, epsilon))


def _narrow_pieces(graph: Graph, norm: Norm, ratio: float) -> None:
    if norm.epsilon is not None:
        key, position = norm.epsilon
        value = graph.constant(graph.node(key).inputs[position])
        assert value is not None, "it is stored"
        graph.set_input(key, position, value * ratio)
    if norm.centres:  # x - mean x, whose mean is zero now
        graph.drop_into_reader(norm.inner, 0)


def _pieces(graph: Graph, node: Node, epsilon: float) -> list[Node]:
    """x / sqrt(mean x² + e) times the scale, computed in float32 as a LayerNormalization does."""
    source, scale, key = node.inputs[0], node.inputs[1], node.key
    name = node.name and f"{node.name}.{{}}"
    is_half = graph.storage != "float32"
    nodes = list[Node]()

    def put(op: str, *inputs: str, **attributes: object) -> str:
        output = graph.fresh_name(f"{key}.{op.lower()}{len(nodes) or ''}")
        nodes.append(Node(output, op, "", name.format(op.lower()), inputs, (output,), attributes))
        return output

    def store(stem: str, value: object, integer: bool = False) -> str:
        return graph.store(f"{key}.{stem}", np.asarray(value, np.int64 if integer else np.float32), "")

    x = put("Cast", source, to=1) if is_half else source
    squares = put("Pow", x, store("two", 2.0))
    if graph.opset >= 18:
        mean = put("ReduceMean", squares, store("last", [-1], True), keepdims=1)
    else:
        mean = put("ReduceMean", squares, axes=[-1], keepdims=1)
    root = put("Sqrt", put("Add", mean, store("epsilon", epsilon)))
    normed = put("Div", x, root)
    if is_half:
        normed = put("CastLike", normed, source) if graph.opset >= 15 else put("Cast", normed, to=10)
    nodes.append(Node(key, "Mul", "", name.format("scale"), (normed, scale), (key,), {}))
    return nodes
