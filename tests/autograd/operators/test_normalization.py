"""Norms of all kinds, Softmax, and the sums that onnxruntime fuses with a norm."""

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


X, C = noise(2, 6, 4, 5), {seed: noise(6, seed=seed) for seed in range(1, 5)}
VARIANCE = np.abs(C[4]) + np.float32(0.1)
R, E = noise(2, 3, 8), {seed: noise(8, seed=seed) for seed in range(1, 5)}


def of_ort(
    op: str, *values: Array | None, outputs: int = 1, absent: tuple[int, ...] = (), feed: tuple[int, ...] = (0, 1),
    **options: Any,
) -> Single:  # fmt: skip
    return Single(
        op, values, options, feed=feed, outputs=outputs, absent=absent, domain="com.microsoft", tolerance=2e-5
    )


WORDS, KINDS = np.array([[1, 2, 3, 0], [4, 0, 0, 6]], dtype=np.int32), np.array([[0, 0, 1, 1]] * 2, dtype=np.int32)
SEEN = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], dtype=np.int32)

CASES: Mapping[str, Single] = {
    **{
        f"{op} {axis}": Single(op, [X], {} if axis is None else {"axis": axis})
        for op in ("Softmax", "LogSoftmax", "Hardmax")
        for axis in (None, 1, 2, -1)
    },
    "BatchNormalization": Single("BatchNormalization", [X, C[1], C[2], C[3], VARIANCE], {"epsilon": 1e-3}),
    "BatchNormalization of rows": Single("BatchNormalization", [noise(5, 6), C[1], C[2], C[3], VARIANCE]),
    "LayerNormalization": Single("LayerNormalization", [R, E[1], E[2]], low=17),
    "LayerNormalization over two": Single(
        "LayerNormalization", [R, noise(3, 8), noise(3, 8, seed=1)], {"axis": 1}, low=17
    ),
    "LayerNormalization of one scale": Single("LayerNormalization", [R, E[1][:1]], low=17),
    "RMSNormalization": Single("RMSNormalization", [R, E[1]], {"epsilon": 1e-3}, low=23),
    "SimplifiedLayerNormalization": Single("SimplifiedLayerNormalization", [R, E[1]], {"axis": -1}, low=17, high=17),
    "InstanceNormalization": Single("InstanceNormalization", [X, C[1], C[2]]),
    "InstanceNormalization of one position": Single("InstanceNormalization", [noise(2, 6, 1), C[1], C[2]]),
    "GroupNormalization": Single("GroupNormalization", [X, C[1], C[2]], {"num_groups": 3}, low=21),
    "LpNormalization": Single("LpNormalization", [X], {"axis": 1}),
    "LpNormalization of absolutes": Single("LpNormalization", [np.append(X, 0 * X, axis=0)], {"p": 1}),
    "MeanVarianceNormalization": Single("MeanVarianceNormalization", [X], low=9),
    "MeanVarianceNormalization of rows": Single("MeanVarianceNormalization", [X], {"axes": [1, 2, 3]}, low=9),
    **{f"LRN {size}": Single("LRN", [X], {"size": size, "alpha": 0.5, "bias": 2.0}) for size in (3, 5)},
    "SkipLayerNormalization": of_ort("SkipLayerNormalization", R, R[::-1].copy(), E[1], E[2], E[3], epsilon=1e-5),
    "SkipLayerNormalization sum": of_ort(
        "SkipLayerNormalization", R, R[::-1].copy(), E[1], None, E[2], outputs=4, absent=(1, 2)
    ),
    "SkipSimplifiedLayerNormalization": of_ort("SkipSimplifiedLayerNormalization", R, R[::-1].copy(), E[1], E[3]),
    "EmbedLayerNormalization": of_ort(
        "EmbedLayerNormalization", WORDS, KINDS, noise(7, 8), noise(9, 8, seed=1), noise(2, 8, seed=2), E[1], E[2],
        SEEN, outputs=3,
    ),
    "EmbedLayerNormalization of words": of_ort(
        "EmbedLayerNormalization", WORDS, None, noise(7, 8), noise(9, 8, seed=1), None, E[1], E[2], feed=(0,),
        outputs=2,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("case", "opset"), [pytest.param(c, o, id=name) for name, c, o in at_opsets(CASES)])
def test_computes_what_onnxruntime_does(case: Single, opset: int) -> None:
    assert_same(case, opset)


@pytest.mark.parametrize(
    "name",
    ["BatchNormalization", "LayerNormalization", "LayerNormalization over two", "InstanceNormalization",
     "GroupNormalization", "SkipLayerNormalization", "EmbedLayerNormalization"],
)  # fmt: skip
def test_slopes_are_those_of_onnxruntime(name: str) -> None:
    case = CASES[name]
    assert_slopes(case.model(case.opsets()[-1]), case.fed())
