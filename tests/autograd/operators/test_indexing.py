"""Operators that pick and place numbers, against onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from builders.chains import scalar
from builders.models import Array
from builders.single_node import Single, assert_same, assert_slopes, at_opsets

pytest.importorskip("torch")


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


X = noise(3, 4, 5)
PAIRS = np.array([[[0, 1], [2, -1]], [[-3, 0], [1, 2]]])


def pads(*by: int, mode: str = "constant", fill: float | None = None, **options: Any) -> Mapping[str, Single]:
    """As attributes, and as inputs."""
    value = None if fill is None else scalar(fill)
    attributes = {"pads": by, "mode": mode, **({} if fill is None else {"value": fill})}
    name = f"Pad {mode} {by}"
    old = {f"{name} attributes": Single("Pad", [X], attributes, high=10)} if mode != "wrap" else {}
    new = Single("Pad", [X, ints(*by), *([] if value is None else [value])], {"mode": mode}, low=11)
    return {**old, f"{name} inputs": Single("Pad", new.values, new.attributes, low=19 if mode == "wrap" else 11)}


CASES: Mapping[str, Single] = {
    "Slice attributes": Single("Slice", [X], {"starts": [0, -3], "ends": [2, 1000], "axes": [0, 2]}, high=9),
    "Slice of all": Single("Slice", [X], {"starts": [1, 0], "ends": [3, -1]}, high=9),
    "Slice": Single("Slice", [X, ints(0, -3), ints(2, 1000), ints(0, -1)], low=10),
    "Slice steps": Single("Slice", [X, ints(1, 4), ints(4, -6), ints(1, 2), ints(2, -2)], low=10),
    "Slice backwards": Single("Slice", [X, ints(-1), ints(-1000), ints(1), ints(-1)], low=10),
    "Slice computed": Single("Slice", [X, ints(1), ints(3)], feed=(0, 1, 2), low=10),
    "Gather": Single("Gather", [X, np.array([[0, 2], [1, 1]])], {"axis": 1}),
    "Gather from the end": Single("Gather", [X, np.array(-1)], {"axis": -1}, low=11),
    "Gather computed": Single("Gather", [X, np.array([2, 0], dtype=np.int32)], feed=(1,)),
    "GatherElements": Single("GatherElements", [X, np.array([[[0, -1, 2, 1, 0]]])], {"axis": 1}, low=11),
    "GatherND": Single("GatherND", [X, PAIRS], low=11),
    "GatherND of batches": Single("GatherND", [X, ints(1, 0, -1)[:, None]], {"batch_dims": 1}, low=12),
    "Scatter": Single("Scatter", [X, np.array([[[1, 0, -1, 0, 2]]]), noise(1, 1, 5)], feed=(0, 2), low=9, high=9),
    **{
        f"ScatterElements {reduction}": Single(
            "ScatterElements", [X, np.array([[[1, 0, -1, 1, 2]]] * 2), noise(2, 1, 5)],
            {"axis": 1, **({} if reduction == "none" else {"reduction": reduction})}, feed=(0, 2), low=low,
        )
        for reduction, low in (("none", 11), ("add", 16), ("mul", 16), ("max", 18), ("min", 18))
    },
    **{
        f"ScatterND {reduction}": Single(
            "ScatterND", [X, np.array([[0, 1], [2, -1]]), noise(2, 5)],
            {} if reduction == "none" else {"reduction": reduction}, feed=(0, 2), low=low,
        )
        for reduction, low in (("none", 11), ("add", 16), ("mul", 16), ("max", 18), ("min", 18))
    },
    **{
        f"OneHot {axis}": Single("OneHot", [np.array([[0, 2], [-1, 7]]), np.array(4), noise(2)], {"axis": axis}, low=9)
        for axis in (-1, 0, 1)
    },
    "NonZero": Single("NonZero", [X * (X > 0)], low=9),
    "ReverseSequence": Single("ReverseSequence", [X, ints(1, 3, 2, 3)], low=10),
    "ReverseSequence of rows": Single(
        "ReverseSequence", [X, ints(1, 4, 2)], {"batch_axis": 0, "time_axis": 1}, low=10
    ),
    **pads(0, 1, 2, 0, 0, 1),
    **pads(1, 0, 2, 0, 1, 1, fill=0.5),
    **pads(0, -1, 1, 0, 0, -2),
    **{key: case for mode in ("reflect", "edge", "wrap") for key, case in pads(0, 2, 1, 1, 0, 3, mode=mode).items()},
    "Pad axes": Single("Pad", [X, ints(1, 2, 0, 1), None, ints(2, 0)], {"mode": "edge"}, low=18),
    "Pad axes, constant": Single("Pad", [X, ints(1, 2), scalar(3), ints(-1)], low=18),
    "Pad computed": Single("Pad", [X, ints(0, 0, 1, 0, 0, 2)], {"mode": "reflect"}, feed=(0, 1), low=11),
}  # fmt: skip


@pytest.mark.parametrize(("case", "opset"), [pytest.param(c, o, id=name) for name, c, o in at_opsets(CASES)])
def test_computes_what_onnxruntime_does(case: Single, opset: int) -> None:
    assert_same(case, opset)


@pytest.mark.parametrize("name", ["Gather computed"])
def test_slopes_are_those_of_onnxruntime(name: str) -> None:
    case = CASES[name]
    assert_slopes(case.model(case.opsets()[-1]), case.fed())
