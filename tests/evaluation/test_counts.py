"""Outputs that are no plain tensors are arrays for the comparison, and what is found is counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pcns_onnx.calibration.output_layout import OutputLayout
from pcns_onnx.calibration.output_scale import OutputError
from pcns_onnx.evaluation.counts import Counts, CountTally, as_array
from pcns_onnx.numerics.arrays import without_common_infinities


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.ones((2, 3)), np.ones((2, 3))),
        ([np.zeros((2, 1)), np.ones((2, 2))], [[0, 1, 1], [0, 1, 1]]),
        ([np.zeros(1), np.ones(2)], [[0, 1, 1]]),
        ([np.array(3.0), np.array(4.0)], [[3, 4]]),
        ([{"b": 2.0, "a": 1.0}, {"a": 3.0, "b": 4.0}], [[1, 2], [3, 4]]),
        ([{"a": 1.0}, {"a": 3.0, "b": 4.0}], [[1, 3, 4]]),
        ({1: 5.0, 0: 6.0}, [[6, 5]]),
        ([], np.zeros((1, 0))),
        (None, np.zeros((1, 0))),
        ([np.zeros((0, 4)), np.zeros((0, 2))], np.zeros((0, 6))),
    ],
    ids=[
        "tensor", "tensors of as many rows", "of others", "scalars", "maps", "maps of other keys", "a map",
        "nothing in a list", "nothing", "no rows",
    ],
)  # fmt: skip
def test_whatever_is_put_out_is_an_array(value: Any, expected: Any) -> None:
    array = as_array(value)
    assert array.shape == np.shape(expected) and np.array_equal(array, expected)


def test_as_many_in_every_run_is_nothing_to_count() -> None:
    tally = CountTally()
    for count in (3, 5, 0):
        tally.update((1, count, 4), (1, count, 4))
    assert tally.result() is None


def test_what_differs_is_counted_along_its_axis() -> None:
    tally = CountTally()
    for a, b in ((3, 2), (5, 5), (0, 1), (4, 4)):
        tally.update((1, a, 4), (1, b, 4))
    assert tally.result() == Counts(3.0, 3.0, 0.5)


def test_another_rank_is_another_count() -> None:
    tally = CountTally()
    tally.update((2, 3), (2,))
    assert tally.result() == Counts(3.0, 1.0, 0.0)


def test_the_same_infinity_on_both_sides_is_no_error() -> None:
    a, b = np.array([1.0, -np.inf, np.nan, np.inf]), np.array([2.0, -np.inf, np.nan, -np.inf])
    left, right = without_common_infinities(a, b)
    assert np.array_equal(left, [1, 0, 0, np.inf]) and np.array_equal(right, [2, 0, 0, -np.inf])
    error = share(a[:3].astype(np.float32), b[:3].astype(np.float32))
    assert 0 < error < np.inf


def share(a: Any, b: Any) -> float:
    """The squared error of one output, a row per sample."""
    errors = OutputError(["y"], OutputLayout(), 1)
    errors.expect({"y": a})
    errors.update({"y": a}, {"y": b}, 0)
    return float(errors.shares()[0])


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (np.ones(3), np.ones(2), 1.0),
        (np.array([1, 2, 3]), np.array([1, 2, 4]), 1 / 3),
        (np.array([True, False]), np.array([True, True]), 1 / 2),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), 1 / 2),
        (np.zeros(0, np.int64), np.zeros(0, np.int64), 0.0),
    ],
    ids=["shapes", "integers", "decisions", "texts", "nothing"],
)
def test_any_two_results_have_a_distance(a: Any, b: Any, expected: float) -> None:
    assert share(a, b) == pytest.approx(expected)
