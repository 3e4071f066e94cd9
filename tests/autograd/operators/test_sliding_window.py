"""Convolutions and pools in all of their forms, against onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from builders.models import Array
from builders.single_node import Single, assert_same, assert_slopes, at_opsets

pytest.importorskip("torch")


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


X1, X2, X3 = noise(2, 4, 11), noise(2, 4, 9, 8), noise(1, 2, 5, 6, 7)


def conv(x: Array, out: int, *kernel: int, group: int = 1, op: str = "Conv", **attributes: Any) -> Single:
    wide = x.shape[1] // group
    shape = (x.shape[1], out // group, *kernel) if op == "ConvTranspose" else (out, wide, *kernel)
    return Single(op, [x, noise(*shape, seed=1), noise(out, seed=2)], {"group": group, **attributes})


def transposed(x: Array, out: int, *kernel: int, **attributes: Any) -> Single:
    return conv(x, out, *kernel, op="ConvTranspose", **attributes)


def pool(op: str, x: Array, *kernel: int, low: int = 7, high: int = 23, **attributes: Any) -> Single:
    return Single(op, [x], {"kernel_shape": list(kernel), **attributes}, low=low, high=high)


CASES: Mapping[str, Single] = {
    "Conv": conv(X2, 6, 3, 3, pads=[1, 1, 1, 1]),
    "Conv 1-d": conv(X1, 6, 3, strides=[2], pads=[0, 1]),
    "Conv 3-d": conv(X3, 4, 3, 2, 2, pads=[1, 0, 1, 0, 1, 1]),
    "Conv depthwise": conv(X2, 4, 3, 3, group=4, strides=[2, 1], auto_pad="SAME_UPPER"),
    "Conv dilated": conv(X2, 6, 3, 2, dilations=[2, 3], pads=[2, 1, 1, 0]),
    "Conv grouped, valid": conv(X2, 6, 3, 2, group=2, auto_pad="VALID"),
    "FusedConv": Single("FusedConv", [X2, noise(6, 4, 3, 3), noise(6)], {"activation": "Relu"}, domain="com.microsoft"),
    "FusedConv sum": Single(
        "FusedConv", [X2, noise(6, 4, 1, 1), noise(6), noise(2, 6, 9, 8)],
        {"activation": "LeakyRelu", "activation_params": [0.3]}, feed=(0, 3), domain="com.microsoft",
    ),
    "FusedConv clip": Single(
        "FusedConv", [X2, noise(6, 4, 1, 1), noise(6)], {"activation": "Clip", "activation_params": [0.0, 1.0]},
        domain="com.microsoft",
    ),
    "ConvTranspose": transposed(X2, 6, 3, 3, strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    "ConvTranspose 1-d": transposed(X1, 6, 4, strides=[2], pads=[1, 1]),
    "ConvTranspose 3-d": transposed(X3, 4, 2, 3, 2, strides=[2, 1, 1]),
    "ConvTranspose grouped": transposed(X2, 4, 3, 2, group=2, dilations=[2, 1], pads=[1, 0, 0, 1]),
    **{
        f"ConvTranspose {auto_pad} {k}": transposed(X2, 6, k, k, strides=[2, 3], auto_pad=auto_pad)
        for auto_pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for k in (2, 3, 4, 5)
    },
    **{
        f"ConvTranspose shape {auto_pad} {wide}": transposed(
            X2, 6, 4, 3, strides=[2, 2], output_shape=[17, wide], auto_pad=auto_pad
        )
        for auto_pad in ("NOTSET", "SAME_UPPER", "SAME_LOWER")
        for wide in (15, 16)
    },
    "ConvTranspose shape and padding": transposed(X2, 6, 3, 3, strides=[3, 3], output_shape=[26, 25],
                                                  output_padding=[1, 0]),
    **{f"MaxPool {n}-d": pool("MaxPool", x, *[2] * n, strides=[2] * n) for n, x in enumerate((X1, X2, X3), 1)},
    "MaxPool pads": pool("MaxPool", X2, 3, 2, pads=[1, 0, 0, 1], strides=[2, 1]),
    "MaxPool ceil": pool("MaxPool", X2, 3, 3, strides=[2, 2], ceil_mode=1, dilations=[2, 1], low=10),
    "MaxPool same": pool("MaxPool", X2, 3, 3, strides=[2, 2], auto_pad="SAME_LOWER"),
    "AveragePool": pool("AveragePool", X2, 3, 2, strides=[2, 2], pads=[1, 0, 1, 1]),
    "AveragePool counted": pool("AveragePool", X2, 3, 2, strides=[2, 2], pads=[1, 0, 1, 1], count_include_pad=1),
    "AveragePool ceil": pool("AveragePool", X2, 3, 3, strides=[2, 2], ceil_mode=1, low=19),
    "AveragePool same": pool("AveragePool", X1, 3, strides=[2], auto_pad="SAME_UPPER"),
    "AveragePool dilated": pool("AveragePool", X2, 3, 2, dilations=[2, 2], pads=[1, 0, 1, 1], low=19),
    "LpPool": pool("LpPool", X2, 3, 2, strides=[2, 2]),
    "LpPool pads": pool("LpPool", X2, 3, 2, p=3, pads=[1, 1, 1, 1]),
    "LpPool dilated": pool("LpPool", X2, 3, 2, p=1, dilations=[2, 1], low=18),
    "GlobalAveragePool": Single("GlobalAveragePool", [X3]),
    "GlobalMaxPool": Single("GlobalMaxPool", [X1]),
    "GlobalLpPool": Single("GlobalLpPool", [X2], {"p": 3}, high=17),
    **{
        f"GridSample {mode} {padding} {corners}": Single(
            "GridSample", [X2, np.tanh(noise(2, 5, 6, 2)) * np.float32(1.2)],
            {"mode": mode, "padding_mode": padding, "align_corners": corners}, feed=(0, 1), low=low, high=high,
        )
        for modes, low, high in ((("bilinear", "bicubic"), 16, 16), (("linear", "cubic", "nearest"), 20, 22))
        for mode in modes
        for padding in ("zeros", "border", "reflection")
        for corners in (0, 1)
    },
}  # fmt: skip


@pytest.mark.parametrize(("case", "opset"), [pytest.param(c, o, id=name) for name, c, o in at_opsets(CASES)])
def test_computes_what_onnxruntime_does(case: Single, opset: int) -> None:
    assert_same(case, opset)


@pytest.mark.parametrize(
    "name", ["Conv depthwise", "Conv dilated", "ConvTranspose", "ConvTranspose SAME_UPPER 3", "FusedConv sum"]
)
def test_slopes_are_those_of_onnxruntime(name: str) -> None:
    case = CASES[name]
    assert_slopes(case.model(case.opsets()[-1]), case.fed())
