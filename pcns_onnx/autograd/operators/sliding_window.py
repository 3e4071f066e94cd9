"""Convolutions and pools, with paddings that differ at the two ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pcns_onnx.autograd.operators.linear import activated, unknown_activation
from pcns_onnx.autograd.operators.operator import Operator

Ints = Sequence[int] | None


def _conv(
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


def _fused_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, z: Tensor | None = None, *, activation: str = "",
    activation_params: Sequence[float] = (), kernel_shape: Ints = None, strides: Ints = None, pads: Ints = None,
    dilations: Ints = None, group: int = 1, auto_pad: str = "NOTSET",
) -> Tensor:  # fmt: skip
    """onnxruntime's Conv with what stood behind it: a sum, an activation."""
    y = _conv(x, weight, bias, strides=strides, pads=pads, dilations=dilations, group=group, auto_pad=auto_pad)
    return activated(y if z is None else y + z, activation, activation_params)


def _conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, kernel_shape: Ints = None, strides: Ints = None,
    pads: Ints = None, dilations: Ints = None, output_padding: Ints = None, output_shape: Ints = None, group: int = 1,
    auto_pad: str = "NOTSET",
) -> Tensor:  # fmt: skip
    """ConvTranspose: all that the kernel reaches, cropped by the pads (and grown at the ends) afterwards."""
    axes = x.ndim - 2
    run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    strides, dilations = _or_ones(strides, x), _or_ones(dilations, x)
    whole = run(x, weight, None, strides, 0, 0, group, dilations)
    grown = list(output_padding or [0] * axes)
    if output_shape is not None or auto_pad.startswith("SAME"):
        sizes = list(output_shape or [n * step for n, step in zip(x.shape[2:], strides, strict=True)])[-axes:]
        totals = [max(whole.shape[2 + i] + grown[i] - sizes[i], 0) for i in range(axes)]
        few = [total // 2 for total in totals]
        many = [total - half for total, half in zip(totals, few, strict=True)]
        begins, ends = (few, many) if auto_pad == "SAME_UPPER" else (many, few)
        if output_shape is not None:  # what the kernels do not reach is added at the end; onnxruntime asks no more
            grown = [max(grown[i], sizes[i] - whole.shape[2 + i]) for i in range(axes)]
    else:
        padding = list(pads or [0] * (2 * axes)) if auto_pad != "VALID" else [0] * (2 * axes)
        begins, ends = padding[:axes], padding[axes:]
    whole = _padded(whole, [(-begins[i], grown[i] - ends[i]) for i in range(axes)])
    return whole if bias is None else whole + bias.reshape(-1, *[1] * axes)


def _max_pool(
    x: Tensor, *, kernel_shape: Sequence[int], strides: Ints = None, pads: Ints = None, dilations: Ints = None,
    auto_pad: str = "NOTSET", ceil_mode: int = 0, storage_order: int = 0,
) -> Tensor:  # fmt: skip
    """MaxPool; what is padded is never the largest."""
    strides, dilations = _or_ones(strides, x), _or_ones(dilations, x)
    ends = _ends(x, kernel_shape, strides, dilations, pads, auto_pad)
    ends = _grown(x, ends, kernel_shape, strides, dilations, ceil_mode)
    run: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.ndim - 3]
    return torch.as_tensor(run(_padded(x, ends, float("-inf")), list(kernel_shape), strides, 0, dilations))


def _average_pool(
    x: Tensor, *, kernel_shape: Sequence[int], strides: Ints = None, pads: Ints = None, dilations: Ints = None,
    auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0,
) -> Tensor:  # fmt: skip
    """AveragePool: sums of windows over the number of elements that count."""
    strides, dilations = _or_ones(strides, x), _or_ones(dilations, x)
    ends = _ends(x, kernel_shape, strides, dilations, pads, auto_pad)
    wide = _grown(x, ends, kernel_shape, strides, dilations, ceil_mode)
    mean = _window_mean(_padded(x, wide), kernel_shape, strides, dilations)
    if not any(size for pair in wide for size in pair):
        return mean
    one = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if count_include_pad:
        one = _padded(one, ends, 1.0)
        wide = [(0, far - end) for (_, end), (_, far) in zip(ends, wide, strict=True)]
    return mean / _window_mean(_padded(one, wide), kernel_shape, strides, dilations)


def _window_mean(x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Tensor:
    """Means of whole windows; PyTorch's own pool has no dilations, so that a convolution with ones stands in for it."""
    axes = x.ndim - 2
    if all(step == 1 for step in dilations):
        return torch.as_tensor((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[axes - 1](x, list(kernel), strides))
    ones = torch.full((1, 1, *kernel), 1 / math.prod(kernel), dtype=x.dtype, device=x.device)
    run = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    return run(x.flatten(0, 1).unsqueeze(1), ones, None, strides, 0, dilations).unflatten(0, x.shape[:2]).squeeze(2)


def _lp_pool(
    x: Tensor, *, kernel_shape: Sequence[int], p: int = 2, strides: Ints = None, pads: Ints = None,
    dilations: Ints = None, auto_pad: str = "NOTSET", ceil_mode: int = 0,
) -> Tensor:  # fmt: skip
    """LpPool: the p-norm of each window."""
    strides, dilations = _or_ones(strides, x), _or_ones(dilations, x)
    ends = _ends(x, kernel_shape, strides, dilations, pads, auto_pad)
    wide = _grown(x, ends, kernel_shape, strides, dilations, ceil_mode)
    mean = _window_mean(_padded(x.abs() ** p, wide), kernel_shape, strides, dilations)
    return (mean * math.prod(kernel_shape)) ** (1 / p)


def _global_average_pool(x: Tensor) -> Tensor:
    return x.mean(dim=list(range(2, x.ndim)), keepdim=True)


def _global_max_pool(x: Tensor) -> Tensor:
    return x.amax(dim=list(range(2, x.ndim)), keepdim=True)


def _global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    return torch.linalg.vector_norm(x, ord=p, dim=list(range(2, x.ndim)), keepdim=True)


def _grid_sample(
    x: Tensor, grid: Tensor, *, mode: str = "linear", padding_mode: str = "zeros", align_corners: int = 0
) -> Tensor:
    """GridSample; opset 20 has renamed the modes."""
    modes = {"linear": "bilinear", "cubic": "bicubic"}
    return F.grid_sample(x, grid, modes.get(mode, mode), padding_mode, bool(align_corners))


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


SLIDING_WINDOW: dict[str, Operator] = {
    "Conv": Operator(_conv, layer=True),
    "com.microsoft.FusedConv": Operator(_fused_conv, layer=True, refuse=unknown_activation),
    "ConvTranspose": Operator(_conv_transpose, layer=True),
    "MaxPool": Operator(_max_pool),
    "AveragePool": Operator(_average_pool),
    "LpPool": Operator(_lp_pool),
    "GlobalAveragePool": Operator(_global_average_pool),
    "GlobalMaxPool": Operator(_global_max_pool),
    "GlobalLpPool": Operator(_global_lp_pool),
    "GridSample": Operator(_grid_sample),
}
