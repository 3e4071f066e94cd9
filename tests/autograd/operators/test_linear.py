"""Products with matrices in all of their forms, against onnxruntime."""

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


def fused(op: str, *values: Array, **attributes: Any) -> Single:
    return Single(op, values, attributes, domain="com.microsoft")


A, B, C = noise(3, 4), noise(4, 5, seed=1), noise(5, seed=2)

CASES: Mapping[str, Single] = {
    "Gemm": Single("Gemm", [A, B, C]),
    "Gemm without C": Single("Gemm", [A, B], low=11),
    "Gemm transposed": Single("Gemm", [A.T.copy(), B.T.copy(), C], {"transA": 1, "transB": 1, "alpha": 0.5}),
    "Gemm scaled": Single("Gemm", [A, B, C[:1]], {"beta": 2.0}),
    "MatMul": Single("MatMul", [noise(2, 3, 4), B]),
    "MatMul vector": Single("MatMul", [noise(2, 3, 4), noise(4)]),
    "MatMul of both": Single("MatMul", [noise(2, 3, 4), noise(2, 4, 5)], feed=(0, 1)),
    "Einsum": Single("Einsum", [noise(2, 3, 4), noise(4, 6)], {"equation": "bij,jk->bik"}, low=12),
    "Einsum heads": Single("Einsum", [noise(2, 3, 4), noise(2, 4, 6)], {"equation": "...ij,...jk->...ki"}, low=12),
    "FusedMatMul": fused("FusedMatMul", noise(2, 3, 4), B, alpha=0.5),
    "FusedMatMul transposed": fused("FusedMatMul", noise(2, 4, 3), noise(2, 5, 4), transA=1, transB=1),
    "FusedMatMul batch last": fused("FusedMatMul", noise(3, 2, 4), noise(4, 2, 5), transBatchA=1, transBatchB=1),
    "FusedMatMul all": fused("FusedMatMul", noise(4, 2, 3), noise(5, 2, 4), transA=1, transB=1, transBatchA=1,
                             transBatchB=1),
    "TransposeMatMul": fused("TransposeMatMul", noise(2, 4, 3), noise(2, 4, 5), transA=1),
    "FusedGemm": fused("FusedGemm", A, B, C, activation="Relu"),
    "FusedGemm LeakyRelu": fused("FusedGemm", A, B, C, activation="LeakyRelu", activation_alpha=0.2),
}  # fmt: skip


@pytest.mark.parametrize(("case", "opset"), [pytest.param(c, o, id=name) for name, c, o in at_opsets(CASES)])
def test_computes_what_onnxruntime_does(case: Single, opset: int) -> None:
    assert_same(case, opset)


@pytest.mark.parametrize("name", ["Gemm transposed", "Gemm scaled", "Einsum", "FusedMatMul all", "FusedGemm LeakyRelu"])
def test_slopes_are_those_of_onnxruntime(name: str) -> None:
    case = CASES[name]
    assert_slopes(case.model(case.opsets()[0]), case.fed())
