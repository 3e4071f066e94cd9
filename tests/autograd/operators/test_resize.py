"""Resize and Upsample: every mode, rounding and coordinate that deployed files have, against onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from builders.models import Array
from builders.single_node import Single, assert_same, at_opsets

pytest.importorskip("torch")


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


X = noise(1, 2, 5, 7)
NONE = noise(0)
"""No region, no scales: opset 11 wants them there all the same."""
MODES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric")
ROUND = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
SCALES = {"larger": (1, 1, 2, 2), "odd": (1, 1, 1.7, 2.3), "smaller": (1, 1, 0.6, 0.5), "mixed": (1, 1, 3, 0.4)}


def scaled(scales: tuple[float, ...], *, low: int = 11, **attributes: Any) -> Single:
    low = 19 if attributes.get("coordinate_transformation_mode") == "half_pixel_symmetric" else low
    return Single("Resize", [X, NONE, np.array(scales, dtype=np.float32)], attributes, low=low)


def sized(*sizes: int, low: int = 11, x: Array = X, **attributes: Any) -> Single:
    return Single("Resize", [x, NONE, NONE, ints(*sizes)], attributes, low=low)


CASES: Mapping[str, Single] = {
    **{
        f"{mode} {coordinates} {name}": scaled(scales, mode=mode, coordinate_transformation_mode=coordinates)
        for mode in ("nearest", "linear", "cubic")
        for coordinates in MODES
        for name, scales in SCALES.items()
    },
    **{
        f"nearest {rounding} {coordinates} {name}": scaled(
            SCALES[name], mode="nearest", nearest_mode=rounding, coordinate_transformation_mode=coordinates
        )
        for rounding in ROUND
        for coordinates in ("half_pixel", "asymmetric", "align_corners")
        for name in ("larger", "odd", "smaller")
    },
    **{f"sizes {mode}": sized(1, 2, 9, 4, mode=mode) for mode in ("nearest", "linear", "cubic")},
    "sizes of one": sized(1, 2, 1, 1, mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
    "sizes corners of one": sized(1, 2, 1, 1, mode="linear", coordinate_transformation_mode="align_corners"),
    "one axis": sized(1, 2, 11, x=noise(1, 2, 5), mode="linear"),
    "volume": sized(1, 2, 6, 6, 6, x=noise(1, 2, 3, 4, 5), mode="nearest"),
    "volume linear": sized(1, 2, 6, 6, 6, x=noise(1, 2, 3, 4, 5), mode="linear"),
    "axes": sized(8, 9, low=18, mode="linear", axes=[2, 3]),
    "not larger": sized(8, 9, low=18, mode="linear", axes=[2, 3], keep_aspect_ratio_policy="not_larger"),
    "not smaller": sized(8, 9, low=18, mode="nearest", axes=[2, 3], keep_aspect_ratio_policy="not_smaller"),
    "cubic outside": scaled((1, 1, 2, 2), mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5),
    **{
        f"opset 10 {mode} {name}": Single(
            "Resize", [X, np.array(SCALES[name], dtype=np.float32)], {"mode": mode}, low=10, high=10
        )
        for mode in ("nearest", "linear")
        for name in SCALES
    },
    **{
        f"Upsample {mode} {name}": Single(
            "Upsample", [X, np.array(SCALES[name], dtype=np.float32)], {"mode": mode}, low=9, high=9
        )
        for mode in ("nearest", "linear")
        for name in ("larger", "odd")
    },
    "Upsample attribute": Single("Upsample", [X], {"scales": [1.0, 1.0, 2.0, 2.0]}, low=7, high=7),
}


@pytest.mark.parametrize(("case", "opset"), [pytest.param(c, o, id=name) for name, c, o in at_opsets(CASES)])
def test_computes_what_onnxruntime_does(case: Single, opset: int) -> None:
    assert_same(case, opset)
