"""Elementwise operators: channels pass through, per-channel constants are sliced along.

Any scalar function applied to every element commutes with *selecting* channels, so one rule
serves all activations, fused or decomposed. A binary operator ties its computed operands: a sum
of two layers (a residual connection) makes their channels one group, as does a gate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pcns_onnx.graph import Shape
from pcns_onnx.ops.facts import (
    MUST_STAY,
    Frozen,
    Kind,
    Labels,
    OpContext,
    OpFacts,
    PerChannelConstant,
    Tie,
    axes_of,
    describe,
    freeze,
)
from pcns_onnx.ops.registry import rule

UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Cos", "Cosh",
    "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu",
    "Log", "Mish", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
BINARY = (
    "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum", "PRelu", "Clip", "Where", "Mod",
    "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor",
)  # fmt: skip
GATES = ("Mul", "Div", "Pow", "PRelu", "Clip", "Where", "Mod")
"""Products and choices tie channels within a block; sums make streams that several blocks share."""


@rule("Identity", "Neg")
def scaling(context: OpContext) -> OpFacts:
    """One factor for all channels."""
    return OpFacts((context.labels[0],), "scaling")


@rule(*UNARY)
@rule("Gelu", "QuickGelu", domain="com.microsoft")
def unary(context: OpContext) -> OpFacts:
    """One input, one output."""
    return OpFacts((context.labels[0],), "pointwise")


@rule("CastLike", operands="all")
def cast_like(context: OpContext) -> OpFacts:
    """The values of the first operand; of the second only the type."""
    return OpFacts((context.labels[0],), "pointwise")


@rule("Dropout")
def dropout(context: OpContext) -> OpFacts:
    """At inference the identity, and a mask of the same shape."""
    training = context.constant(2)
    if len(context.node.inputs) > 2 and context.node.inputs[2] and (training is None or training.any()):
        return freeze(context, f"{describe(context.node)} may be in training mode")
    return OpFacts((context.labels[0],) * len(context.node.outputs), "pointwise")


@rule(*BINARY, operands="all")
@rule("BiasGelu", "FastGelu", domain="com.microsoft", operands="all")
def binary(context: OpContext) -> OpFacts:
    """Operands broadcast against each other: computed ones tie their channels, constants are sliced."""
    ranks = [len(s) if s is not None else 0 for s in context.shapes]
    rank = max([*ranks, *(lab.ndim for lab in context.labels if lab is not None)], default=0)
    carried = [_align(lab, rank) for lab in context.labels if lab is not None]
    if not carried:
        return OpFacts((None,))
    whole = np.broadcast_shapes(*(lab.shape for lab in carried))
    sizes = [s for s, lab in zip(context.shapes, context.labels, strict=True) if lab is not None]
    alone = [_is_spread(lab, whole, size) for lab, size in zip(carried, sizes, strict=True)]
    frozen = tuple(
        Frozen(lab, f"{describe(context.node)} spreads it over the channels of another layer")
        for lab, spread in zip(carried, alone, strict=True)
        if spread
    )
    tied = [np.broadcast_to(lab, whole) for lab, spread in zip(carried, alone, strict=True) if not spread]
    if not tied:
        return freeze(context, f"{describe(context.node)} spreads channels over one another")
    labels = np.max(np.stack(tied), axis=0)
    why = f"{describe(context.node)} joins its channels with a tensor's {MUST_STAY}"
    ties = tuple(Tie(labels, lab, why) for lab in tied if not np.array_equal(lab, labels))
    per_channel = []
    for position, name in enumerate(context.node.inputs):
        if not name or context.labels[position] is not None:
            continue
        shape = context.shapes[position]
        if shape is None:
            return freeze(context, f"{describe(context.node)} has an operand of unknown shape")
        constant = per_channel_constant(labels, len(shape), tuple(shape))
        if constant is None:
            continue
        if context.constant(position) is None:
            return freeze(context, why)
        per_channel.append(PerChannelConstant(position, constant))
    coupled = (labels,) if ties and context.node.op not in GATES else ()
    return OpFacts(
        (labels,),
        _kind(context, carried, per_channel),
        per_channel=tuple(per_channel),
        ties=ties,
        coupled=coupled,
        frozen=frozen,
    )


def _kind(context: OpContext, carried: Sequence[Labels], per_channel: Sequence[PerChannelConstant]) -> Kind:
    if (
        len(carried) == 1
        and not per_channel
        and (context.node.op == "Mul" or (context.node.op == "Div" and _is_first(context)))
    ):
        return "scaling"
    return "affine" if per_channel and context.node.op != "PRelu" else "pointwise"


def _is_first(context: OpContext) -> bool:
    return context.labels[0] is not None


@rule("BatchNormalization")
def batch_normalization(context: OpContext) -> OpFacts:
    """At inference a scale and a shift per channel (axis 1)."""
    labels = context.labels[0]
    rest = (None,) * (len(context.node.outputs) - 1)
    if labels is None:
        return OpFacts((None, *rest))
    if context.attr("training_mode", 0) or len([o for o in context.node.outputs if o]) > 1:
        return freeze(context, f"{describe(context.node)} is in training mode")
    if any(axis != 1 for axis in axes_of(labels)) or any(context.constant(i) is None for i in range(1, 5)):
        return freeze(context, f"{describe(context.node)} does not normalise the channels by stored values")
    vector = labels.reshape(-1)
    return OpFacts((labels, *rest), "affine", per_channel=tuple(PerChannelConstant(i, vector) for i in range(1, 5)))


def _is_spread(labels: Labels, whole: tuple[int, ...], size: Shape | None) -> bool:
    """Whether a tensor of one channel meets one of many: broadcast, not tied."""
    dims = (1,) * (labels.ndim - len(size or ())) + tuple(size or ())
    return any(own < broadcast and dim == 1 for own, broadcast, dim in zip(labels.shape, whole, dims, strict=True))


def _align(labels: Labels, rank: int) -> Labels:
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)


def per_channel_constant(labels: Labels, rank: int, shape: tuple[int | None, ...]) -> Labels | None:
    """Labels of an operand of `shape`: None if it has one value for all channels."""
    tail = labels.shape[labels.ndim - rank :] if rank else ()
    varying = [axis for axis, (size, dim) in enumerate(zip(tail, shape, strict=True)) if size > 1 and dim != 1]
    if not varying:
        return None
    index = [slice(None) if axis in varying else slice(0, 1) for axis in range(rank)]
    lead = (0,) * (labels.ndim - rank)
    return labels[(*lead, *index)]
