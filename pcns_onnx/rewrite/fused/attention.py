"""onnxruntime's attention with weights or biases inside: taken apart for the solve, put together for what is written.

    Attention(x, W, b)              MatMul(x, W), Add b, Split into Q, K, V, MultiHeadAttention(Q, K, V)
    MultiHeadAttention(Q, K, V, b)  Add to each of the three its part of b, MultiHeadAttention(Q, K, V)

So the projection is a layer like any other. What was taken apart is put together where the pieces are still there;
where they are not (a layer became two), the model stays in pieces, which compute the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pcns_onnx.graph import Graph, Node, Shape

_DOMAIN = "com.microsoft"
_ATTENTION, _MULTI_HEAD = "Attention", "MultiHeadAttention"
_BIAS = 3
"""The input of MultiHeadAttention that holds its bias."""
_SHARED = ("num_heads", "scale", "mask_filter_value", "unidirectional")
"""Attributes that both have."""


def open_attention(graph: Graph) -> Graph:
    """A copy in which weights and biases stand outside, wherever they can."""
    result, shapes = graph, dict[str, Shape]()
    for node in graph.nodes:
        if node.domain != _DOMAIN or node.op not in (_ATTENTION, _MULTI_HEAD):
            continue
        shapes = shapes or graph.shapes(batch=graph.layout.batch)
        if node.op == _ATTENTION and _is_plain(graph, node, shapes):
            result = graph.copy() if result is graph else result
            _open_weights(result, node)
        elif node.op == _MULTI_HEAD and (widths := _widths(graph, node, shapes)):
            result = graph.copy() if result is graph else result
            _open_bias(result, node, widths)
    return result


def close_attention(graph: Graph, original: Graph) -> None:
    """Put together, in place, what `open_attention` took apart in `original`."""
    for node in original.nodes:
        if node.domain != _DOMAIN or node.op not in (_ATTENTION, _MULTI_HEAD) or node.key not in graph.producers:
            continue
        now = graph.node(node.key)
        if now.op != _MULTI_HEAD:
            continue
        if node.op == _ATTENTION:
            _close_weights(graph, node, now)
        elif _input(node, _BIAS) and not _input(now, _BIAS):
            _close_bias(graph, node, now)


def _input(node: Node, position: int) -> str:
    return node.inputs[position] if position < len(node.inputs) else ""


def _is_plain(graph: Graph, node: Node, shapes: dict[str, Shape]) -> bool:
    """Whether an Attention has no cache, and a mask that MultiHeadAttention takes too."""
    weight = graph.constant(node.inputs[1])
    others = {name for name in node.attrs if name not in (*_SHARED, "qkv_hidden_sizes")}
    if weight is None or weight.ndim != 2 or any(node.attrs[name] for name in others):
        return False
    if _input(node, 4) or any(node.outputs[1:]) or (_input(node, 2) and graph.constant(node.inputs[2]) is None):
        return False
    mask = shapes.get(_input(node, 3))
    is_lengths = mask is not None and len(mask) == 1 and mask[0] == graph.layout.batch
    return not _input(node, 3) or is_lengths or (mask is not None and len(mask) == 2)


def _sizes(node: Node, total: int) -> list[int]:
    """Widths of Q, K and V in the weight of an Attention."""
    return [int(size) for size in node.attrs.get("qkv_hidden_sizes", [total // 3] * 3)]


def _open_weights(graph: Graph, node: Node) -> None:
    weight = graph.constant(node.inputs[1])
    assert weight is not None, "the caller checked that it is stored"
    sizes, key = np.array(_sizes(node, weight.shape[1]), dtype=np.int64), node.key
    inner, joined = (graph.fresh_name(f"{key}.{stem}") for stem in ("linear", "joined"))
    parts = [graph.fresh_name(f"{key}.{stem}") for stem in ("q", "k", "v")]
    bias = _input(node, 2)
    if not bias:
        bias = graph.store(f"{node.label}.bias", np.zeros(weight.shape[1]), node.inputs[1])
    name = node.name and f"{node.name}.{{}}"
    cut = [joined, graph.store(f"{key}.sizes", sizes, "")] if graph.opset >= 13 else [joined]
    split = {} if graph.opset >= 13 else {"split": sizes.tolist()}
    masks = [_input(node, 3), _input(node, 5)]
    attributes = {attr: node.attrs[attr] for attr in _SHARED if attr in node.attrs}
    graph.replace(
        key,
        (
            Node(inner, "MatMul", "", node.name, (node.inputs[0], node.inputs[1]), (inner,), {}),
            Node(joined, "Add", "", name.format("add"), (inner, bias), (joined,), {}),
            Node(parts[0], "Split", "", name.format("split"), tuple(cut), tuple(parts), {"axis": 2, **split}),
            Node(key, _MULTI_HEAD, _DOMAIN, name.format("heads"), (*parts, "", *masks), (key,), attributes),
        ),
    )


def _close_weights(graph: Graph, node: Node, now: Node) -> None:
    split = graph.producers.get(now.inputs[0])
    add = None if split is None else graph.producers.get(split.inputs[0])
    product = None if add is None else graph.producers.get(add.inputs[0])
    if split is None or add is None or product is None or split.op != "Split" or tuple(now.inputs[:3]) != split.outputs:
        return
    if (add.op, product.op) != ("Add", "MatMul") or product.inputs[0] != node.inputs[0]:
        return
    if any(len(graph.consumers.get(name, ())) != 1 for name in (product.key, add.key, *split.outputs)):
        return
    sizes = graph.constant(split.inputs[1]) if len(split.inputs) > 1 else np.asarray(split.attrs["split"])
    assert sizes is not None, "it was stored"
    attributes = {**node.attrs, **{attr: now.attrs[attr] for attr in _SHARED if attr in now.attrs}}
    if "qkv_hidden_sizes" in node.attrs or len(set(sizes.tolist())) > 1:
        attributes["qkv_hidden_sizes"] = sizes.tolist()
    bias = graph.constant(add.inputs[1])
    has_bias = bool(_input(node, 2)) or bias is None or bool(bias.any())
    inputs = (product.inputs[0], product.inputs[1], add.inputs[1] if has_bias else "", *node.inputs[3:])
    closed = replace(node, inputs=tuple(_stripped(inputs)), attrs=attributes)
    graph.replace(now.key, (closed,))
    for key in (split.key, add.key, product.key):
        graph.replace(key, ())


def _stripped(names: tuple[str, ...]) -> Iterator[str]:
    """Without absent inputs at the end."""
    last = max((place for place, name in enumerate(names) if name), default=-1)
    yield from names[: last + 1]


def _widths(graph: Graph, node: Node, shapes: dict[str, Shape]) -> list[int] | None:
    """Widths of Q, K and V, whose bias can be parted; None where it cannot."""
    bias = graph.constant(_input(node, _BIAS)) if _input(node, _BIAS) else None
    ends = [shapes.get(_input(node, place), ()) for place in range(3)]
    if bias is None or any(len(shape) != 3 or shape[2] is None for shape in ends):
        return None
    widths = [int(shape[2] or 0) for shape in ends]
    return widths if bias.shape == (sum(widths),) else None


def _open_bias(graph: Graph, node: Node, widths: list[int]) -> None:
    bias = graph.constant(node.inputs[_BIAS])
    assert bias is not None, "the caller checked that it is stored"
    adds = []
    for stem, source, part in zip("qkv", node.inputs, np.split(bias, np.cumsum(widths)[:-1]), strict=False):
        stored = graph.store(f"{node.label}.{stem}_bias", part, node.inputs[_BIAS])
        output = graph.fresh_name(f"{node.key}.{stem}")
        name = node.name and f"{node.name}.{stem}"
        adds.append(Node(output, "Add", "", name, (source, stored), (output,), {}))
    inputs = (*(add.key for add in adds), *node.inputs[3:_BIAS], "", *node.inputs[_BIAS + 1 :])
    graph.replace(node.key, (*adds, replace(node, inputs=tuple(_stripped(inputs)))))


def _close_bias(graph: Graph, node: Node, now: Node) -> None:
    adds = [graph.producers.get(name) for name in now.inputs[:3]]
    parts = []
    for add in adds:
        value = graph.constant(add.inputs[1]) if add is not None and add.op == "Add" else None
        if add is None or value is None or value.ndim != 1 or len(graph.consumers[add.key]) != 1:
            return
        parts.append(value)
    rest = [*now.inputs[3:], *[""] * (_BIAS + 1 - len(now.inputs))]
    rest[0] = node.inputs[_BIAS]
    sources = [add.inputs[0] for add in adds if add is not None]
    graph.replace(now.key, (replace(now, inputs=(*sources, *rest)),))
    for add in adds:
        assert add is not None, "all of them are there"
        graph.replace(add.key, ())
    bias, old = np.concatenate(parts), graph.constant(node.inputs[_BIAS])
    if old is None or not np.array_equal(old, bias):
        graph.set_input(now.key, _BIAS, bias)
