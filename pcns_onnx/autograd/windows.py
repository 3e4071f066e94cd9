"""Convolutions and pools of ONNX in PyTorch, with paddings that differ at the two ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Ints = Sequence[int] | None


def run_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, kernel_shape: Ints = None, strides: Ints = None,
    pads: Ints = None, dilations: Ints = None, group: int = 1, auto_pad: str = "NOTSET",
) -> Tensor:  # fmt: skip
    """Conv over one, two or three axes."""
    kernel, strides, dilations = list(weight.shape[2:]), _or_ones(strides, x), _or_ones(dilations, x)
    ends = _ends(x, kernel, strides, dilations, pads, auto_pad)
    run = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
    alike = all(begin == end for begin, end in ends)
    padding = [begin for begin, _ in ends] if alike else [0] * len(ends)
    return run(x if alike else _padded(x, ends), weight, bias, strides, padding, dilations, group)


def run_conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, kernel_shape: Ints = None, strides: Ints = None,
    pads: Ints = None, dilations: Ints = None, output_padding: Ints = None, group: int = 1,
) -> Tensor:  # fmt: skip
    """ConvTranspose: all that the kernel reaches, cropped by the pads (and grown at the ends) afterwards."""
    axes = x.ndim - 2
    run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    strides, dilations = _or_ones(strides, x), _or_ones(dilations, x)
    whole = run(x, weight, None, strides, 0, 0, group, dilations)
    pads, grown = list(pads or [0] * (2 * axes)), list(output_padding or [0] * axes)
    whole = _padded(whole, [(-pads[i], grown[i] - pads[axes + i]) for i in range(axes)])
    return whole if bias is None else whole + bias.reshape(-1, *[1] * axes)


def run_max_pool(
    x: Tensor, *, kernel_shape: Sequence[int], strides: Ints = None, pads: Ints = None, dilations: Ints = None,
    auto_pad: str = "NOTSET", ceil_mode: int = 0, storage_order: int = 0,
) -> Tensor:  # fmt: skip
    """MaxPool; what is padded is never the largest."""
    strides, dilations = _or_ones(strides, x), _or_ones(dilations, x)
    ends = _ends(x, kernel_shape, strides, dilations, pads, auto_pad)
    ends = _grown(x, ends, kernel_shape, strides, dilations, ceil_mode)
    run: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.ndim - 3]
    return torch.as_tensor(run(_padded(x, ends, float("-inf")), list(kernel_shape), strides, 0, dilations))


def run_average_pool(
    x: Tensor, *, kernel_shape: Sequence[int], strides: Ints = None, pads: Ints = None,
    auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0,
) -> Tensor:  # fmt: skip
    """AveragePool: sums of windows over the number of elements that count."""
    strides, ones = _or_ones(strides, x), _or_ones(None, x)
    ends = _ends(x, kernel_shape, strides, ones, pads, auto_pad)
    wide = _grown(x, ends, kernel_shape, strides, ones, ceil_mode)
    run = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3]
    mean = run(_padded(x, wide), list(kernel_shape), strides)
    if not any(size for pair in wide for size in pair):
        return mean
    one = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if count_include_pad:
        one = _padded(one, ends, 1.0)
        wide = [(0, far - end) for (_, end), (_, far) in zip(ends, wide, strict=True)]
    return mean / run(_padded(one, wide), list(kernel_shape), strides)


def _or_ones(values: Ints, x: Tensor) -> list[int]:
    return list(values or [1] * (x.ndim - 2))


def _padded(x: Tensor, ends: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Each spatial axis longer (or, for negative sizes, shorter) at both ends."""
    if not any(size for pair in ends for size in pair):
        return x
    return F.pad(x, [size for pair in reversed(ends) for size in pair], value=value)


def _ends(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Ints, auto_pad: str
) -> list[tuple[int, int]]:
    """Padding at both ends of every spatial axis."""
    axes = x.ndim - 2
    if auto_pad in ("NOTSET", "", "VALID"):
        padding = [0] * (2 * axes) if pads is None or auto_pad == "VALID" else list(pads)
        return [(padding[i], padding[axes + i]) for i in range(axes)]
    ends = []
    for size, taps, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
        few, many = total // 2, total - total // 2
        ends.append((few, many) if auto_pad == "SAME_UPPER" else (many, few))
    return ends


def _grown(
    x: Tensor, ends: Sequence[tuple[int, int]], kernel: Sequence[int], strides: Sequence[int],
    dilations: Sequence[int], ceil_mode: int,
) -> list[tuple[int, int]]:  # fmt: skip
    """With `ceil_mode` a last window that starts inside the tensor (or its first padding) is finished."""
    if not ceil_mode:
        return list(ends)
    grown = []
    for size, (begin, end), taps, stride, dilation in zip(x.shape[2:], ends, kernel, strides, dilations, strict=True):
        reach = (taps - 1) * dilation + 1
        steps = -(-(size + begin + end - reach) // stride)
        steps -= steps * stride >= size + begin
        grown.append((begin, max(end, steps * stride + reach - size - begin)))
    return grown
