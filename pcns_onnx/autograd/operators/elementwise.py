"""Operators that work number by number: arithmetic, activations, comparisons, types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pcns_onnx.autograd.operators.operator import Operator, as_number, without_gradient


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _power(a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


def _modulo(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


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


def _thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, 0.0)


def _shrink(x: Tensor, *, lambd: float = 0.5, bias: float = 0.0) -> Tensor:
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, 0.0))


def _elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


def _celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


def _selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    return gamma * F.elu(x, alpha)


def _softplus(x: Tensor) -> Tensor:
    return F.softplus(x, threshold=50.0)


def _softsign(x: Tensor) -> Tensor:
    return F.softsign(x)


def _hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def _hard_swish(x: Tensor) -> Tensor:
    return F.hardswish(x)


def _swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return x * torch.sigmoid(alpha * x)


def _mish(x: Tensor) -> Tensor:
    return F.mish(x)


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def _bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias)


def _fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


def _quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    return x * torch.sigmoid(alpha * x)


def _clip(
    x: Tensor, low: Any = None, high: Any = None, *, min: float | None = None, max: float | None = None
) -> Tensor:
    low, high = (min if low is None else low), (max if high is None else high)
    x = x if low is None else torch.clamp(x, min=low)
    return x if high is None else torch.clamp(x, max=high)


def _dropout(
    x: Tensor, share: float | None = None, training: bool | None = None, *,
    ratio: float = 0.5, seed: int | None = None, is_test: int = 1,
) -> Tensor:  # fmt: skip
    return F.dropout(x, ratio if share is None else as_number(share), True) if training and as_number(training) else x


def _identity(x: Tensor) -> Tensor:
    return x


def _where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


def _is_infinite(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    negative, positive = torch.isneginf(x) & bool(detect_negative), torch.isposinf(x) & bool(detect_positive)
    return negative | positive


TYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip
"""ONNX's element types."""


def _cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return x.to(TYPES[to])


def _cast_like(x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return x.to(like.dtype)


def _unknown_type(attributes: Mapping[str, Any]) -> str | None:
    return None if attributes.get("to") in TYPES else f"to element type {attributes.get('to')}"


_SMOOTH: dict[str, Callable[..., Any]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": _divide, "Pow": _power, "Mod": _modulo,
    "Sum": _sum_of, "Mean": _mean_of, "Max": _max_of, "Min": _min_of, "Neg": torch.neg, "Abs": torch.abs,
    "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal, "Erf": torch.erf,
    "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan,
    "Sinh": torch.sinh, "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh, "Atanh": torch.atanh,
    "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Relu": torch.relu, "LeakyRelu": _leaky_relu, "Elu": _elu,
    "Celu": _celu, "Selu": _selu, "Softplus": _softplus, "Softsign": _softsign, "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish, "Mish": _mish, "Gelu": _gelu, "Swish": _swish, "ThresholdedRelu": _thresholded_relu,
    "Shrink": _shrink, "Identity": _identity, "com.microsoft.Gelu": _gelu, "com.microsoft.BiasGelu": _bias_gelu,
    "com.microsoft.FastGelu": _fast_gelu, "com.microsoft.QuickGelu": _quick_gelu,
}  # fmt: skip

_STEPS: dict[str, Callable[..., Any]] = {
    "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round, "Sign": torch.sign, "IsNaN": torch.isnan,
    "IsInf": _is_infinite, "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt,
    "LessOrEqual": torch.le, "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
    "Not": torch.logical_not,
}  # fmt: skip

ELEMENTWISE: dict[str, Operator] = {
    **{name: Operator(run) for name, run in _SMOOTH.items()},
    **without_gradient(_STEPS),
    "PRelu": Operator(_prelu, layer=True),
    "Clip": Operator(_clip, settings=(1, 2)),
    "Dropout": Operator(_dropout, settings=(1, 2)),
    "Where": Operator(_where, frozen=(0,)),
    "Cast": Operator(_cast, refuse=_unknown_type),
    "CastLike": Operator(_cast_like, frozen=(1,)),
}
