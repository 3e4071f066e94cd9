"""Shapes behind onnxruntime's own operators, which onnx has no inference for.

Each is replaced, in the copy that is inferred from, by standard operators whose outputs have the same shapes:

    BiasGelu(x, b)                      Add(x, b)
    SkipLayerNormalization(x, s, ...)   Add(x, s), once for the norm and once for the sum
    MultiHeadAttention(Q, K, V)         Einsum 'abq,acv->abv' of Q and V
    Attention(x, W)                     the same of x and a matrix as wide as V

So a size that is open stays open under the name that it has. Sources: docs/ContribOperators.md of onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from pcns_onnx.graph.protobuf import shape_of

ONNXRUNTIMES = "com.microsoft"
PREFIX = "shape inference:"
"""How the names of tensors begin that are in the copy only."""

Replacement = Callable[["_Place"], Iterator[onnx.NodeProto]]


class _Place:
    """A node to be replaced, and names for what is put there."""

    def __init__(self, node: onnx.NodeProto, graph: onnx.GraphProto) -> None:
        self.node, self._graph = node, graph
        self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}

    def input(self, position: int) -> str:
        """The name of an input, '' where it is absent."""
        return self.node.input[position] if position < len(self.node.input) else ""

    def output(self, position: int) -> str:
        """The name of an output, '' where nothing reads it."""
        return self.node.output[position] if position < len(self.node.output) else ""

    def name(self, stem: str) -> str:
        """A name that nothing else has."""
        return f"{PREFIX}{next(o for o in self.node.output if o)}.{stem}"

    def matrix(self, stem: str, *shape: int | str) -> str:
        """A float32 input of this shape."""
        value = helper.make_tensor_value_info(self.name(stem), TensorProto.FLOAT, shape)
        self._graph.input.append(value)
        return value.name

    def open_number(self, stem: str) -> str:
        """A number that nothing says anything of."""
        self._graph.input.append(helper.make_tensor_value_info(self.name(stem), TensorProto.INT64, [1]))
        return self.name(stem)

    def numbers(self, stem: str, values: Sequence[int]) -> str:
        """A stored list of integers."""
        self._graph.initializer.append(helper.make_tensor(self.name(stem), TensorProto.INT64, [len(values)], values))
        return self.name(stem)

    def shape(self, name: str) -> tuple[int | None, ...]:
        """The shape of an input of the model or of a stored tensor; () where it is neither."""
        stored = next((tuple(t.dims) for t in self._graph.initializer if t.name == name), None)
        values = (value for value in self._graph.input if value.name == name)
        return stored if stored is not None else next((shape_of(value) for value in values), ())


def state_fused_shapes(model: onnx.ModelProto) -> None:
    """Replace, in place, what onnx cannot infer by what has the same shapes."""
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        own = node.domain == ONNXRUNTIMES or (node.domain in ("", "ai.onnx") and node.op_type in DEFAULT_DOMAIN)
        replacement = REPLACEMENTS.get(node.op_type) if own else None
        nodes += [node] if replacement is None else list(replacement(_Place(node, model.graph)))
    if len(nodes) != len(model.graph.node) or any(a is not b for a, b in zip(nodes, model.graph.node, strict=True)):
        twins = [_copy(node) for node in nodes]
        del model.graph.node[:]
        model.graph.node.extend(twins)


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    return twin


def _node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> Iterator[onnx.NodeProto]:
    """A standard operator; none where nothing reads its output."""
    if output:
        yield helper.make_node(op, inputs, [output], **attributes)


def _same(place: _Place) -> Iterator[onnx.NodeProto]:
    """Every output has the shape of the first input."""
    yield from _node("Identity", [place.input(0)], place.output(0))


def _biased(place: _Place) -> Iterator[onnx.NodeProto]:
    yield from _node("Add", [place.input(0), place.input(1)], place.output(0)) if place.input(1) else _same(place)


def _skip_norm(place: _Place) -> Iterator[onnx.NodeProto]:
    """The norm and the sum."""
    for position in (0, 3):
        yield from _node("Add", [place.input(0), place.input(1)], place.output(position))


def _embedding_norm(place: _Place) -> Iterator[onnx.NodeProto]:
    """Rows of a table, by word; the lengths of the samples, int32; the sum of the rows."""
    yield from _node("Gather", [place.input(2), place.input(0)], place.output(0), axis=0)
    if place.output(1):
        yield from _node("ArgMax", [place.input(0)], place.name("lengths"), axis=1, keepdims=0)
        yield from _node("Cast", [place.name("lengths")], place.output(1), to=TensorProto.INT32)
    yield from _node("Gather", [place.input(2), place.input(0)], place.output(2), axis=0)


def _quantised_product(place: _Place) -> Iterator[onnx.NodeProto]:
    """(..., K) times a matrix (K, N) that is packed."""
    matrix = place.matrix("B", place.attributes.get("K", "K"), place.attributes.get("N", "N"))
    yield from _node("MatMul", [place.input(0), matrix], place.output(0))


def _attention(place: _Place) -> Iterator[onnx.NodeProto]:
    """One matrix for Q, K and V; V's width is the last of three, which are equal if nothing says otherwise."""
    widths = place.attributes.get("qkv_hidden_sizes")
    total = (*place.shape(place.input(1)), None, None)[1]
    width = widths[2] if widths else "V" if total is None else total // 3
    yield from _node("MatMul", [place.input(0), place.matrix("W", "D", width)], place.output(0))


