"""Pools and reductions over positions: every channel keeps to itself."""

from __future__ import annotations

import numpy as np

from pcns_onnx.ops.facts import Flow, Kind, Site, axes_of, describe, freeze, rule


@rule("MaxPool", "GlobalMaxPool", "LpPool", "GlobalLpPool")
def max_pool(site: Site) -> Flow:
    """Per channel, not linear: selecting channels commutes with it, mixing them does not."""
    return _pool(site, "channelwise")


@rule("Pad")
def pad(site: Site) -> Flow:
    """Positions are added around every channel; a mixture of channels would be padded differently."""
    labels = site.labels[0]
    if labels is None:
        return Flow((None,))
    pads = site.constant(1) if len(site.node.inputs) > 1 else np.asarray(site.attr("pads", ()))
    axes = site.constant(3) if len(site.node.inputs) > 3 and site.node.inputs[3] else np.arange(labels.ndim)
    if pads is None or axes is None or pads.size != 2 * axes.size:
        return freeze(site, f"{describe(site.node)} pads by sizes that are computed")
    padded = {int(axis) % labels.ndim for axis, both in zip(axes, pads.reshape(2, -1).T, strict=True) if both.any()}
    if padded.intersection(axes_of(labels)) or (padded and not axes_of(labels)):
        return freeze(site, f"{describe(site.node)} pads the channel axis")
    return Flow((labels,), "channelwise")


@rule("AveragePool", "GlobalAveragePool")
def average_pool(site: Site) -> Flow:
    """Linear over positions, the same for every channel: commutes with any mixing."""
    return _pool(site, "linear")


@rule("ReduceMean", "ReduceSum")
def reduce_linear(site: Site) -> Flow:
    """A mean or sum over axes that are not the channels'."""
    return _reduce(site, "linear")


@rule("ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "ReduceProd")
def reduce_channelwise(site: Site) -> Flow:
    """Any other reduction over axes that are not the channels'."""
    return _reduce(site, "channelwise")


def _pool(site: Site, kind: Kind) -> Flow:
    labels = site.labels[0]
    rest = (None,) * (len(site.node.outputs) - 1)
    if labels is None:
        return Flow((None, *rest))
    if any(axis != 1 for axis in axes_of(labels)):
        return freeze(site, f"{describe(site.node)} pools across channels")
    if any(site.node.outputs[1:]):
        return freeze(site, f"{describe(site.node)} also returns indices")
    return Flow((labels, *rest), kind)


def _reduce(site: Site, kind: Kind) -> Flow:
    labels = site.labels[0]
    if labels is None:
        return Flow((None,))
    stored = site.constant(1)
    if stored is None and len(site.node.inputs) > 1 and site.node.inputs[1]:
        return freeze(site, f"{describe(site.node)} reduces over axes that are computed")
    axes = tuple(int(a) for a in stored) if stored is not None else tuple(site.attr("axes", ()))
    if not axes and not site.attr("noop_with_empty_axes", 0):
        axes = tuple(range(labels.ndim))
    axes = tuple(a % labels.ndim for a in axes)
    if any(a in axes for a in axes_of(labels)) or _single_channel(labels.shape, axes):
        return freeze(site, f"{describe(site.node)} mixes channels: it reduces over their axis")
    return Flow((labels if site.attr("keepdims", 1) else np.squeeze(labels, axis=axes),), kind)


def _single_channel(shape: tuple[int, ...], axes: tuple[int, ...]) -> bool:
    return all(size == 1 for size in shape) and bool(axes)
