"""ONNX operators in PyTorch: one function per operator, its attributes as keyword arguments.

A function takes the node's inputs by position and its attributes by their ONNX names; an
attribute that it does not take is refused before anything runs. The table says which inputs are
settings (plain numbers where they are constant: shapes, axes, bounds) and which are statistics
that do not train. Semantics are those of the ONNX operator specification.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pcns_onnx.autograd.windows import run_average_pool, run_conv, run_conv_transpose, run_max_pool


@dataclass(frozen=True)
class Operator:
    """How one operator runs. `settings` are positions of inputs that are numbers, `frozen` of statistics.

    `only` are attributes that are known with these values alone.
    Of a `layer` every weight trains; elsewhere single numbers (the 0.5 of a Gelu in pieces) do not.
    """

    run: Callable[..., Any]
    settings: tuple[int, ...] = ()
    frozen: tuple[int, ...] = ()
    layer: bool = False
    only: Mapping[str, Any] = field(default_factory=dict)


def _numbers(value: Any) -> list[int]:
    """A setting as a list of numbers, whether it is one already or a tensor."""
    value = value.tolist() if isinstance(value, Tensor) else value
    return list(value) if isinstance(value, Sequence) else [value]


def _gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *,
    alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0,
) -> Tensor:  # fmt: skip
    product = (a.T if transA else a) @ (b.T if transB else b)
    product = product if alpha == 1 else alpha * product
    return product if c is None else product + (c if beta == 1 else beta * c)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _sum_of(*inputs: Tensor) -> Tensor:
    return reduce(torch.add, inputs)


def _mean_of(*inputs: Tensor) -> Tensor:
    return _sum_of(*inputs) / len(inputs)


def _max_of(*inputs: Tensor) -> Tensor:
    return reduce(torch.maximum, inputs)


def _min_of(*inputs: Tensor) -> Tensor:
    return reduce(torch.minimum, inputs)


def _leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def _elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


def _celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


def _selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    return gamma * F.elu(x, alpha)


def _softplus(x: Tensor) -> Tensor:
    return F.softplus(x, threshold=50.0)


def _hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def _clip(
    x: Tensor, low: Any = None, high: Any = None, *, min: float | None = None, max: float | None = None
) -> Tensor:
    low, high = (min if low is None else low), (max if high is None else high)
    return x if low is None and high is None else torch.clamp(x, low, high)


def _softmax(x: Tensor, *, axis: int | None = None, opset: int = 13) -> Tensor:
    return _normalised(torch.softmax, x, axis, opset)


def _log_softmax(x: Tensor, *, axis: int | None = None, opset: int = 13) -> Tensor:
    return _normalised(torch.log_softmax, x, axis, opset)


def _normalised(run: Callable[..., Any], x: Tensor, axis: int | None, opset: int) -> Tensor:
    """Before opset 13 everything from `axis` on is one axis."""
    if opset >= 13:
        return torch.as_tensor(run(x, dim=-1 if axis is None else axis))
    rows = math.prod(x.shape[: 1 if axis is None else axis % x.ndim])
    return torch.as_tensor(run(x.reshape(rows, -1), dim=-1)).reshape(x.shape)


def _batch_norm(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, *,
    epsilon: float = 1e-5, momentum: float = 0.9,
) -> Tensor:  # fmt: skip
    return F.batch_norm(x, mean, variance, scale, shift, False, 0.0, epsilon)


def _layer_norm(
    x: Tensor, scale: Tensor, shift: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    return F.layer_norm(x, list(x.shape[axis:]), scale, shift, epsilon)


def _instance_norm(x: Tensor, scale: Tensor, shift: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=shift, eps=epsilon)


def _global_average_pool(x: Tensor) -> Tensor:
    return x.mean(dim=list(range(2, x.ndim)), keepdim=True)


def _global_max_pool(x: Tensor) -> Tensor:
    return x.amax(dim=list(range(2, x.ndim)), keepdim=True)


def _reduced(run: Callable[..., Any], x: Tensor, at: Any, axes: Any, keepdims: int, noop: int) -> Tensor:
    dims = _numbers(at) if at is not None else list(axes or ())
    if not dims and noop:
        return x
    return torch.as_tensor(run(x, dim=dims or list(range(x.ndim)), keepdim=bool(keepdims)))


def _reduce_mean(
    x: Tensor, at: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduced(torch.mean, x, at, axes, keepdims, noop_with_empty_axes)


def _reduce_sum(
    x: Tensor, at: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduced(torch.sum, x, at, axes, keepdims, noop_with_empty_axes)


def _reduce_max(
    x: Tensor, at: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduced(torch.amax, x, at, axes, keepdims, noop_with_empty_axes)


def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    rows = math.prod(x.shape[: axis % x.ndim if axis < 0 else axis])
    return x.reshape(rows, -1)


def _reshape(x: Tensor, shape: Any, *, allowzero: int = 0) -> Tensor:
    sizes = _numbers(shape)
    return x.reshape([x.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(sizes)])


def _transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(*(perm or range(x.ndim - 1, -1, -1)))


def _squeeze(x: Tensor, at: Any = None, *, axes: Any = None) -> Tensor:
    dims = _numbers(at) if at is not None else list(axes or ())
    return x.squeeze(tuple(dims)) if dims else x.squeeze()


def _unsqueeze(x: Tensor, at: Any = None, *, axes: Any = None) -> Tensor:
    dims = _numbers(at) if at is not None else list(axes)
    rank = x.ndim + len(dims)
    for dim in sorted(d % rank for d in dims):
        x = x.unsqueeze(dim)
    return x


def _concat(*inputs: Tensor, axis: int) -> Tensor:
    return torch.cat(inputs, dim=axis)


def _split(
    x: Tensor, sizes: Any = None, *, axis: int = 0, split: Any = None, num_outputs: int | None = None, outputs: int = 1
) -> Any:
    lengths = _numbers(sizes) if sizes is not None else split
    return torch.split(x, list(lengths) if lengths else -(-x.shape[axis] // (num_outputs or outputs)), dim=axis)


def _slice_of(
    x: Tensor, starts_: Any = None, ends_: Any = None, axes_: Any = None, steps_: Any = None, *,
    starts: Any = None, ends: Any = None, axes: Any = None,
) -> Tensor:  # fmt: skip
    first = _numbers(starts if starts_ is None else starts_)
    last = _numbers(ends if ends_ is None else ends_)
    axes = axes if axes_ is None else _numbers(axes_)
    steps = [1] * len(first) if steps_ is None else _numbers(steps_)
    for axis, start, end, step in zip(axes or range(len(first)), first, last, steps, strict=True):
        size = x.shape[axis]
        indices = range(*slice(start, None if step < 0 and end < -size else end, step).indices(size))
        x = x.index_select(axis, torch.tensor(list(indices), dtype=torch.int64, device=x.device))
    return x


def _gather(x: Tensor, index: Any, *, axis: int = 0) -> Tensor:
    at = torch.as_tensor(index, dtype=torch.int64, device=x.device)
    at = torch.where(at < 0, at + x.shape[axis], at)
    shape = (*x.shape[: axis % x.ndim], *at.shape, *x.shape[axis % x.ndim + 1 :])
    return x.index_select(axis, at.reshape(-1)).reshape(shape)


def _shape_of(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def _pad(
    x: Tensor, by: Any = None, fill: Any = None, at: Any = None, *,
    pads: Any = None, mode: str = "constant", value: float = 0.0,
) -> Tensor:  # fmt: skip
    around = _numbers(by) if by is not None else list(pads)
    half = len(around) // 2
    dims = list(range(x.ndim)) if at is None else [d % x.ndim for d in _numbers(at)]
    both = {dim: (around[i], around[half + i]) for i, dim in enumerate(dims)}
    first = min((dim for dim, ends in both.items() if any(ends)), default=x.ndim)
    first = min(first, 2) if mode != "constant" else first  # PyTorch reflects all spatial axes or none
    widths = [size for dim in range(x.ndim - 1, first - 1, -1) for size in both.get(dim, (0, 0))]
    if not widths:
        return x
    if mode == "constant":
        return F.pad(x, widths, value=float(_numbers(value if fill is None else fill)[0]))
    return F.pad(x, widths, mode={"edge": "replicate", "wrap": "circular"}.get(mode, mode))


def _dropout(
    x: Tensor, share: float | None = None, training: bool | None = None, *, ratio: float = 0.5, seed: int | None = None
) -> Tensor:
    return F.dropout(x, ratio if share is None else share, True) if training else x


_TYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64,
          16: torch.bfloat16}  # fmt: skip


def _cast(x: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    return x.to(_TYPES[to])


def _same(x: Tensor) -> Tensor:
    return x


def _einsum(*inputs: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *inputs)


_PLAIN: dict[str, Callable[..., Any]] = {
    "Identity": _same, "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": _divide, "Pow": torch.pow,
    "Sum": _sum_of, "Mean": _mean_of, "Max": _max_of, "Min": _min_of, "Neg": torch.neg, "Abs": torch.abs,
    "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal, "Erf": torch.erf,
    "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Relu": torch.relu, "LeakyRelu": _leaky_relu, "Elu": _elu,
    "Celu": _celu, "Selu": _selu, "Softplus": _softplus, "Softsign": F.softsign, "HardSigmoid": _hard_sigmoid,
    "HardSwish": F.hardswish, "Mish": F.mish, "Gelu": _gelu, "Softmax": _softmax, "LogSoftmax": _log_softmax,
    "GlobalAveragePool": _global_average_pool, "GlobalMaxPool": _global_max_pool, "Flatten": _flatten,
    "Transpose": _transpose, "Concat": _concat, "Shape": _shape_of, "Cast": _cast,
}  # fmt: skip
"""Operators whose inputs are all tensors, and whose constants train if they are more than one number."""

OPERATORS: dict[str, Operator] = {
    "Conv": Operator(run_conv, layer=True),
    "ConvTranspose": Operator(run_conv_transpose, layer=True, only={"auto_pad": "NOTSET"}),
    "Gemm": Operator(_gemm, layer=True),
    "MatMul": Operator(torch.matmul, layer=True),
    "Einsum": Operator(_einsum, layer=True),
    "BatchNormalization": Operator(_batch_norm, frozen=(3, 4), layer=True, only={"training_mode": 0, "spatial": 1}),
    "LayerNormalization": Operator(_layer_norm, layer=True),
    "InstanceNormalization": Operator(_instance_norm, layer=True),
    "PRelu": Operator(_prelu, layer=True),
    "MaxPool": Operator(run_max_pool),
    "AveragePool": Operator(run_average_pool),
    "Reshape": Operator(_reshape, settings=(1,)),
    "Squeeze": Operator(_squeeze, settings=(1,)),
    "Unsqueeze": Operator(_unsqueeze, settings=(1,)),
    "Slice": Operator(_slice_of, settings=(1, 2, 3, 4)),
    "Split": Operator(_split, settings=(1,)),
    "Gather": Operator(_gather, settings=(1,)),
    "Pad": Operator(_pad, settings=(1, 2, 3)),
    "Clip": Operator(_clip, settings=(1, 2)),
    "ReduceMean": Operator(_reduce_mean, settings=(1,)),
    "ReduceSum": Operator(_reduce_sum, settings=(1,)),
    "ReduceMax": Operator(_reduce_max, settings=(1,)),
    "Dropout": Operator(_dropout, settings=(1, 2)),
    **{op: Operator(run) for op, run in _PLAIN.items()},
}
"""Every operator that is known."""
