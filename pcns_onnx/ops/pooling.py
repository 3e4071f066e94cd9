"""Pooling, padding, resizing and reducing over positions: every channel keeps to itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pcns_onnx.ops.computed_shapes import Stored, origin, target
from pcns_onnx.ops.facts import ChannelCount, Kind, OpContext, OpFacts, Tie, along, axes_of, describe, freeze, spread
from pcns_onnx.ops.normalization import SEVERAL, is_norm_of
from pcns_onnx.ops.registry import rule
from pcns_onnx.ops.sliding_window import WindowOp


@rule("MaxPool", "GlobalMaxPool", "LpPool", "GlobalLpPool")
def max_pool(context: OpContext) -> OpFacts:
    """Per channel, not linear: selecting channels commutes with it, mixing them does not."""
    facts = _pool(context, "channelwise")
    kernel = context.attr("kernel_shape", ())
    if context.node.op != "MaxPool" or facts.frozen or context.attr("ceil_mode", 0) or not kernel:
        return facts
    return replace(facts, largest=WindowOp.of(context, kernel))


@rule("Pad")
def pad(context: OpContext) -> OpFacts:
    """Positions are added around every channel, or channels of zeros; a mixture would be padded differently."""
    labels = context.labels[0]
    if labels is None:
        return OpFacts((None,))
    pads = context.constant(1) if len(context.node.inputs) > 1 else np.asarray(context.attr("pads", ()))
    axes = context.constant(3) if len(context.node.inputs) > 3 and context.node.inputs[3] else np.arange(labels.ndim)
    if pads is None or axes is None or pads.size != 2 * axes.size:
        return freeze(context, f"{describe(context.node)} pads by sizes that are computed")
    both = {int(axis) % labels.ndim: i for i, axis in enumerate(axes) if pads.reshape(2, -1)[:, i].any()}
    channels = axes_of(labels)
    if both.keys().isdisjoint(channels) and channels:
        return OpFacts((labels,), "channelwise")
    vector = along(labels, channels[0], labels.ndim) if channels else None
    if vector is None or context.attr("mode", b"constant") != b"constant" or (pads < 0).any():
        return freeze(context, f"{describe(context.node)} pads the channel axis")
    place: int | str = 1 if len(context.node.inputs) > 1 else "pads"
    element = both[channels[0]]
    front, back = (context.fresh(int(count)) for count in pads.reshape(2, -1)[:, element])
    ends = (
        ChannelCount(context.node.key, place, element, front),
        ChannelCount(context.node.key, place, element + axes.size, back),
    )
    wider = spread(np.concatenate([front, vector, back]), channels[0], labels.ndim)
    return OpFacts((wider,), "channelwise", sizes=ends)


@rule("Resize", "Upsample")
def resize(context: OpContext) -> OpFacts:
    """Positions are interpolated, the same way for every channel; sizes that name the channels are kept in step."""
    labels, inputs = context.labels[0], context.node.inputs
    has_sizes = len(inputs) > 3 and bool(inputs[3])
    rank = len(context.shapes[0] or ()) if labels is None else labels.ndim
    axes = [axis % rank for axis in context.attr("axes", range(rank))] if rank else []
    sizes, frozen = target(context, 3, labels, axes) if has_sizes else ((), ())
    if labels is None or frozen:
        return OpFacts((None,), frozen=frozen)
    place: int | str = "scales" if len(inputs) == 1 else 1 if len(inputs) == 2 else 2
    for axis in () if has_sizes else set(axes).intersection(axes_of(labels)):
        scale = origin(context, place, axes.index(axis))
        if not isinstance(scale, Stored) or scale.value != 1:
            return freeze(context, f"{describe(context.node)} resizes the channel axis")
    if has_sizes and context.attr("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        return freeze(context, f"{describe(context.node)} may resize the channel axis to keep an aspect ratio")
    is_cropped = context.attr("coordinate_transformation_mode", b"") == b"tf_crop_and_resize"
    return OpFacts((labels,), "channelwise" if is_cropped else "linear", sizes=sizes, frozen=frozen)


@rule("AveragePool", "GlobalAveragePool")
def average_pool(context: OpContext) -> OpFacts:
    """Linear over positions, the same for every channel: commutes with any mixing."""
    return _pool(context, "linear")


@rule("ReduceMean", "ReduceSum")
def reduce_linear(context: OpContext) -> OpFacts:
    """A mean or sum over axes that are not the channels'."""
    return _reduce(context, "linear")


@rule("ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "ReduceProd")
def reduce_channelwise(context: OpContext) -> OpFacts:
    """Any other reduction over axes that are not the channels'."""
    return _reduce(context, "channelwise")


@rule("CumSum")
def cumulative_sum(context: OpContext) -> OpFacts:
    """Sums up along positions: linear, the same for every channel."""
    labels, axis = context.labels[0], context.constant(1)
    if labels is None:
        return OpFacts((None,))
    if axis is None or int(axis.reshape(-1)[0]) % labels.ndim in axes_of(labels):
        return freeze(context, f"{describe(context.node)} adds up channels")
    return OpFacts((labels,), "linear")


@rule("Trilu")
def triangle(context: OpContext) -> OpFacts:
    """Keeps a triangle of the last two axes: linear where these are positions."""
    labels = context.labels[0]
    if labels is None:
        return OpFacts((None,))
    if set(axes_of(labels)).intersection((labels.ndim - 2, labels.ndim - 1)):
        return freeze(context, f"{describe(context.node)} keeps other positions of every channel")
    return OpFacts((labels,), "linear")


def _pool(context: OpContext, kind: Kind) -> OpFacts:
    labels = context.labels[0]
    rest = (None,) * (len(context.node.outputs) - 1)
    if labels is None:
        return OpFacts((None, *rest))
    if any(axis != 1 for axis in axes_of(labels)):
        return freeze(context, f"{describe(context.node)} pools across channels")
    if any(context.node.outputs[1:]):
        return freeze(context, f"{describe(context.node)} also returns indices")
    return OpFacts((labels, *rest), kind)


def _reduce(context: OpContext, kind: Kind) -> OpFacts:
    labels = context.labels[0]
    if labels is None:
        return OpFacts((None,))
    stored = context.constant(1)
    if stored is None and len(context.node.inputs) > 1 and context.node.inputs[1]:
        return freeze(context, f"{describe(context.node)} reduces over axes that are computed")
    axes = tuple(int(a) for a in stored) if stored is not None else tuple(context.attr("axes", ()))
    if not axes and not context.attr("noop_with_empty_axes", 0):
        axes = tuple(range(labels.ndim))
    axes, ties = tuple(a % labels.ndim for a in axes), tuple[Tie, ...]()
    varying = axes_of(labels)
    if len(varying) == 2 and varying[0] in axes and varying[1] not in axes:  # directions of a cell: unit by unit
        first = np.take(labels, [0], axis=varying[0])
        why = f"{describe(context.node)} reduces over the directions of its channels"
        ties, labels = (Tie(np.broadcast_to(first, labels.shape), labels, why),), first
    if any(a in axes for a in axes_of(labels)) or _single_channel(labels.shape, axes):
        why = SEVERAL if is_norm_of(context) else "mixes channels: it reduces over their axis"
        return freeze(context, f"{describe(context.node)} {why}")
    return OpFacts((labels if context.attr("keepdims", 1) else np.squeeze(labels, axis=axes),), kind, ties=ties)


def _single_channel(shape: tuple[int, ...], axes: tuple[int, ...]) -> bool:
    return all(size == 1 for size in shape) and bool(axes)
