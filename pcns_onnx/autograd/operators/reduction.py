"""Operators that make one number of many along axes: sums, norms, extremes, ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pcns_onnx.autograd.operators.operator import Operator, as_number, as_numbers


def _axes_of(x: Tensor, at: Any, axes: Any, noop: int) -> list[int]:
    """The axes to go over, given as an input or as an attribute; all where none is named."""
    dims = as_numbers(at) if at is not None else list(axes or ())
    return dims or ([] if noop else list(range(x.ndim)))


def _reduced(run: Callable[..., Any], x: Tensor, at: Any, axes: Any, keepdims: int, noop: int) -> Tensor:
    dims = _axes_of(x, at, axes, noop)
    return torch.as_tensor(run(x, dim=dims, keepdim=bool(keepdims))) if dims else x


def _reduce_mean(
    x: Tensor, at: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduced(torch.mean, x, at, axes, keepdims, noop_with_empty_axes)


def _reduce_sum(
    x: Tensor, at: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduced(torch.sum, x, at, axes, keepdims, noop_with_empty_axes).to(x.dtype)


def _reduce_max(
    x: Tensor, at: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduced(torch.amax, x, at, axes, keepdims, noop_with_empty_axes)


def _reduce_min(
    x: Tensor, at: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduced(torch.amin, x, at, axes, keepdims, noop_with_empty_axes)


def _reduce_l1(
    x: Tensor, at: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduce_sum(x.abs(), at, axes=axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes)


def _reduce_l2(
    x: Tensor, at: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    # Of a vector of zeros the gradient is zero, and not the NaN of a square root.
    dims = _axes_of(x, at, axes, noop_with_empty_axes)
    return torch.linalg.vector_norm(x, dim=dims, keepdim=bool(keepdims)) if dims else x.abs()


def _reduce_sum_square(
    x: Tensor, at: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduce_sum(x * x, at, axes=axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes)


def _reduce_log_sum(
    x: Tensor, at: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduce_sum(x, at, axes=axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes).log()


def _reduce_log_sum_exp(
    x: Tensor, at: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduced(torch.logsumexp, x, at, axes, keepdims, noop_with_empty_axes)


def _reduce_prod(
    x: Tensor, at: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    for dim in sorted((d % x.ndim for d in _axes_of(x, at, axes, noop_with_empty_axes)), reverse=True):
        x = torch.prod(x, dim=dim, keepdim=bool(keepdims)).to(x.dtype)
    return x


def _arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if not select_last_index:
        return x.argmax(dim=axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - x.flip(axis).argmax(dim=axis, keepdim=bool(keepdims))


def _arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if not select_last_index:
        return x.argmin(dim=axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - x.flip(axis).argmin(dim=axis, keepdim=bool(keepdims))


def _top_k(
    x: Tensor, count: Any = None, *, k: int | None = None, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, Tensor]:
    values, indices = torch.topk(x, as_number(k if count is None else count), dim=axis, largest=bool(largest))
    return values, indices


def _cumulative_sum(x: Tensor, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    dim = as_number(axis)
    x = x.flip(dim) if reverse else x
    total = x.cumsum(dim, dtype=x.dtype)
    if exclusive:
        total = total.roll(1, dim).index_fill(dim, torch.tensor([0], device=x.device), 0)
    return total.flip(dim) if reverse else total


_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceMean": _reduce_mean, "ReduceSum": _reduce_sum, "ReduceMax": _reduce_max, "ReduceMin": _reduce_min,
    "ReduceProd": _reduce_prod, "ReduceL1": _reduce_l1, "ReduceL2": _reduce_l2, "ReduceLogSum": _reduce_log_sum,
    "ReduceLogSumExp": _reduce_log_sum_exp, "ReduceSumSquare": _reduce_sum_square,
}  # fmt: skip

REDUCTION: dict[str, Operator] = {
    **{name: Operator(run, settings=(1,)) for name, run in _REDUCTIONS.items()},
    "ArgMax": Operator(_arg_max, has_gradient=False),
    "ArgMin": Operator(_arg_min, has_gradient=False),
    "TopK": Operator(_top_k, settings=(1,), outputs=2),
    "CumSum": Operator(_cumulative_sum, settings=(1,)),
}
