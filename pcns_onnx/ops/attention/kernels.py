"""Where fused attention operators have their heads: inputs, caches and the attributes that count heads.

All compute softmax(s Q Kᵀ + mask) V per head. Q has Hq heads, K and V have Hkv, of which each serves R = Hq / Hkv of
Q's. A tensor of heads is stored as (batch, positions, heads * channels), as (batch, heads, positions, channels), or
packed: Q, K and V of all heads one after the other, or on an axis of their own (batch, positions, heads, 3, channels).

Which of its channels can go depends on what stands around such an operator, so operators in front of it ask too
(`granularity`): the same dimensions of every head, whole heads of K and V with those of Q that they serve, or, where
a cache holds K and V as they are, one head of Q in every group of R.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pcns_onnx.graph import Node, Shape
from pcns_onnx.ops.facts import Labels, OpContext, OperandPart, describe

ONNXRUNTIMES = "com.microsoft"
Granularity = Literal["width", "whole", "queries", "held"]
"""What can go: dimensions of all heads, whole heads, heads of Q alone, nothing."""
PASSING = (
    "Reshape", "Transpose", "Identity", "Cast", "RotaryEmbedding", "Mul", "Add", "RMSNormalization",
    "SimplifiedLayerNormalization", "LayerNormalization", "Unsqueeze", "Squeeze", "Split",
)  # fmt: skip
"""What stands between the layers of Q, K and V and the operator."""
NORMS = ("RMSNormalization", "SimplifiedLayerNormalization", "LayerNormalization", "LpNormalization")


@dataclass(frozen=True)
class AttentionOp:
    """Positions of inputs (-1: it has none) and of outputs, and the names of the attributes that count heads."""

    past: tuple[int, ...]
    present: tuple[int, ...]
    scores: int
    bias: int
    masks: tuple[int, ...]
    per_head: tuple[int, ...]
    q_heads: str
    kv_heads: str


ATTENTION_OPS: Mapping[tuple[str, str], AttentionOp] = {
    ("", "Attention"): AttentionOp((4, 5), (1, 2), 3, -1, (3,), (), "q_num_heads", "kv_num_heads"),
    (ONNXRUNTIMES, "MultiHeadAttention"): AttentionOp((6, 7), (1, 2), 3, 3, (5,), (), "num_heads", ""),
    (ONNXRUNTIMES, "GroupQueryAttention"): AttentionOp(
        (3, 4), (1, 2), 3, -1, (10,), (11,), "num_heads", "kv_num_heads"
    ),
}


@dataclass(frozen=True)
class Side:
    """Q, K or V: the input that holds it, the part of that, its heads, and its labels (heads, channels)."""

    position: int
    part: OperandPart
    heads: int
    labels: Labels
    positions: int | None

    @property
    def width(self) -> int:
        """Channels of a head."""
        return int(self.labels.shape[1])


def kernel_of(node: Node) -> AttentionOp | None:
    """What is known of a fused attention operator; None for all others."""
    return ATTENTION_OPS.get((node.domain, node.op))


def sides_of(context: OpContext) -> tuple[Side, Side, Side] | None:
    """Q, K and V of a fused attention operator; None where sizes are not known or not as the operator demands."""
    node, kernel = context.node, kernel_of(context.node)
    if kernel is None:
        return None
    heads = int(node.attrs.get(kernel.q_heads, 0))
    served = int(node.attrs.get(kernel.kv_heads, heads)) if kernel.kv_heads else heads
    shape = context.shapes[0]
    if shape is None:
        return None
    names = [node.inputs[place] if place < len(node.inputs) else "" for place in range(3)]
    if names[1]:
        sides = [_side(context, position, heads if not position else served) for position in (0, 1)]
        sides.append(_side(context, 2, served) if names[2] else _slot(context, 1, served, 1))
        if not names[2]:
            sides[1] = _slot(context, 1, served, 0)
    elif len(shape) == 5:
        sides = [_slot(context, 0, heads, place) for place in range(3)]
    else:
        sides = _packed(context, heads, served)
    if any(side is None for side in sides):
        return None
    q, k, v = (side for side in sides if side is not None)
    fits = k.heads == v.heads and k.heads > 0 and q.heads % k.heads == 0 and q.width == k.width
    if not fits:
        return None
    split = q.part.sizes and (k.heads, q.heads // k.heads, *q.part.sizes[1:])
    return (
        Side(q.position, OperandPart(q.part.axis, q.part.first, q.part.count, split), q.heads, q.labels, q.positions),
        k,
        v,
    )


def _full(context: OpContext, position: int) -> Labels | None:
    """Labels of an input along all axes but those of batch and positions; -1 where it carries none."""
    shape, labels = context.shapes[position], context.labels[position]
    if shape is None:
        return None
    sizes = tuple(1 if axis < 1 or size is None else size for axis, size in enumerate(shape))
    labels = np.full((1,) * len(sizes), -1, dtype=np.int64) if labels is None else labels
    carrying = tuple(size if own > 1 else 1 for own, size in zip(labels.shape, sizes, strict=True))
    last = (*carrying[:-1], sizes[-1])
    return np.broadcast_to(labels, last) if shape[-1] is not None else None


def _side(context: OpContext, position: int, heads: int) -> Side | None:
    """An input of its own: of three axes, or of four with the heads on the second."""
    shape, labels = context.shapes[position], _full(context, position)
    if shape is None or labels is None:
        return None
    if len(shape) == 4:
        count = shape[1]
        if count is None or labels.shape[2] > 1 or labels.shape[0] > 1:
            return None
        own = np.broadcast_to(labels, (1, count, 1, labels.shape[3]))[0, :, 0]
        return Side(position, OperandPart(1, 0, 0, (count,)), count, own, shape[2])
    if len(shape) != 3 or heads < 1 or labels.shape[2] % heads or labels.shape[1] > 1:
        return None
    return Side(position, OperandPart(2, 0, 0, (heads, -1)), heads, labels.reshape(heads, -1), shape[1])


def _slot(context: OpContext, position: int, heads: int, place: int) -> Side | None:
    """One of several that lie on axis 3 of an input of five axes."""
    shape, labels = context.shapes[position], _full(context, position)
    if shape is None or labels is None or len(shape) != 5 or shape[2] != heads or shape[3] is None:
        return None
    own = np.broadcast_to(labels, (1, 1, heads, shape[3], labels.shape[4]))[0, 0, :, place]
    return Side(position, OperandPart(3, place, 1, ()), heads, own, shape[1])


def _packed(context: OpContext, heads: int, served: int) -> list[Side | None]:
    """Q, K and V of all heads one after the other on the last axis."""
    shape, labels = context.shapes[0], _full(context, 0)
    total = heads + 2 * served
    if shape is None or labels is None or len(shape) != 3 or labels.shape[1] > 1 or labels.shape[2] % total:
        return [None]
    width, rows = labels.shape[2] // total, labels.reshape(total, -1)
    return [
        Side(0, OperandPart(2, first * width, count * width, (count, -1)), count, rows[first : first + count], shape[1])
        for first, count in ((0, heads), (heads, served), (heads + served, served))
    ]


def cache_of(context: OpContext, node: Node) -> str:
    """The cache that holds K's and V's widths, as reasons name it; '' where there is none, or it may get narrower."""
    kernel = kernel_of(node)
    if kernel is None:
        return ""
    past = [node.inputs[place] for place in kernel.past if place < len(node.inputs) and node.inputs[place]]
    closed = [name for name in past if context.carried(name) is None]
    if closed:
        return closed[0]
    if past:
        return ""
    present = [node.outputs[place] for place in kernel.present if place < len(node.outputs) and node.outputs[place]]
    return next((name for name in present if context.leaves(name)), "")


def granularity(context: OpContext, node: Node | None = None) -> Granularity:
    """What can go in a fused attention operator, the context's own or another `node`."""
    node = context.node if node is None else node
    kernel = kernel_of(node)
    assert kernel is not None, "asked of attention only"
    heads, served = _heads_of_kv(context, node, kernel)
    if cache_of(context, node):
        return "queries" if served > 1 else "held"
    if context.heads == "whole" or kernel.per_head or any(_keeps_width(context, name) for name in node.inputs[:2]):
        return "queries" if heads == 1 and served > 1 else "whole"
    return "width"


