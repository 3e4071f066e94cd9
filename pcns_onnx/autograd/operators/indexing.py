"""Operators that pick and place numbers: Slice, Gather and Scatter of all kinds, Pad, OneHot."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pcns_onnx.autograd.operators.operator import Operator, as_number, as_numbers


def _slice_of(
    x: Tensor, starts_: Any = None, ends_: Any = None, axes_: Any = None, steps_: Any = None, *,
    starts: Any = None, ends: Any = None, axes: Any = None,
) -> Tensor:  # fmt: skip
    """Opset 1 states by attributes what opset 10 states by inputs."""
    first = as_numbers(starts if starts_ is None else starts_)
    last = as_numbers(ends if ends_ is None else ends_)
    axes = axes if axes_ is None else as_numbers(axes_)
    steps = [1] * len(first) if steps_ is None else as_numbers(steps_)
    for axis, start, end, step in zip(axes or range(len(first)), first, last, steps, strict=True):
        size = x.shape[axis]
        chosen = range(*slice(start, None if step < 0 and end < -size else end, step).indices(size))
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(chosen.start, chosen.stop, step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64, device=x.device))
    return x


def _counted(index: Tensor, size: int) -> Tensor:
    """Indices from the front; negative ones count from the end."""
    index = index.long()
    return torch.where(index < 0, index + size, index)


def _gather(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    axis %= x.ndim
    at = _counted(index, x.shape[axis])
    return x.index_select(axis, at.reshape(-1)).reshape((*x.shape[:axis], *at.shape, *x.shape[axis + 1 :]))


def _gather_elements(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    return x.gather(axis, _counted(index, x.shape[axis]))


def _flat_index(index: Tensor, sizes: list[int]) -> Tensor:
    """Positions in the flattened leading axes of `sizes`: (..., axes) -> (...)."""
    flat = torch.zeros_like(index[..., 0], dtype=torch.int64)
    for place, size in enumerate(sizes):
        flat = flat * size + _counted(index[..., place], size)
    return flat


def _gather_nd(x: Tensor, index: Tensor, *, batch_dims: int = 0) -> Tensor:
    batches, depth = list(x.shape[:batch_dims]), index.shape[-1]
    sizes, rest = list(x.shape[batch_dims : batch_dims + depth]), list(x.shape[batch_dims + depth :])
    count = math.prod(batches)
    flat = _flat_index(index, sizes).reshape(count, -1)
    rows = torch.arange(count, device=x.device).unsqueeze(1)
    chosen = x.reshape(count, math.prod(sizes), *rest)[rows, flat]
    return chosen.reshape(*batches, *index.shape[batch_dims:-1], *rest)


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
"""ONNX's names of what becomes of numbers that meet in one place, in PyTorch's."""


def _scatter_elements(x: Tensor, index: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    at, updates = _counted(index, x.shape[axis]), updates.to(x.dtype)  # autocast may have narrowed one of them
    if reduction == "none":
        return x.scatter(axis, at, updates)
    return x.scatter_reduce(axis, at, updates, _REDUCTIONS[reduction])


def _scatter_nd(x: Tensor, index: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    depth = index.shape[-1]
    sizes = list(x.shape[:depth])
    at = _flat_index(index, sizes).reshape(-1, 1)
    flat = x.reshape(math.prod(sizes), -1)
    values = updates.reshape(at.shape[0], -1)
    return _scatter_elements(flat, at.expand_as(values), values, reduction=reduction).reshape(x.shape)


def _one_hot(index: Tensor, depth: Any, values: Tensor, *, axis: int = -1) -> Tensor:
    off, on = values.unbind()
    at = _counted(index, as_number(depth)).unsqueeze(axis)
    shape = [1] * at.ndim
    shape[axis] = -1
    return torch.where(at == torch.arange(as_number(depth), device=index.device).reshape(shape), on, off)


def _non_zero(x: Tensor) -> Tensor:
    return torch.nonzero(x).T


def _reverse_sequence(x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """The first `lengths` steps of each sequence in reverse."""
    steps = torch.arange(x.shape[time_axis], device=x.device).unsqueeze(1)
    at = torch.where(steps < lengths, lengths - 1 - steps, steps)  # (time, batch)
    at = (at if time_axis == 0 else at.T).reshape(*at.shape if time_axis == 0 else at.T.shape, *[1] * (x.ndim - 2))
    return x.gather(time_axis, at.expand_as(x))


def _pad(
    x: Tensor, by: Any = None, fill: Any = None, at: Any = None, *,
    pads: Any = None, mode: str = "constant", value: float = 0.0,
) -> Tensor:  # fmt: skip
    """Opset 2 states by attributes what opset 11 states by inputs; the axes came with opset 18."""
    around = as_numbers(by) if by is not None else list(pads)
    dims = list(range(x.ndim)) if at is None else [d % x.ndim for d in as_numbers(at)]
    ends = {dim: (around[i], around[len(dims) + i]) for i, dim in enumerate(dims)}
    if mode == "constant":
        widths = [size for dim in range(x.ndim - 1, -1, -1) for size in ends.get(dim, (0, 0))]
        return F.pad(x, widths, value=value if fill is None else as_number(fill)) if any(widths) else x
    for dim, (begin, end) in ends.items():
        if begin or end:
            steps = torch.arange(-begin, x.shape[dim] + end, device=x.device)
            x = x.index_select(dim, _BEYOND[mode](steps, x.shape[dim]))
    return x


def _edge(at: Tensor, size: int) -> Tensor:
    return at.clamp(0, size - 1)


def _reflected(at: Tensor, size: int) -> Tensor:
    period = max(2 * (size - 1), 1)
    at = at.remainder(period)
    return torch.where(at < size, at, period - at)


def _wrapped(at: Tensor, size: int) -> Tensor:
    return at.remainder(size)


_BEYOND: dict[str, Callable[[Tensor, int], Tensor]] = {"edge": _edge, "reflect": _reflected, "wrap": _wrapped}
"""Where a padded position is read from."""

INDEXING: dict[str, Operator] = {
    "Slice": Operator(_slice_of, settings=(1, 2, 3, 4)),
    "Gather": Operator(_gather, frozen=(1,)),
    "GatherElements": Operator(_gather_elements, frozen=(1,)),
    "GatherND": Operator(_gather_nd, frozen=(1,)),
    "Scatter": Operator(_scatter_elements, frozen=(1,)),
    "ScatterElements": Operator(_scatter_elements, frozen=(1,)),
    "ScatterND": Operator(_scatter_nd, frozen=(1,)),
    "OneHot": Operator(_one_hot, settings=(1,), frozen=(0, 2)),
    "NonZero": Operator(_non_zero, has_gradient=False),
    "ReverseSequence": Operator(_reverse_sequence, frozen=(1,)),
    "Pad": Operator(_pad, settings=(1, 2, 3)),
}
