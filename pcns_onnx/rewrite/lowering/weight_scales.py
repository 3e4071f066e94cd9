"""Scales of int8 weights with which no processor's integer kernel overflows.

A linear layer in int8 sums products of activations a in 0..255 and weights w in -127..127. With
AVX512-VNNI, AVX-VNNI, AMX or on ARM, onnxruntime's kernels keep those sums in 32 bits. Elsewhere on x86
(SSE4.1, AVX2, AVX512 without VNNI: most servers before 2019, AMD before Zen 4) they use `pmaddubsw`, which
adds two products in 16 bits and *saturates*:

    sat16(a1 w1 + a2 w2),   a1, a2 <= 255,   exact for every a   <=>   |w1 + w2| <= 128 where w1 w2 > 0

since 255 * 128 = 32640 fits into 16 bits and 255 * 129 does not; weights of opposite signs always fit. The
pairs are neighbours (2i, 2i+1) of an output channel in the order in which the kernel multiplies: rows of a
matrix, and (height, width, channel) for a Conv. So the scale of an output channel is

    s = max |w| / 127, made greater until |q1 + q2| <= 128 in all its pairs, q = round(w / s)

A larger scale cannot break what held at a smaller one: |q| falls with s. Channels that cannot overflow keep
all their 8 bits; the others lose log2(s' / s), one bit at most and 0.26 to 0.50 on average in eight trained
networks. 7-bit weights (`reduce_range`) lose a whole bit everywhere; uint8 weights lose nothing, but with
them whole nets took 1.1 to 1.6 times as long on AVX2. A depthwise Conv has a kernel of its own, which adds in 32
bits, and keeps its scales. A matrix that is read along both axes gets one scale for all its elements.

Every step is one rounded operation per element, so the scales do not depend on the processor either; the
ranges of the activations come from running the float model, whose last bits may. Sources: Intel's reference of
PMADDUBSW; onnxruntime's page "Quantize ONNX models" ("When and why do I need to try U8U8?") and the x86 kernels
of its mlas. Measured on AVX2: 128 is tight, and with it every kind of layer gives the bits of the 32-bit kernels
that the session option `session.x64quantprecision` picks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.graph import Array, Graph, Node

LARGEST = 127
"""The largest int8 weight; -128 is not used, so that the zero point is 0."""

PAIR_LIMIT = 128
"""The largest sum of two neighbours of one sign that an activation of 255 cannot carry over 16 bits."""

_STEP = np.float32(1 + 2.0**-10)
"""By how much a scale grows until its pairs fit: at most 0.1 % more than it must."""


@dataclass(frozen=True)
class WeightScales:
    """How one tensor of weights is quantised: its name, scales and what they cost.

    `axis` is that of the output channels, None for a single scale. `scales` has shape (channels,) or (1,).
    `bits_lost` is the mean of log2 over the scales against those that only the largest weights ask for.
    """

    name: str
    axis: int | None
    scales: NDArray[np.float32]
    bits_lost: float
    elements: int


def safe_scales(graph: Graph) -> list[WeightScales]:
    """The scales of all weights that onnxruntime multiplies in integers."""
    initializers = [tensor.name for tensor in graph.proto.graph.initializer]
    per_tensor = (_of_tensor(graph, name) for name in initializers)
    return [entry for entry in per_tensor if entry is not None]


def bits_lost(scales: list[WeightScales]) -> float:
    """The mean over all weights."""
    elements = sum(entry.elements for entry in scales)
    return sum(entry.bits_lost * entry.elements for entry in scales) / max(elements, 1)


def _of_tensor(graph: Graph, name: str) -> WeightScales | None:
    readers = graph.consumers.get(name, ())
    if any(_needs_one_scale(node, name) for node in readers):
        return _one_scale(graph, name)
    linear = [node for node in readers if _is_weight_of(node, name)]
    weights = graph.constant(name) if linear else None
    if weights is None or weights.dtype != np.float32 or not weights.size or not np.isfinite(weights).all():
        return None
    if any(node.op == "MatMul" and weights.ndim > 2 for node in linear):
        return None  # has no integer kernel with scales per channel: computed in float32
    per_reader = [_scales(_channel_rows(node, weights), pairs=not _is_depthwise(node, weights)) for node in linear]
    axes = {_channel_axis(node, weights) for node in linear}
    if len(axes) == 1:
        axis = axes.pop()
        least, safe = (np.max(scales, axis=0) for scales in zip(*per_reader, strict=True))
    else:  # one for all: onnxruntime's Gemm takes the scales of either axis for those of its outputs
        axis = None
        least, safe = (np.max(np.concatenate(scales), keepdims=True) for scales in zip(*per_reader, strict=True))
        if len(linear) < len(readers):  # a Gather hands a single scale on to its output, but not the zero point
            axis, safe = 0, np.repeat(safe, len(weights))
    return WeightScales(name, axis, safe, float(np.log2(safe / least).mean()), weights.size)


def _needs_one_scale(node: Node, name: str) -> bool:
    """A ConvTranspose in groups with a bias: onnxruntime gives all groups the scales of one, too few for the bias."""
    is_weight = node.op == "ConvTranspose" and not node.domain and node.inputs[1] == name
    return is_weight and node.attrs.get("group", 1) > 1 and any(node.inputs[2:])


def _one_scale(graph: Graph, name: str) -> WeightScales | None:
    """For a weight that no integer kernel multiplies, so that none can overflow."""
    weights = graph.constant(name)
    if weights is None or weights.dtype != np.float32 or not weights.size or not np.isfinite(weights).all():
        return None
    least, _ = _scales(weights.reshape(1, -1), pairs=False)
    return WeightScales(name, None, least, 0.0, weights.size)


def _is_weight_of(node: Node, name: str) -> bool:
    return node.op in ("Conv", "Gemm", "MatMul") and not node.domain and node.inputs[1] == name


def _channel_axis(node: Node, weights: Array) -> int | None:
    """The axis of the output channels; None for a vector, which makes one output."""
    if weights.ndim == 1:
        return None
    return 0 if node.op == "Conv" or node.attrs.get("transB", 0) else weights.ndim - 1


def _channel_rows(node: Node, weights: Array) -> Array:
    """Weights as (output channels, summands), the summands in the order of onnxruntime's kernels."""
    axis = _channel_axis(node, weights)
    if axis is None:
        return weights.reshape(1, -1)
    rows = np.moveaxis(weights, 1, -1) if node.op == "Conv" else np.moveaxis(weights, axis, 0)
    return rows.reshape(weights.shape[axis], -1)


