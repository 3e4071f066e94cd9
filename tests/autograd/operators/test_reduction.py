"""Operators that make one number of many, against onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from builders.models import Array
from builders.single_node import Single, assert_same, at_opsets

pytest.importorskip("torch")


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


X = noise(3, 4, 5)
REDUCTIONS = (
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSumExp", "ReduceLogSum",
)  # fmt: skip
LAST = {op: 12 if op == "ReduceSum" else 17 for op in REDUCTIONS}
"""The last opset at which the axes were an attribute."""


def of(op: str) -> Array:
    return np.abs(X) if op == "ReduceLogSum" else X


CASES: Mapping[str, Single] = {
    **{f"{op} all": Single(op, [of(op)], {"keepdims": 0}, high=LAST[op]) for op in REDUCTIONS},
    **{f"{op} axes": Single(op, [of(op)], {"axes": [0, -1]}, high=LAST[op]) for op in REDUCTIONS},
    **{f"{op} one axis": Single(op, [of(op)], {"axes": [1], "keepdims": 0}, high=LAST[op]) for op in REDUCTIONS},
    **{f"{op} input": Single(op, [of(op), ints(0, -1)], low=LAST[op] + 1) for op in REDUCTIONS},
    **{f"{op} no input": Single(op, [of(op)], {"keepdims": 0}, low=LAST[op] + 1) for op in REDUCTIONS},
    **{
        f"{op} nothing": Single(op, [of(op), ints()], {"noop_with_empty_axes": 1}, low=LAST[op] + 1)
        for op in ("ReduceMean", "ReduceSum", "ReduceMax")
    },
    "ReduceSum of numbers": Single("ReduceSum", [np.arange(6).reshape(2, 3), ints(1)], low=13),
    "ReduceProd of numbers": Single("ReduceProd", [np.arange(1, 7).reshape(2, 3)], {"axes": [1]}, high=17),
    **{
        f"{op} {axis} {keep}": Single(op, [X], {"axis": axis, "keepdims": keep})
        for op in ("ArgMax", "ArgMin")
        for axis in (0, -1)
        for keep in (0, 1)
    },
    "ArgMax of equals": Single("ArgMax", [np.zeros((2, 3), dtype=np.float32)], {"axis": 1}),
    "ArgMax last of equals": Single(
        "ArgMax", [np.zeros((2, 3), dtype=np.float32)], {"axis": 1, "select_last_index": 1}, low=12
    ),
    "TopK attribute": Single("TopK", [X], {"k": 3}, outputs=2, high=9),
    "TopK": Single("TopK", [X, ints(3)], outputs=2, low=10),
    "TopK smallest": Single("TopK", [X, ints(2)], {"axis": 1, "largest": 0}, outputs=2, low=11),
    **{
        f"CumSum {exclusive} {reverse}": Single(
            "CumSum", [X, np.array(1)], {"exclusive": exclusive, "reverse": reverse}, low=11
        )
        for exclusive in (0, 1)
        for reverse in (0, 1)
    },
}


@pytest.mark.parametrize(("case", "opset"), [pytest.param(c, o, id=name) for name, c, o in at_opsets(CASES)])
def test_computes_what_onnxruntime_does(case: Single, opset: int) -> None:
    assert_same(case, opset)


def test_the_norm_of_nothing_has_a_gradient() -> None:
    import torch

    from pcns_onnx.autograd.translation import to_torch

    x = torch.zeros(2, 3, requires_grad=True)
    to_torch(Single("ReduceL2", [np.zeros((2, 3), dtype=np.float32)], {"axes": [1]}).model(13))(x).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
