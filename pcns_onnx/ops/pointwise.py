"""Elementwise operators: channels pass through, per-channel constants ride along.

Any scalar function applied to every element commutes with *selecting* channels, so one rule
serves all activations, fused or decomposed. A binary operator ties its computed operands: the
same channels on both sides (x * sigmoid(x)) are fine, different ones are coupled.
"""

from __future__ import annotations

import numpy as np

from pcns_onnx.ops.facts import Flow, Frozen, Labels, Ride, Site, axes_of, describe, rule

UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Cos", "Cosh", "Dropout",
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
    """One labelled input, everything else (Dropout's ratio, say) scalar."""
    rest = (None,) * (len(site.node.outputs) - 1)
    if site.attr("training_mode", 0):
        return Flow((None, *rest))
    return Flow((site.labels[0], *rest), "pointwise")


@rule(*BINARY)
def binary(site: Site) -> Flow:
    """Operands broadcast against each other; constants with a value per channel are sliced."""
    ranks = [len(s) if s is not None else 0 for s in site.shapes]
    rank = max([*ranks, *(lab.ndim for lab in site.labels if lab is not None)], default=0)
    carried = [_align(lab, rank) for lab in site.labels if lab is not None]
    if not carried:
        return Flow((None,))
    labels = max(carried, key=lambda lab: lab.size)
    if not all(np.array_equal(lab, labels) for lab in carried):
        reason = f"{describe(site.node)} couples the channels of several layers (a residual connection or a gate)"
        return _frozen(site, reason)
    rides, per_channel = [], False
    for position, name in enumerate(site.node.inputs):
        if not name or site.labels[position] is not None:
            continue
        shape = site.shapes[position]
        if shape is None:
            return _frozen(site, f"{describe(site.node)} has an operand of unknown shape")
        ride = _ride(labels, len(shape), tuple(shape))
        if ride is None:
            continue
        if site.constant(position) is None:
            reason = f"{describe(site.node)} adds or scales channels by a computed tensor that cannot be narrowed"
            return _frozen(site, reason)
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
        return _frozen(site, f"{describe(site.node)} is in training mode")
    if any(axis != 1 for axis in axes_of(labels)) or any(site.constant(i) is None for i in range(1, 5)):
        return _frozen(site, f"{describe(site.node)} does not normalise the channels by stored values")
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


def _frozen(site: Site, reason: str) -> Flow:
    frozen = tuple(Frozen(labels, reason) for labels in site.labels if labels is not None)
    return Flow(outputs=(None,) * len(site.node.outputs), frozen=frozen)
