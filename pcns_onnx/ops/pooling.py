"""Pooling, padding, resizing and reducing over positions: every channel keeps to itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pcns_onnx.ops.computed_shapes import Stored, origin, target
from pcns_onnx.ops.facts import ChannelCount, Kind, OpContext, OpFacts, along, axes_of, describe, freeze, spread
from pcns_onnx.ops.normalization import SEVERAL, is_norm_of
from pcns_onnx.ops.registry import rule
from pcns_onnx.ops.sliding_window import WindowOp


@rule("MaxPool", "GlobalMaxPool", "LpPool", "GlobalLpPool")
def max_pool(site: OpContext) -> OpFacts:
    """Per channel, not linear: selecting channels commutes with it, mixing them does not."""
    flow = _pool(site, "channelwise")
    kernel = site.attr("kernel_shape", ())
    if site.node.op != "MaxPool" or flow.frozen or site.attr("ceil_mode", 0) or not kernel:
        return flow
    return replace(flow, largest=WindowOp.of(site, kernel))


@rule("Pad")
def pad(site: OpContext) -> OpFacts:
    """Positions are added around every channel, or channels of zeros; a mixture would be padded differently."""
    labels = site.labels[0]
    if labels is None:
        return OpFacts((None,))
    pads = site.constant(1) if len(site.node.inputs) > 1 else np.asarray(site.attr("pads", ()))
    axes = site.constant(3) if len(site.node.inputs) > 3 and site.node.inputs[3] else np.arange(labels.ndim)
    if pads is None or axes is None or pads.size != 2 * axes.size:
        return freeze(site, f"{describe(site.node)} pads by sizes that are computed")
    both = {int(axis) % labels.ndim: i for i, axis in enumerate(axes) if pads.reshape(2, -1)[:, i].any()}
    channels = axes_of(labels)
    if both.keys().isdisjoint(channels) and channels:
        return OpFacts((labels,), "channelwise")
    vector = along(labels, channels[0], labels.ndim) if channels else None
    if vector is None or site.attr("mode", b"constant") != b"constant" or (pads < 0).any():
        return freeze(site, f"{describe(site.node)} pads the channel axis")
    place: int | str = 1 if len(site.node.inputs) > 1 else "pads"
    element = both[channels[0]]
    front, back = (site.fresh(int(count)) for count in pads.reshape(2, -1)[:, element])
    ends = (
        ChannelCount(site.node.key, place, element, front),
        ChannelCount(site.node.key, place, element + axes.size, back),
    )
    wider = spread(np.concatenate([front, vector, back]), channels[0], labels.ndim)
    return OpFacts((wider,), "channelwise", sizes=ends)


@rule("Resize", "Upsample")
def resize(site: OpContext) -> OpFacts:
    """Positions are interpolated, the same way for every channel; sizes that name the channels are kept in step."""
    labels, inputs = site.labels[0], site.node.inputs
    has_sizes = len(inputs) > 3 and bool(inputs[3])
    rank = len(site.shapes[0] or ()) if labels is None else labels.ndim
    axes = [axis % rank for axis in site.attr("axes", range(rank))] if rank else []
    sizes, frozen = target(site, 3, labels, axes) if has_sizes else ((), ())
    if labels is None or frozen:
        return OpFacts((None,), frozen=frozen)
    place: int | str = "scales" if len(inputs) == 1 else 1 if len(inputs) == 2 else 2
    for axis in () if has_sizes else set(axes).intersection(axes_of(labels)):
        scale = origin(site, place, axes.index(axis))
        if not isinstance(scale, Stored) or scale.value != 1:
            return freeze(site, f"{describe(site.node)} resizes the channel axis")
    if has_sizes and site.attr("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        return freeze(site, f"{describe(site.node)} may resize the channel axis to keep an aspect ratio")
    is_cropped = site.attr("coordinate_transformation_mode", b"") == b"tf_crop_and_resize"
    return OpFacts((labels,), "channelwise" if is_cropped else "linear", sizes=sizes, frozen=frozen)


@rule("AveragePool", "GlobalAveragePool")
def average_pool(site: OpContext) -> OpFacts:
    """Linear over positions, the same for every channel: commutes with any mixing."""
    return _pool(site, "linear")


@rule("ReduceMean", "ReduceSum")
def reduce_linear(site: OpContext) -> OpFacts:
    """A mean or sum over axes that are not the channels'."""
    return _reduce(site, "linear")


@rule("ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "ReduceProd")
def reduce_channelwise(site: OpContext) -> OpFacts:
    """Any other reduction over axes that are not the channels'."""
    return _reduce(site, "channelwise")


@rule("CumSum")
def cumulative_sum(site: OpContext) -> OpFacts:
    """Sums up along positions: linear, the same for every channel."""
    labels, axis = site.labels[0], site.constant(1)
    if labels is None:
        return OpFacts((None,))
    if axis is None or int(axis.reshape(-1)[0]) % labels.ndim in axes_of(labels):
        return freeze(site, f"{describe(site.node)} adds up channels")
    return OpFacts((labels,), "linear")


@rule("Trilu")
def triangle(site: OpContext) -> OpFacts:
    """Keeps a triangle of the last two axes: linear where these are positions."""
    labels = site.labels[0]
    if labels is None:
        return OpFacts((None,))
    if set(axes_of(labels)).intersection((labels.ndim - 2, labels.ndim - 1)):
        return freeze(site, f"{describe(site.node)} keeps other positions of every channel")
    return OpFacts((labels,), "linear")


def _pool(site: OpContext, kind: Kind) -> OpFacts:
    labels = site.labels[0]
    rest = (None,) * (len(site.node.outputs) - 1)
    if labels is None:
        return OpFacts((None, *rest))
    if any(axis != 1 for axis in axes_of(labels)):
        return freeze(site, f"{describe(site.node)} pools across channels")
    if any(site.node.outputs[1:]):
        return freeze(site, f"{describe(site.node)} also returns indices")
    return OpFacts((labels, *rest), kind)


def _reduce(site: OpContext, kind: Kind) -> OpFacts:
    labels = site.labels[0]
    if labels is None:
        return OpFacts((None,))
    stored = site.constant(1)
    if stored is None and len(site.node.inputs) > 1 and site.node.inputs[1]:
        return freeze(site, f"{describe(site.node)} reduces over axes that are computed")
    axes = tuple(int(a) for a in stored) if stored is not None else tuple(site.attr("axes", ()))
    if not axes and not site.attr("noop_with_empty_axes", 0):
        axes = tuple(range(labels.ndim))
    axes = tuple(a % labels.ndim for a in axes)
    if any(a in axes for a in axes_of(labels)) or _single_channel(labels.shape, axes):
        why = SEVERAL if is_norm_of(site) else "mixes channels: it reduces over their axis"
        return freeze(site, f"{describe(site.node)} {why}")
    return OpFacts((labels if site.attr("keepdims", 1) else np.squeeze(labels, axis=axes),), kind)


def _single_channel(shape: tuple[int, ...], axes: tuple[int, ...]) -> bool:
    return all(size == 1 for size in shape) and bool(axes)