def _multi_head(place: _Place) -> Iterator[onnx.NodeProto]:
    """(batch, queries, width of V), whose heads may lie on an axis of their own."""
    q, k, v = (place.input(position) for position in range(3))
    merged = place.numbers("merged", [0, 0, -1])
    if v:
        source = v
        if len(place.shape(v)) == 4:  # an input of the model with the heads on its second axis: a cache
            source = place.name("side_by_side")
            yield from _node("Transpose", [v], place.name("turned"), perm=[0, 2, 1, 3])
            yield from _node("Reshape", [place.name("turned"), merged], source)
        yield from _node("Einsum", [q, source], place.output(0), equation="abq,acv->abv")
        yield from _presents(place, (6, 7), place.attributes.get("num_heads", 1))
        return
    heads = place.name("heads")
    first = place.numbers("first", [0])
    packed = k or q
    yield from _node("Gather", [packed, first], place.name("one"), axis=3)
    yield from _node("Reshape", [place.name("one"), merged], heads)
    if k:
        yield from _node("Einsum", [q, heads], place.output(0), equation="abq,acv->abv")
    else:
        yield from _node("Identity", [heads], place.output(0))


def _presents(place: _Place, pasts: tuple[int, int], heads: int) -> Iterator[onnx.NodeProto]:
    """The caches of K and V with what has come: (batch, heads, any number of positions, width)."""
    for source, past, output in zip((1, 2), pasts, (1, 2), strict=True):
        name = place.input(past)
        if place.output(output) and not name:
            name = place.name(f"split{output}")
            sizes = place.numbers(f"to{output}", [0, 0, heads, -1])
            yield from _node("Reshape", [place.input(source), sizes], place.name(f"heads{output}"))
            yield from _node("Transpose", [place.name(f"heads{output}")], name, perm=[0, 2, 1, 3])
        if place.output(output):
            length = place.open_number(f"length{output}")
            cut = [place.numbers(f"from{output}", [0]), length, place.numbers(f"along{output}", [2])]
            yield from _node("Slice", [name, *cut], place.output(output))


def _grouped_query(place: _Place) -> Iterator[onnx.NodeProto]:
    """As wide as Q, which may have K and V of all heads behind it."""
    q, heads = place.input(0), int(place.attributes.get("num_heads", 0))
    if place.input(1):
        yield from _node("Identity", [q], place.output(0))
        yield from _presents(place, (3, 4), int(place.attributes.get("kv_num_heads", heads)))
    else:
        total = heads + 2 * int(place.attributes.get("kv_num_heads", 0))
        yield from _node("Reshape", [q, place.numbers("split", [0, 0, total, -1])], place.name("heads"))
        cut = [place.numbers("from", [0]), place.numbers("to", [heads]), place.numbers("along", [2])]
        yield from _node("Slice", [place.name("heads"), *cut], place.name("of_q"))
        yield from _node("Reshape", [place.name("of_q"), place.numbers("merged", [0, 0, -1])], place.output(0))


REPLACEMENTS: dict[str, Replacement] = {
    **dict.fromkeys(("Gelu", "QuickGelu", "RotaryEmbedding", "GroupNorm", "BiasSoftmax"), _same),
    **dict.fromkeys(("LayerNormalization", "SimplifiedLayerNormalization"), _same),
    **dict.fromkeys(("BiasGelu", "FastGelu", "BiasAdd"), _biased),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _skip_norm),
    "EmbedLayerNormalization": _embedding_norm,
    **dict.fromkeys(("MatMulNBits", "MatMulBnb4", "MatMulFpQ4"), _quantised_product),
    "Attention": _attention,
    "MultiHeadAttention": _multi_head,
    "GroupQueryAttention": _grouped_query,
}
DEFAULT_DOMAIN = ("SimplifiedLayerNormalization",)
"""Operators that onnxruntime has in the default domain, and onnx has not."""
