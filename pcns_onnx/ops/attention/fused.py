"""Attention in one operator: softmax(s Q Kᵀ + mask) V per head.

- Inner width of Q and K: q'k is a sum over channels, the same ones go on both sides in every head. The scale
  s = 1/√d is one of the width that the head was trained with, so it is written down where it was implied.
- Inner width of V: it passes to the output, which is linear in it.
- Whole heads: those of K and V with all heads of Q that they serve, so that every group stays as large.
- Heads of Q: behind a cache, whose shape is the model's contract, one in every group; K and V stay.

A norm of Q and K, computed rotary angles and kernels that want heads of certain widths (GroupQueryAttention) leave
whole heads only.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from pcns_onnx.ops.attention.kernels import AttentionOp, Side, granularity, kernel_of, sides_of, why_held
from pcns_onnx.ops.facts import (
    MUST_STAY,
    Bilinear,
    ChannelCount,
    Frozen,
    ImpliedNumber,
    Labels,
    OpContext,
    OpFacts,
    PerChannelConstant,
    Tie,
    describe,
    freeze,
    spread,
)
from pcns_onnx.ops.linear import COMPUTED
from pcns_onnx.ops.registry import rule


@rule("Attention", operands="all")
@rule("MultiHeadAttention", "GroupQueryAttention", domain="com.microsoft", operands="all")
def fused_attention(context: OpContext) -> OpFacts:
    """Q, K and V from any layer; what else carries channels is a parameter and keeps them."""
    kernel, sides = kernel_of(context.node), sides_of(context)
    assert kernel is not None, "the rule is for these only"
    if sides is None:
        return freeze(context, f"{describe(context.node)} has heads whose sizes are not known", macs=0)
    macs = _macs(context, kernel, sides)
    used = {side.position for side in sides} | set(kernel.past)
    parameters = [place for place, labels in enumerate(context.labels) if labels is not None and place not in used]
    if parameters:
        return freeze(context, f"{describe(context.node)} takes the channels of a layer as a parameter", macs=macs)
    if all((side.labels < 0).all() for side in sides):
        return freeze(context, f"{describe(context.node)} {COMPUTED}", macs=macs)
    mode = granularity(context)
    masks = None if mode == "width" else _masks(context, kernel, sides[0])
    if masks is None and mode != "width":
        return freeze(context, f"{describe(context.node)} has a mask of its own for every head", macs=macs)
    common = tuple(_bias(context, kernel, sides))
    if mode == "width":
        return _widths(context, kernel, sides, common, macs)
    return _heads(context, kernel, sides, (*common, *(masks or ())), macs)


def _widths(
    context: OpContext,
    kernel: AttentionOp,
    sides: tuple[Side, Side, Side],
    per_channel: tuple[PerChannelConstant, ...],
    macs: int,
) -> OpFacts:
    """The same dimensions of every head: those of Q with those of K, those of V by themselves."""
    q, k, v = sides
    why = f"{describe(context.node)} multiplies its channels by some {MUST_STAY}"
    first = q.labels if (q.labels >= 0).all() else k.labels
    ties = (
        *_alike(first[:1], q.labels, why),
        *_alike(first[:1], k.labels, why),
        *_alike(v.labels[:1], v.labels, why),
        *_caches(context, kernel, (k, v)),
    )
    groups = q.labels.reshape(1, k.heads, -1, 1, q.width)
    a, b = np.broadcast_arrays(groups, k.labels.reshape(1, k.heads, 1, 1, k.width))
    product = Bilinear((q.position, k.position), _orders(context, q, k), a, b, (q.part, k.part))
    scale = ImpliedNumber(context.node.key, "scale", _scale(context, q), q.labels[0])
    passed = np.repeat(v.labels, q.heads // v.heads, axis=0)
    return OpFacts(
        _outputs(context, kernel, passed, k.labels, v.labels, None),
        "affine" if per_channel else "linear",
        per_channel=per_channel,
        implied_numbers=(scale,),
        ties=ties,
        bilinear=product,
        scales=np.concatenate([q.labels[0], v.labels[0]]),
        macs=macs,
    )


def _heads(
    context: OpContext,
    kernel: AttentionOp,
    sides: tuple[Side, Side, Side],
    per_channel: tuple[PerChannelConstant, ...],
    macs: int,
) -> OpFacts:
    """Whole heads: of all three, or of Q alone where a cache holds the others."""
    q, k, v = sides
    mode = granularity(context)
    why = f"{describe(context.node)} multiplies its channels by some {MUST_STAY}"
    groups = q.labels.reshape(k.heads, -1, q.width)
    frozen = list[Frozen]()
    if mode == "whole":
        lead = next((side[:, :1] for side in (q.labels[:: q.heads // k.heads], k.labels, v.labels) if side.min() >= 0),
                    v.labels[:, :1])  # fmt: skip
        ties = [*_alike(lead[:, :, None], groups, why), *_alike(lead, k.labels, why), *_alike(lead, v.labels, why)]
        ties += _caches(context, kernel, (k, v))
    else:
        ties = [*_alike(groups[:1, :, :1], groups, why)] if mode == "queries" else []
        staying = ((k, 0), (v, 1)) if mode == "queries" else ((q, 0), (k, 0), (v, 1))
        frozen = [Frozen(side.labels[side.labels >= 0], why_held(context, place)) for side, place in staying]
    heads = q.labels[:, 0]
    passed = np.broadcast_to(heads[:, None], (q.heads, v.width)) if mode == "queries" else v.labels
    if mode != "queries":
        passed = np.repeat(v.labels, q.heads // v.heads, axis=0)
    counts = []
    if mode != "held" and context.attr(kernel.q_heads, 0):
        counts = [ChannelCount(context.node.key, kernel.q_heads, 0, heads)]
        if mode == "whole" and kernel.kv_heads:
            counts.append(ChannelCount(context.node.key, kernel.kv_heads, 0, k.labels[:, 0]))
    scores = None if mode == "held" else heads
    return OpFacts(
        _outputs(context, kernel, passed, k.labels, v.labels, scores),
        "channelwise",
        per_channel=per_channel,
        sizes=tuple(counts),
        ties=tuple(ties),
        frozen=tuple(frozen),
        scales=None if mode == "held" else heads,
        macs=macs,
        reason=why_held(context, 0) if mode == "held" else "",
    )


def _caches(context: OpContext, kernel: AttentionOp, sides: tuple[Side, Side]) -> Iterator[Tie]:
    """What lies in a cache that may get narrower goes with K and V, which come behind it."""
    for place, side in zip(kernel.past, sides, strict=True):
        labels = context.labels[place] if place < len(context.labels) else None
        if labels is not None:
            why = f"{describe(context.node)} puts its channels behind those of '{context.node.inputs[place]}'"
            shape = (1, side.heads, 1, side.width)
            yield Tie(np.array(np.broadcast_to(labels, shape)), side.labels.reshape(shape), why)


def _alike(first: Labels, labels: Labels, why: str) -> Iterator[Tie]:
    one = np.broadcast_to(first, labels.shape)
    if not np.array_equal(one, labels):
        yield Tie(one, labels, why)


def _scale(context: OpContext, q: Side) -> float:
    """The factor of the scores, as it is given or implied."""
    return float(context.attr("scale", 0.0)) or q.width**-0.5


def _orders(context: OpContext, q: Side, k: Side) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
    """Axes of both, once their parts are taken: (batch, heads of K, heads of Q that share one, positions, channels)."""
    shape = context.shapes[q.position] or ()
    of_q: tuple[int | None, ...] = (0, 1, 2, 3, 4) if len(shape) == 4 else (0, 2, 3, 1, 4)
    if len(shape) == 5:
        of_q = (0, 2, None, 1, 3)
    of_k = (0, 1, None, 2, 3) if len(context.shapes[k.position] or ()) == 4 else (0, 2, None, 1, 3)
    return of_q, of_k


def _outputs(
    context: OpContext, kernel: AttentionOp, passed: Labels, k: Labels, v: Labels, heads: Labels | None
) -> tuple[Labels | None, ...]:
    """Labels of the output (heads, channels), the present cache and the scores, laid along their axes."""
    rank = 4 if context.node.domain == "" and len(context.shapes[0] or ()) == 4 else 3
    outputs: list[Labels | None] = [None] * len(context.node.outputs)
    outputs[0] = _laid(passed, rank)
    for place, labels in zip(kernel.present, (k, v), strict=True):
        if place < len(outputs):
            outputs[place] = _laid(labels, 4)
    if kernel.scores < len(outputs) and heads is not None:
        outputs[kernel.scores] = spread(heads, 1, 4)
    return tuple(None if labels is None or labels.max() < 0 else labels for labels in outputs)


def _laid(labels: Labels, rank: int) -> Labels:
    return labels.reshape(1, labels.shape[0], 1, -1) if rank == 4 else labels.reshape(1, 1, -1)


def _bias(context: OpContext, kernel: AttentionOp, sides: tuple[Side, Side, Side]) -> Iterator[PerChannelConstant]:
    """The bias of Q, K and V in one vector."""
    if 0 <= kernel.bias < len(context.node.inputs) and context.node.inputs[kernel.bias]:
        yield PerChannelConstant(kernel.bias, np.concatenate([side.labels.reshape(-1) for side in sides]))


def _masks(context: OpContext, kernel: AttentionOp, q: Side) -> tuple[PerChannelConstant, ...] | None:
    """Constants with a value per head; None where one of them is computed or of unknown shape."""
    constants = []
    for place in (*kernel.masks, *kernel.per_head):
        if place >= len(context.node.inputs) or not context.node.inputs[place]:
            continue
        shape = context.shapes[place]
        if shape is None:
            return None
        axis = 0 if place in kernel.per_head else len(shape) - 3
        if axis < 0 or shape[axis] == 1 or (place in kernel.masks and len(shape) < 3):
            continue
        if shape[axis] != q.heads or context.constant(place) is None:
            return None
        constants.append(PerChannelConstant(place, spread(q.labels[:, 0], axis, len(shape))))
    return tuple(constants)


def _macs(context: OpContext, kernel: AttentionOp, sides: tuple[Side, Side, Side]) -> int:
    """Q Kᵀ and the product with V: batch * heads * queries * keys * (width of Q + width of V)."""
    q, k, v = sides
    batch = (context.shapes[0] or (None,))[0]
    past = [context.shapes[p] for p in kernel.past if p < len(context.node.inputs) and context.node.inputs[p]]
    before = past[0][2] if past and past[0] is not None and len(past[0]) == 4 else 0
    sizes = (batch, q.positions, k.positions, 0 if before is None else before)
    if any(size is None for size in (*sizes[:3], before)):
        return 0
    keys = (sizes[2] or 0) + (sizes[3] or 0)
    return prod((sizes[0] or 0, q.heads, sizes[1] or 0, keys, q.width + v.width))