def _scales(rows: Array, *, pairs: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Per row the least scale, for its largest weight alone, and the one with which no pair overflows."""
    least = (np.abs(rows).max(axis=1).astype(np.float64) / LARGEST).astype(np.float32)
    least = np.where(least < np.finfo(np.float32).tiny, np.float32(1), least)
    paired = rows.shape[1] // 2 * 2
    if not pairs or not paired:
        return least, least
    first, second = rows[:, 0:paired:2], rows[:, 1:paired:2]
    # Where w1 + w2 > 129 s a pair overflows, whichever way both are rounded: the search starts there.
    sums = np.where((first > 0) == (second > 0), np.abs(first + second), 0).max(axis=1)
    scales = np.maximum(least, sums / np.float32(PAIR_LIMIT + 1))
    too_fine = np.arange(len(rows))
    while (too_fine := too_fine[_overflows(first[too_fine], second[too_fine], scales[too_fine])]).size:
        scales[too_fine] *= _STEP
    return least, scales


def _overflows(first: Array, second: Array, scales: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which channels have a pair whose sum is beyond the limit once quantised, rounded as onnxruntime does."""
    quantised = np.rint(first / scales[:, None]) + np.rint(second / scales[:, None])
    return np.asarray(np.abs(quantised).max(axis=1) > PAIR_LIMIT)


def _is_depthwise(node: Node, weights: Array) -> bool:
    """One channel in and one out per group: not with a multiplier, whose kernel is the general one."""
    return node.op == "Conv" and weights.shape[1] == 1 and node.attrs.get("group", 1) == weights.shape[0]
