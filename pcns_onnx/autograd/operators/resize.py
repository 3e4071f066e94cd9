"""Resize and Upsample: every output position is a weighted sum of a few input positions, axis by axis.

For output position i of an axis with scale s, ONNX's coordinate transformation gives where x(i)
lies on the input; `nearest` reads one position of it, `linear` two with weights 1 - f and f,
`cubic` four with Keys' kernel (R. Keys, 1981), f being the fraction of x(i). Positions are
computed in float32, as onnxruntime does, since the rounding of ties depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pcns_onnx.autograd.operators.operator import Operator, as_numbers

Floats = NDArray[np.float32]
HALF = np.float32(0.5)


def _on_input(mode: str, size: int, new: int, scale: np.float32) -> Floats:
    """Where the output positions of an axis lie on the input."""
    i = np.arange(new, dtype=np.float32)
    if mode == "asymmetric":
        return i / scale
    if mode == "tf_half_pixel_for_nn":
        return (i + HALF) / scale
    if mode == "align_corners":
        return i * np.float32(size - 1) / np.float32(new - 1) if new > 1 else 0 * i
    if mode == "pytorch_half_pixel" and new == 1:
        return 0 * i
    middle = (i + HALF) / scale - HALF
    if mode == "half_pixel_symmetric":
        return middle + np.float32(size / 2) * (1 - np.float32(new) / (scale * np.float32(size)))
    return middle


_ROUND: Mapping[str, Callable[[Floats, bool], Floats]] = {
    "round_prefer_floor": lambda x, _: np.ceil(x - HALF),
    "round_prefer_ceil": lambda x, _: np.floor(x + HALF),
    "floor": lambda x, _: np.floor(x),
    "ceil": lambda x, _: np.ceil(x),
    "simple": lambda x, is_smaller: np.ceil(x) if is_smaller else np.trunc(x),
}
"""How `nearest` rounds; `simple` is that of Upsample and of Resize before opset 11."""


def _taps(x: Floats, mode: str, size: int, cubic: float, is_outside_excluded: int) -> tuple[NDArray[np.int64], Floats]:
    """Input positions (taps, new) and their weights."""
    if mode == "linear":
        x = np.clip(x, np.float32(0), np.float32(size - 1))
    whole = np.floor(x)
    f, offsets = x - whole, np.arange(2) if mode == "linear" else np.arange(-1, 3)
    at = whole.astype(np.int64) + offsets[:, None]
    if mode == "linear":
        weights = np.stack([1 - f, f])
    else:
        a, far = np.float32(cubic), np.stack([f + 1, 2 - f])
        near = np.stack([f, 1 - f])
        inner = ((a + 2) * near - (a + 3)) * near * near + 1
        outer = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
        weights = np.stack([outer[0], inner[0], inner[1], outer[1]])
        if is_outside_excluded:
            weights = np.where((at >= 0) & (at < size), weights, np.float32(0))
            weights = weights / weights.sum(0)
    return np.clip(at, 0, size - 1), weights


def _sizes_of(
    x: Tensor, scales: Sequence[float] | None, sizes: Sequence[int] | None, axes: Sequence[int], policy: str
) -> list[tuple[int, int, np.float32]]:
    """(axis, new size, scale) of every axis that is resized."""
    if sizes is None:
        steps = [(axis, np.float32(scale)) for axis, scale in zip(axes, scales or (), strict=True)]
        return [(axis, math.floor(np.float32(x.shape[axis]) * scale), scale) for axis, scale in steps]
    if policy == "stretch":
        return [(axis, n, np.float32(n) / np.float32(x.shape[axis])) for axis, n in zip(axes, sizes, strict=True)]
    ratios = [np.float32(n) / np.float32(x.shape[axis]) for axis, n in zip(axes, sizes, strict=True)]
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return [(axis, math.floor(scale * np.float32(x.shape[axis]) + HALF), scale) for axis in axes]


def _along(x: Tensor, axis: int, at: NDArray[np.int64], weights: Floats | None) -> Tensor:
    """Weighted sums of the positions `at` of one axis."""
    if weights is None:
        size, new = x.shape[axis], at.shape[1]
        if new > size and new % size == 0 and (at[0] == np.arange(new) // (new // size)).all():  # plain repeats
            shape = (*x.shape[: axis + 1], new // size, *x.shape[axis + 1 :])
            return x.unsqueeze(axis + 1).expand(shape).flatten(axis, axis + 1)
        return x.index_select(axis, torch.from_numpy(at[0]).to(x.device))
    shape = tuple(-1 if dim == axis else 1 for dim in range(x.ndim))
    terms = [
        x.index_select(axis, torch.from_numpy(places).to(x.device))
        * torch.from_numpy(weight).to(x.device, x.dtype).reshape(shape)
        for places, weight in zip(at, weights.astype(np.float32), strict=True)
    ]
    return torch.stack(terms).sum(0) if len(terms) > 2 else terms[0] + terms[1]


def _resize(
    x: Tensor, region: Any = None, scales: Any = None, sizes: Any = None, *,
    mode: str = "nearest", coordinate_transformation_mode: str = "half_pixel", nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75, exclude_outside: int = 0, extrapolation_value: float = 0.0,
    axes: Sequence[int] | None = None, keep_aspect_ratio_policy: str = "stretch", opset: int = 19,
) -> Tensor:  # fmt: skip
    if opset < 11:  # its second input are the scales
        scales, coordinate_transformation_mode, nearest_mode = region, "asymmetric", "simple"
    factors = as_numbers(scales) if scales is not None else []
    targets = None if sizes is None or factors else [int(n) for n in as_numbers(sizes)]
    dims = [axis % x.ndim for axis in axes] if axes else list(range(x.ndim))
    for axis, new, scale in _sizes_of(x, factors, targets, dims, keep_aspect_ratio_policy):
        size = x.shape[axis]
        if new == size and scale == 1:
            continue
        at = _on_input(coordinate_transformation_mode, size, new, scale)
        if mode == "nearest":
            nearest = np.clip(_ROUND[nearest_mode](at, bool(scale < 1)).astype(np.int64), 0, size - 1)
            x = _along(x, axis, nearest[None], None)
        else:
            x = _along(x, axis, *_taps(at, mode, size, cubic_coeff_a, exclude_outside))
    return x


def _upsample(x: Tensor, factors: Any = None, *, mode: str = "nearest", scales: Any = None) -> Tensor:
    return _resize(x, scales if factors is None else factors, mode=mode, opset=10)


def _unknown_mode(attributes: Mapping[str, Any]) -> str | None:
    mode = attributes.get("coordinate_transformation_mode")
    return "with the coordinates of tf_crop_and_resize" if mode == "tf_crop_and_resize" else None


RESIZE: dict[str, Operator] = {
    "Resize": Operator(_resize, settings=(1, 2, 3), only={"antialias": 0}, refuse=_unknown_mode),
    "Upsample": Operator(_upsample, settings=(1,)),
}
