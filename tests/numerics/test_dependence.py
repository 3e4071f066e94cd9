"""Exact dependence: what follows from others is found whatever its size, what does not is not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pcns_onnx.numerics.dependence import (
    TOLERANCE_WIDE,
    copied,
    copies,
    independent,
    repeats,
    tolerance_for,
    with_copies_equal,
)
from pcns_onnx.numerics.moments import WIDE, Moments

Matrix = NDArray[np.float64]


def rows(count: int, columns: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal((count, columns))


def covariance(x: Matrix) -> Matrix:
    return np.asarray(np.cov(x.T))


def test_copies_are_found_at_any_size_and_sign() -> None:
    x = rows(20, 5)
    x[:, 3], x[:, 4] = -1e-6 * x[:, 1] + 7, 1e-6 * x[:, 0]
    assert copies(covariance(x)).tolist() == [0, 1, 2, 1, 0]
    x[:, 4] = 3 * x[:, 0]
    assert copies(covariance(x)).tolist() == [4, 1, 2, 1, 4], "the largest is the original"
    x[:, 4] += 1e-3 * x[:, 2]
    assert copies(covariance(x)).tolist() == [0, 1, 2, 1, 4], "what is nearly a copy is none"


def test_what_does_not_vary_is_no_copy_of_anything() -> None:
    x = rows(20, 4)
    x[:, 1:3] = 5
    assert copies(covariance(x)).tolist() == [0, 1, 2, 3]
    assert not repeats(covariance(x)).any()


def test_repeats_are_of_one_size_and_sign() -> None:
    x = np.repeat(rows(20, 1), 4, axis=1) * [1, -1, 2, 1]
    assert repeats(covariance(x)).tolist() == [False, False, False, True]


def test_a_combination_is_found_however_weak_it_is() -> None:
    x = rows(60, 8)
    x[:, 7] = 1e-5 * (x[:, 0] - 2 * x[:, 3] + x[:, 5])
    assert len(independent(covariance(x))) == 7
    x[:, 7] += 1e-7 * rows(60, 1, seed=1)[:, 0]
    assert len(independent(covariance(x))) == 8
    assert independent(np.zeros((3, 3))).tolist() == []
    assert independent(np.zeros((0, 0))).tolist() == []


def test_a_copy_follows_the_one_that_is_nearest_in_size() -> None:
    x = np.repeat(rows(20, 2), [3, 2], axis=1) * [1.0, 2.0, 2.0, 1.0, 0.0]
    which, place, factor = copied(covariance(x), np.array([0, 1, 4]))
    assert which.tolist() == [0, 1, 2, 4]
    assert place.tolist() == [0, 1, 1, 2]
    np.testing.assert_allclose(factor, 1.0)


@pytest.mark.parametrize("columns", [WIDE, WIDE + 176])
def test_copies_survive_the_rounding_of_their_moments(columns: int) -> None:
    half, count = columns // 2, 3000
    x = np.maximum(rows(count, half), 0).astype(np.float32)
    both = np.concatenate([x, x * np.linspace(0.1, 4, half, dtype=np.float32)], axis=1)
    moments, tolerance = Moments(columns, 0), tolerance_for(columns)
    moments.update(both)
    found = copies(moments.covariance, tolerance)
    assert (found % half == np.arange(columns) % half).all()
    assert len(np.unique(found)) == half
    if tolerance == TOLERANCE_WIDE:
        exact = with_copies_equal(moments.covariance, tolerance)
        np.testing.assert_array_equal(copies(exact), found)
        np.testing.assert_allclose(exact, moments.covariance, atol=1e-4 * np.abs(exact).max())