def ends_in(context: OpContext) -> Node | None:
    """The fused attention operator that what a node puts out goes to as Q, K or V, by way of what reorders it."""
    pending, visited = [name for name in context.node.outputs if name], set[str]()
    while pending:
        name = pending.pop()
        for reader in context.readers(name):
            if kernel_of(reader) is not None and name in reader.inputs[:3]:
                return reader
            if reader.op in PASSING and reader.inputs[0] == name and reader.key not in visited and len(visited) < 24:
                visited.add(reader.key)
                pending += [output for output in reader.outputs if output]
    return None


def takes_whole_heads(context: OpContext) -> bool:
    """Whether channels that are split into heads here are to go in whole ones."""
    if context.heads == "whole":
        return True
    node = ends_in(context)
    return node is not None and granularity(context, node) in ("whole", "queries")


def _heads_of_kv(context: OpContext, node: Node, kernel: AttentionOp) -> tuple[int, int]:
    """How many heads K and V have, and how many of Q each of them serves."""
    q, kv = int(node.attrs.get(kernel.q_heads, 0)), int(node.attrs.get(kernel.kv_heads, 0) if kernel.kv_heads else 0)
    if not q and len(node.inputs) > 1:
        q, kv = (_heads_axis(context.size(node.inputs[at])) for at in (0, 1))
    return kv, q // kv if kv else 1


