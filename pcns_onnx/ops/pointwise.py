"""Elementwise operators: channels pass through, per-channel constants ride along.

Any scalar function applied to every element commutes with *selecting* channels, so one rule
serves all activations, fused or decomposed. A binary operator ties its computed operands: the
same channels on both sides (x * sigmoid(x)) are fine, different ones are coupled.
"""

from __future__ import annotations

import numpy as np

from pcns_onnx.ops.facts import Flow, Labels, Ride, Site, axes_of, describe, freeze, rule

UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Cos", "Cosh",
    "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu",
    "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
BINARY = (
    "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum", "PRelu", "Clip", "Where", "Mod",
    "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor",
)  # fmt: skip


@rule(*UNARY)
def unary(site: Site) -> Flow:
    """One input, one output."""
    return Flow((site.labels[0],), "pointwise")


@rule("CastLike", operands="all")
def cast_like(site: Site) -> Flow:
    """The values of the first operand; of the second only the type."""
    return Flow((site.labels[0],), "pointwise")


@rule("Dropout")
def dropout(site: Site) -> Flow:
    """At inference the identity, and a mask of the same shape."""
    training = site.constant(2)
    if len(site.node.inputs) > 2 and site.node.inputs[2] and (training is None or training.any()):
        return freeze(site, f"{describe(site.node)} may be in training mode")
    return Flow((site.labels[0],) * len(site.node.outputs), "pointwise")


@rule(*BINARY, operands="all")
def binary(site: Site) -> Flow:
    """Operands broadcast against each other; constants with a value per channel are sliced."""
    ranks = [len(s) if s is not None else 0 for s in site.shapes]
    rank = max([*ranks, *(lab.ndim for lab in site.labels if lab is not None)], default=0)
    carried = [_align(lab, rank) for lab in site.labels if lab is not None]
    if not carried:
        return Flow((None,))
    labels = max(carried, key=lambda lab: lab.size)
    coupled = f"{describe(site.node)} couples its channels with another tensor's (a residual connection or a gate)"
    if not all(np.array_equal(lab, labels) for lab in carried):
        return freeze(site, coupled)
    rides, per_channel = [], False
    for position, name in enumerate(site.node.inputs):
        if not name or site.labels[position] is not None:
            continue
        shape = site.shapes[position]
        if shape is None:
            return freeze(site, f"{describe(site.node)} has an operand of unknown shape")
        ride = _ride(labels, len(shape), tuple(shape))
        if ride is None:
            continue
        if site.constant(position) is None:
            return freeze(site, coupled)
        rides.append(Ride(position, ride))
        per_channel = True
    scalar = not per_channel or site.node.op == "PRelu"
    return Flow((labels,), "pointwise" if scalar else "affine", rides=tuple(rides))


@rule("BatchNormalization")
def batch_normalization(site: Site) -> Flow:
    """At inference a scale and a shift per channel (axis 1)."""
    labels = site.labels[0]
    rest = (None,) * (len(site.node.outputs) - 1)
    if labels is None:
        return Flow((None, *rest))
    if site.attr("training_mode", 0) or len([o for o in site.node.outputs if o]) > 1:
        return freeze(site, f"{describe(site.node)} is in training mode")
    if any(axis != 1 for axis in axes_of(labels)) or any(site.constant(i) is None for i in range(1, 5)):
        return freeze(site, f"{describe(site.node)} does not normalise the channels by stored values")
    vector = labels.reshape(-1)
    return Flow((labels, *rest), "affine", rides=tuple(Ride(i, vector) for i in range(1, 5)))


def _align(labels: Labels, rank: int) -> Labels:
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)


def _ride(labels: Labels, rank: int, shape: tuple[int | None, ...]) -> Labels | None:
    """Labels of an operand of `shape`: None if it has one value for all channels."""
    tail = labels.shape[labels.ndim - rank :] if rank else ()
    varying = [axis for axis, (size, dim) in enumerate(zip(tail, shape, strict=True)) if size > 1 and dim != 1]
    if not varying:
        return None
    index = [slice(None) if axis in varying else slice(0, 1) for axis in range(rank)]
    lead = (0,) * (labels.ndim - rank)
    return labels[(*lead, *index)]
