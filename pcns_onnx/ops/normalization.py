"""Norms: what normalises every channel by itself passes, what normalises over several keeps them.

Taking a channel out of a LayerNormalization changes all the others, so its channels stay. Exporters
also write such norms in pieces, as x - mean(x) and x / sqrt(mean(x²) + e): `is_norm_of` knows these.

A GroupNormalization can lose whole groups, which leaves the others as they were. In pieces it is an
InstanceNormalization between two Reshapes: `is_group_norm` knows the first of these.

A Softmax passes channels that lie on another axis than the one that it normalises.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pcns_onnx.ops.elementwise import per_channel_constant
from pcns_onnx.ops.facts import (
    MUST_STAY,
    ChannelCount,
    OpContext,
    OpFacts,
    PerChannelConstant,
    Tie,
    along,
    axes_of,
    describe,
    freeze,
    spread,
)
from pcns_onnx.ops.registry import rule

SEVERAL = "normalises over several channels: removing some changes the others"
_SQUARES = ("Pow", "Mul", "Sub", "Abs", "Cast")
_BETWEEN = ("Add", "Div", "Sqrt", "Pow", "Clip", "Max", "Reciprocal", "Expand", "Unsqueeze", "Cast")


@rule("InstanceNormalization")
def instance_normalization(context: OpContext) -> OpFacts:
    """Every channel (axis 1) over its positions, then a scale and a shift per channel."""
    labels = context.labels[0]
    if labels is None:
        return OpFacts((None,))
    if any(axis != 1 for axis in axes_of(labels)):
        return freeze(context, f"{describe(context.node)} {SEVERAL}")
    if any(context.constant(position) is None for position in (1, 2)):
        return freeze(context, f"{describe(context.node)} scales its channels by computed values")
    vector = labels.reshape(-1)
    return OpFacts((labels,), "channelwise", per_channel=(PerChannelConstant(1, vector), PerChannelConstant(2, vector)))


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


_LAYER_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


@rule(*_LAYER_NORMS)
def layer_normalization(context: OpContext) -> OpFacts:
    """From one axis to the last."""
    labels = context.labels[0]
    if labels is None:
        return OpFacts((None,) * len(context.node.outputs))
    first = int(context.attr("axis", -1)) % labels.ndim
    return _normalised(context, range(first, labels.ndim))


@rule("MeanVarianceNormalization")
def mean_variance_normalization(context: OpContext) -> OpFacts:
    """Over the given axes."""
    return _normalised(context, context.attr("axes", (0, 2, 3)))


@rule("LpNormalization")
def lp_normalization(context: OpContext) -> OpFacts:
    """Over one axis."""
    return _normalised(context, (int(context.attr("axis", -1)),))


@rule("LRN")
def local_response(context: OpContext) -> OpFacts:
    """Over neighbours on axis 1."""
    return _normalised(context, (1,))


@rule("GroupNormalization")
def group_normalization(context: OpContext) -> OpFacts:
    """Over equal groups of channels (axis 1): whole groups can go."""
    labels, shape = context.labels[0], context.shapes[0]
    if labels is None:
        return OpFacts((None,))
    vector, groups = along(labels, 1, labels.ndim), int(context.attr("num_groups", 1))
    if vector is None or groups == 1 or shape is None or shape[1] is None or shape[1] % groups:
        return freeze(context, f"{describe(context.node)} {SEVERAL}")
    if any(context.constant(position) is None for position in (1, 2)):
        return freeze(context, f"{describe(context.node)} scales its channels by computed values")
    rows = np.broadcast_to(vector, (shape[1],)).reshape(groups, -1)
    first = np.broadcast_to(rows[:, :1], rows.shape)
    whole = first.reshape(-1)
    return OpFacts(
        (spread(whole, 1, labels.ndim),),
        "channelwise",
        per_channel=(PerChannelConstant(1, whole), PerChannelConstant(2, whole)),
        sizes=(ChannelCount(context.node.key, "num_groups", 0, first[:, 0]),),
        ties=(Tie(first, rows, f"{describe(context.node)} normalises its channels with some {MUST_STAY}"),),
    )


def is_group_norm(context: OpContext) -> bool:
    """Whether a Reshape stands in front of an InstanceNormalization, which takes axis 1 for its channels."""
    return {reader.op for reader in context.readers(context.node.outputs[0])} == {"InstanceNormalization"}


@rule("LayerNormalization", "GroupNorm", "SkipGroupNorm", "EmbedLayerNormalization", domain="com.microsoft")
@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain="com.microsoft", operands="all")
def several(context: OpContext) -> OpFacts:
    """Always over channels."""
    return freeze(context, f"{describe(context.node)} {SEVERAL}")


def _normalised(context: OpContext, axes: Iterable[int]) -> OpFacts:
    """Normalised over `axes`; what is stored beside lies along these."""
    labels = context.labels[0]
    nothing = (None,) * len(context.node.outputs)
    if labels is None:
        return OpFacts(nothing)
    if {axis % labels.ndim for axis in axes}.intersection(axes_of(labels)):
        return freeze(context, f"{describe(context.node)} {SEVERAL}")
    per_channel = []
    for position, shape in enumerate(context.shapes[1:], start=1):
        constant = None if shape is None else per_channel_constant(labels, len(shape), tuple(shape))
        if shape is None or (constant is not None and context.constant(position) is None):
            return freeze(context, f"{describe(context.node)} scales its channels by computed values")
        per_channel += [] if constant is None else [PerChannelConstant(position, constant)]
    return OpFacts((labels,) * len(nothing), "channelwise", per_channel=tuple(per_channel))


def is_norm_of(context: OpContext) -> bool:
    """Whether what is reduced here meets its own mean or size again: it is part of a norm."""
    source = context.node.inputs[0]
    maker = context.producer(source)
    whole = {source, *(maker.inputs if maker is not None and maker.op in _SQUARES else ())}
    front = {context.node.outputs[0]}
    for _ in range(6):
        readers = [reader for name in front for reader in context.readers(name)]
        if any(reader.op in ("Sub", "Div", "Mul") and whole.intersection(reader.inputs) for reader in readers):
            return True
        front = {reader.outputs[0] for reader in readers if reader.op in _BETWEEN}
    return False
