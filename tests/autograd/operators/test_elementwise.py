"""Operators that work number by number, against onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from builders.chains import scalar
from builders.models import Array
from builders.single_node import Single, assert_same, assert_slopes, at_opsets, in_torch

pytest.importorskip("torch")


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


X, Y = noise(3, 4, 5), noise(4, 1, seed=1)
SMALL = np.tanh(X) * np.float32(0.9)
LARGE = np.abs(X) + np.float32(1.1)
STEPS, COUNTS = ints(7, -7, 6, -6, 5), ints(2, 3, -4, 4, -5)
YES = X > 0
ODD = np.array([1, -2.5, np.inf, -np.inf, np.nan, 0.5, 1.5, -0.5], dtype=np.float32)


def of_ort(op: str, *values: Array, **attributes: Any) -> Single:
    return Single(op, values, attributes, domain="com.microsoft")


CASES: Mapping[str, Single] = {
    **{op: Single(op, [X, Y]) for op in ("Add", "Sub", "Mul", "Div")},
    **{f"{op} of numbers": Single(op, [STEPS, COUNTS]) for op in ("Add", "Sub", "Mul", "Div")},
    **{op: Single(op, [X]) for op in ("Neg", "Abs", "Exp", "Floor", "Ceil", "Tanh", "Sigmoid", "Relu", "Softsign")},
    **{op: Single(op, [X]) for op in ("Identity", "Elu", "LeakyRelu", "Selu", "Softplus", "HardSigmoid", "Sin", "Cos")},
    **{op: Single(op, [X], low=9) for op in ("Erf", "Sinh", "Cosh", "Asinh", "Atan", "Sign", "Shrink")},
    **{op: Single(op, [SMALL], low=9) for op in ("Asin", "Acos", "Atanh", "Tan")},
    **{op: Single(op, [LARGE]) for op in ("Log", "Sqrt", "Reciprocal")},
    "Acosh": Single("Acosh", [LARGE], low=9),
    "Round": Single("Round", [ODD], low=11),
    "Pow": Single("Pow", [LARGE, Y]),
    "Pow of another type": Single("Pow", [X, ints(2)], low=12),
    "Pow of numbers": Single("Pow", [STEPS, np.array([2.0], dtype=np.float32)], low=12),
    "Mod": Single("Mod", [STEPS, COUNTS], low=10),
    "Mod with sign": Single("Mod", [X, Y], {"fmod": 1}, low=10),
    **{op: Single(op, [X, Y, SMALL], feed=(0, 2), low=8) for op in ("Sum", "Mean", "Max", "Min")},
    "LeakyRelu steep": Single("LeakyRelu", [X], {"alpha": 0.3}),
    "PRelu": Single("PRelu", [X, Y]),
    "PRelu of channels": Single("PRelu", [noise(2, 4, 3, 3), noise(4, 1, 1)]),
    "Elu steep": Single("Elu", [X], {"alpha": 0.5}),
    "Celu": Single("Celu", [X], {"alpha": 0.5}, low=12),
    "Selu steep": Single("Selu", [X], {"alpha": 1.2, "gamma": 0.7}),
    "ThresholdedRelu": Single("ThresholdedRelu", [X], {"alpha": 0.4}, low=10),
    "Shrink biased": Single("Shrink", [X], {"lambd": 0.3, "bias": 0.1}, low=9),
    "HardSigmoid steep": Single("HardSigmoid", [X], {"alpha": 0.5, "beta": 0.3}),
    "HardSwish": Single("HardSwish", [X * 4], low=14),
    "Mish": Single("Mish", [X], low=18),
    "Gelu": Single("Gelu", [X], low=20),
    "Gelu, tanh": Single("Gelu", [X], {"approximate": "tanh"}, low=20),
    "Gelu of onnxruntime": of_ort("Gelu", X),
    "FastGelu": of_ort("FastGelu", X),
    "FastGelu, bias": of_ort("FastGelu", X, noise(5)),
    "BiasGelu": of_ort("BiasGelu", X, noise(5)),
    "QuickGelu": of_ort("QuickGelu", X, alpha=1.3),
    "Clip by attributes": Single("Clip", [X], {"min": -0.2, "max": 0.4}, high=10),
    "Clip": Single("Clip", [X, scalar(-0.2), scalar(0.4)], low=11),
    "Clip above": Single("Clip", [X, None, scalar(0.4)], low=11),
    "Clip below, computed": Single("Clip", [X, scalar(0.1)], feed=(0, 1), low=11),
    "Clip of numbers": Single("Clip", [STEPS, np.array(-3)], low=12),
    "Dropout": Single("Dropout", [X], {"ratio": 0.3}, high=10),
    "Dropout of inputs": Single("Dropout", [X, scalar(0.3), np.array(False)], low=12),
    **{op: Single(op, [X, Y]) for op in ("Greater", "Less")},
    **{op: Single(op, [STEPS, COUNTS]) for op in ("Equal",)},
    **{op: Single(op, [X, Y], low=12) for op in ("GreaterOrEqual", "LessOrEqual")},
    **{op: Single(op, [YES, Y > 0], feed=(0, 1)) for op in ("And", "Or", "Xor")},
    "Not": Single("Not", [YES]),
    "IsNaN": Single("IsNaN", [ODD], low=9),
    **{
        f"IsInf {low} {high}": Single("IsInf", [ODD], {"detect_negative": low, "detect_positive": high}, low=10)
        for low in (0, 1)
        for high in (0, 1)
    },
    "Where": Single("Where", [YES, X, Y], feed=(0, 1), low=9),
    **{f"Cast to {kind}": Single("Cast", [ODD[:2]], {"to": kind}, low=9) for kind in (1, 3, 5, 6, 7, 9, 10, 11)},
    "Cast of a mask": Single("Cast", [YES], {"to": 1}, low=9),
    "CastLike": Single("CastLike", [STEPS, np.array([1], dtype=np.float32)], low=15),
}


@pytest.mark.parametrize(("case", "opset"), [pytest.param(c, o, id=name) for name, c, o in at_opsets(CASES)])
def test_computes_what_onnxruntime_does(case: Single, opset: int) -> None:
    assert_same(case, opset)


@pytest.mark.parametrize("name", ["PRelu", "Pow", "Where", "Max", "BiasGelu", "FastGelu, bias", "Div"])
def test_slopes_are_those_of_onnxruntime(name: str) -> None:
    case = CASES[name]
    assert_slopes(case.model(case.opsets()[-1]), case.fed(), step=1e-3)


def test_swish_is_that_of_the_specification() -> None:
    """onnxruntime has no kernel for it."""
    from onnx.reference import ReferenceEvaluator

    model = Single("Swish", [X], {"alpha": 1.5}, low=24, high=24).model(24)
    outputs: Any = ReferenceEvaluator(model).run(None, {"i0": X})
    np.testing.assert_allclose(in_torch(model, {"i0": X})[0], outputs[0], rtol=1e-5, atol=1e-6)
