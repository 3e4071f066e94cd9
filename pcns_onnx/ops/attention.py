"""Products of two computed tensors and what stands between them: attention.

A @ B sums over the last axis of A and the last but one of B. Channels may lie

- on the axis that is summed over, in both (Q Kᵀ): the same ones go on both sides;
- on another axis of one of them (P V): they pass to the product, which is linear in them;
- on the axis of the heads, in both: tied.
"""

from __future__ import annotations

import numpy as np

from pcns_onnx.ops.facts import Bilinear, Labels, OpContext, OpFacts, Tie, axes_of, describe, freeze
from pcns_onnx.ops.registry import rule


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(context: OpContext) -> OpFacts:
    """Passes channels that lie on another axis than the one that it normalises (before opset 13: and all behind)."""
    labels = context.labels[0]
    if labels is None:
        return OpFacts((None,))
    axis = int(context.attr("axis", 1 if context.opset < 13 else -1)) % labels.ndim
    taken = range(axis, labels.ndim) if context.opset < 13 else (axis,)
    if set(taken).intersection(axes_of(labels)) or not axes_of(labels):
        return freeze(context, f"{describe(context.node)} normalises over several channels")
    return OpFacts((labels,), "channelwise")


def product(context: OpContext, macs: int) -> OpFacts:
    """MatMul of two computed tensors."""
    a, b = context.labels[:2]
    shapes = context.shapes[:2]
    if any(shape is None or len(shape) < 2 for shape in shapes) or not axes_of_either(a, b):
        return freeze(context, f"{describe(context.node)} multiplies two computed tensors", macs=macs)
    rank = max(len(shape) for shape in shapes if shape is not None)
    left, right = (_aligned(labels, rank) for labels in (a, b))
    if left.shape[-1] > 1 or right.shape[-2] > 1:
        return _summed(context, left, np.swapaxes(right, -1, -2), macs)
    if a is not None and b is not None and sum(size > 1 for size in np.broadcast_shapes(left.shape, right.shape)) != 1:
        return freeze(context, f"{describe(context.node)} multiplies channels by channels", macs=macs)
    return _passed(context, left, right, macs)


def axes_of_either(a: Labels | None, b: Labels | None) -> bool:
    """Whether channels vary along some axis of one of the two."""
    return any(labels is not None and axes_of(labels) for labels in (a, b))


def _summed(context: OpContext, a: Labels, b: Labels, macs: int) -> OpFacts:
    """The channels are summed over: the same ones must go on both sides. Labels have the sum's axis last."""
    if a.shape[-1] != b.shape[-1] or a.shape[-2] > 1 or b.shape[-2] > 1:
        return freeze(
            context, f"{describe(context.node)} sums over the channels of one of its operands only", macs=macs
        )
    why = f"{describe(context.node)} multiplies its channels by some that must stay"
    a, b = np.broadcast_arrays(a, b)
    rank_a, rank_b = (len(shape or ()) for shape in context.shapes[:2])
    found = Bilinear((rank_a - 1, rank_b - 2), a, b)
    return OpFacts((None,), "linear", ties=(Tie(a, b, why),), bilinear=found, scales=a.reshape(-1), macs=macs)


def _passed(context: OpContext, a: Labels, b: Labels, macs: int) -> OpFacts:
    """The channels pass; on the axes of the heads they are tied to the other operand's, or must stay with them."""
    labels = np.broadcast_to(np.maximum(a, b), np.broadcast_shapes(a.shape, b.shape))
    why = f"{describe(context.node)} multiplies its channels by some that must stay"
    ties = []
    for mine, shape in zip((a, b), context.shapes, strict=False):
        dims = (1,) * (labels.ndim - len(shape or ())) + tuple(shape or ())
        if any(dims[axis] != 1 for axis in axes_of(labels) if axis < labels.ndim - 2):
            ties.append(Tie(labels, np.broadcast_to(mine, labels.shape), why))
    return OpFacts((labels,), "linear", ties=tuple(ties), scales=labels.reshape(-1), macs=macs)


def _aligned(labels: Labels | None, rank: int) -> Labels:
    if labels is None:
        return np.full((1,) * rank, -1, dtype=np.int64)
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)