def _heads_axis(shape: Shape | None) -> int:
    return (shape[1] or 0) if shape is not None and len(shape) == 4 else 0


def _keeps_width(context: OpContext, name: str) -> bool:
    """Whether a norm over a head, or angles that are computed, stand in front of Q or K."""
    for _ in range(12):
        maker = context.producer(name) if name else None
        if maker is None or maker.op not in PASSING:
            return False
        if maker.op in NORMS:
            return _is_split(context, maker)
        if maker.op == "RotaryEmbedding" and not has_stored_angles(context, maker):
            return True
        name = maker.inputs[0]
    return False


def _is_split(context: OpContext, norm: Node) -> bool:
    """Whether a norm stands behind a Reshape into heads, not in front of the layer."""
    maker = context.producer(norm.inputs[0])
    while maker is not None and maker.op in ("Transpose", "Identity", "Cast"):
        maker = context.producer(maker.inputs[0])
    return maker is not None and maker.op == "Reshape"


def angles_of(node: Node) -> tuple[int, int]:
    """The inputs with the cosines and sines of a RotaryEmbedding."""
    return (2, 3) if node.domain == ONNXRUNTIMES else (1, 2)


def has_stored_angles(context: OpContext, node: Node) -> bool:
    """Whether a RotaryEmbedding's cosines and sines are stored, so that their columns can go."""
    return all(context.value(node.inputs[place]) is not None for place in angles_of(node))


def why_held(context: OpContext, place: int) -> str:
    """Why K (0) or V (1) keeps its width."""
    node, kernel, cache = context.node, kernel_of(context.node), cache_of(context, context.node)
    assert kernel is not None, "asked of attention only"
    if cache in node.inputs:
        cache = node.inputs[kernel.past[place]] or cache
    elif cache:
        cache = node.outputs[kernel.present[place]] or cache
    if not cache:
        return f"{describe(context.node)} has one head of K and V for all of Q"
    return f"the cache '{cache}' of {describe(context.node)} has this width, and its shape is the model's contract"
