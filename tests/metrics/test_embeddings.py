"""Embeddings: ranks of cosines against SciPy's, and neighbours that are planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from pcns_onnx.errors import InputError
from pcns_onnx.metrics import neighbours, retrieval
from pcns_onnx.metrics.embeddings import Retrieval

Array = NDArray[Any]
X = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
NOISE = np.random.default_rng(1).standard_normal((30, 8)).astype(np.float32)


def cosines(vectors: Array) -> Array:
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return np.asarray((unit @ unit.T)[np.triu_indices(len(unit), 1)])


@pytest.mark.parametrize("noise", [0.1, 0.5, 3.0])
def test_the_rank_correlation_is_spearmans(noise: float) -> None:
    other = X + noise * NOISE
    score = retrieval({"y": other}, reference={"y": X})
    assert score == pytest.approx(100 * stats.spearmanr(cosines(X), cosines(other)).statistic, abs=0.01)


@pytest.mark.parametrize("metric", [retrieval, neighbours], ids=["ranks", "neighbours"])
def test_what_does_not_change_a_cosine_costs_nothing(metric: Retrieval) -> None:
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((8, 8)))[0].astype(np.float32)
    for same in (X, 3 * X, X @ turn):
        assert metric({"y": same}, reference={"y": X}) == pytest.approx(100)
    order = np.random.default_rng(3).permutation(30)
    whole = metric({"y": X + NOISE}, reference={"y": X})
    assert metric({"y": (X + NOISE)[order]}, reference={"y": X[order]}) == pytest.approx(whole)
    assert whole < 100


def test_neighbours_that_change_are_counted() -> None:
    pairs = np.eye(10, 16).repeat(2, axis=0) + 0.01 * np.arange(20)[:, None] * np.eye(20, 16, 10)[::-1]
    other = pairs.copy()
    other[0] = pairs[5]
    assert neighbours({"y": pairs}, reference={"y": pairs}) == 100
    assert 75 <= neighbours({"y": other}, reference={"y": pairs}) < 100


@pytest.mark.parametrize("metric", [retrieval, neighbours], ids=["ranks", "neighbours"])
def test_twins_are_neighbours_of_one_another_in_any_order(metric: Retrieval) -> None:
    twice = np.concatenate([X, X])
    assert metric({"y": twice}, reference={"y": twice}) == pytest.approx(100)


def test_batches_and_tokens_make_no_difference() -> None:
    counted = Retrieval()
    for start in range(0, 30, 4):
        rows = slice(start, start + 4)
        counted.update({"y": X[rows] + NOISE[rows]}, None, reference={"y": X[rows]}, size=len(X[rows]))
    assert counted.compute() == pytest.approx(retrieval({"y": X + NOISE}, reference={"y": X}))
    spread = np.stack([X + 1, X - 1], axis=1)
    assert retrieval({"t": spread}, reference={"t": spread * 2}) == pytest.approx(100)
    assert retrieval({"t": (X + NOISE)[:, None, None]}, reference={"t": X[:, None, None]}) == pytest.approx(
        counted.compute()
    )
    pooled = {"tokens": -spread, "pooled": X}
    assert retrieval(pooled | {"pooled": X + NOISE}, reference=pooled) == pytest.approx(counted.compute())


def test_nothing_to_rank_is_no_score() -> None:
    assert np.isnan(retrieval({"y": X[:2]}, reference={"y": X[:2]}))
    assert np.isnan(retrieval({"y": X}, reference={"y": np.ones_like(X)}))
    assert retrieval({"y": np.ones_like(X)}, reference={"y": X}) == 0


def test_other_outputs_are_refused_in_a_line() -> None:
    outputs = {"y": np.zeros((2, 3, 4, 5))}
    with pytest.raises(InputError, match=r"^metric retrieval: no output looks like embeddings .*'y' \[2, 3, 4, 5\]$"):
        retrieval(outputs, reference=outputs)
