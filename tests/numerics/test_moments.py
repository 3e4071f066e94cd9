"""Streaming moments equal those of all rows at once, however the rows arrive and merge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.numerics.moments import WIDE, Moments, Rows
from pcns_onnx.numerics.ridge import Evidence, _Dual, _System, evidence_for, fit, fit_jointly, merged, settled

Array = Any
BACKENDS = pytest.mark.parametrize("xp", [np, array_api_strict], ids=["numpy", "strict"])
QUICK = settings(max_examples=25, deadline=None)
FIELDS: dict[str, Callable[[Moments], Array]] = {
    "mean_x": lambda m: m.mean_x,
    "mean_y": lambda m: m.mean_y,
    "covariance": lambda m: m.covariance,
    "cross": lambda m: m.cross,
    "variance_y": lambda m: m.variance_y,
}


def rows(seed: int, count: int, n: int = 4, k: int = 3, offset: float = 2.0) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((count, n)) + offset
    return x, x[:, :1] * 0.5 + generator.standard_normal((count, k)) - offset


def exact(x: Array, y: Array) -> dict[str, Array]:
    n = x.shape[1]
    joint = np.cov(np.hstack([x, y]).T, bias=True)
    return {
        "mean_x": x.mean(0),
        "mean_y": y.mean(0),
        "covariance": joint[:n, :n],
        "cross": joint[n:, :n],
        "variance_y": joint.diagonal()[n:],
    }


def gathered(xp: Any, x: Array, y: Array, cuts: list[int], merged: bool) -> Moments:
    """Moments of rows cut at `cuts`: one accumulator, or one per piece, merged in order."""
    total = Moments(x.shape[1], y.shape[1], xp)
    for a, b in zip(np.split(x, cuts), np.split(y, cuts), strict=True):
        part = Moments(x.shape[1], y.shape[1], xp) if merged else total
        part.update(xp.asarray(a), xp.asarray(b))
        if merged:
            total.merge(part)
        else:
            _ = total.mean_x  # reading flushes, so that every piece becomes a block of its own
    return total


def assert_equal(found: Moments, expected: dict[str, Array], tolerance: float) -> None:
    for name, read in FIELDS.items():
        value = to_numpy(read(found))
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, expected[name], rtol=tolerance, atol=tolerance, err_msg=name)


@BACKENDS
@pytest.mark.parametrize("merged", [False, True], ids=["blocks", "merged"])
@given(seed=st.integers(0, 999), count=st.integers(2, 60), cuts=st.lists(st.integers(0, 60), max_size=5))
@QUICK
def test_blocks_of_any_size_give_the_moments_of_all_rows(
    xp: Any, merged: bool, seed: int, count: int, cuts: list[int]
) -> None:
    x, y = rows(seed, count)
    found = gathered(xp, x, y, sorted(min(c, count) for c in cuts), merged)
    assert found.rows == count
    assert_equal(found, exact(x, y), 1e-12)


@BACKENDS
def test_merging_is_associative(xp: Any) -> None:
    pieces = [rows(seed, count, offset=10.0 * seed) for seed, count in ((1, 5), (2, 70), (3, 1))]

    def part(index: int) -> Moments:
        moments = Moments(4, 3, xp)
        moments.update(*(xp.asarray(a) for a in pieces[index]))
        return moments

    left, right, tail = part(0), part(0), part(1)
    left.merge(part(1))
    left.merge(part(2))
    tail.merge(part(2))
    right.merge(tail)
    assert left.rows == right.rows == 76
    assert_equal(left, {name: to_numpy(read(right)) for name, read in FIELDS.items()}, 1e-12)


def test_merging_leaves_the_other_as_it_was() -> None:
    x, y = rows(4, 40)
    total, other = gathered(np, x[:15], y[:15], [], False), gathered(np, x[15:], y[15:], [], False)
    total.merge(other)
    total.update(x, y)
    assert other.rows == 25
    assert_equal(other, exact(x[15:], y[15:]), 1e-12)


@pytest.mark.parametrize("empty_first", [False, True])
def test_nothing_merged_with_something_is_that(empty_first: bool) -> None:
    x, y = rows(5, 20)
    full, empty = gathered(np, x, y, [], False), Moments(4, 3)
    empty.update(x[:0], y[:0])
    pair = (empty, full) if empty_first else (full, empty)
    pair[0].merge(pair[1])
    assert pair[0].rows == 20
    assert_equal(pair[0], exact(x, y), 1e-12)


def test_nothing_cancels_far_from_the_origin() -> None:
    x, y = rows(6, 6000, offset=1e7)
    found = gathered(np, x, y, [1000, 2500], True)
    expected = exact(x - 1e7, y + 1e7)
    np.testing.assert_allclose(found.covariance, expected["covariance"], atol=1e-8)
    np.testing.assert_allclose(found.cross, expected["cross"], atol=1e-8)
    naive = x.T @ x / len(x) - np.outer(x.mean(0), x.mean(0))
    assert np.abs(naive - expected["covariance"]).max() > 1e-4


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_in_low_precision_are_summed_in_float64(dtype: type) -> None:
    x, y = (a.astype(dtype) for a in rows(7, 5000, offset=100.0))
    assert_equal(gathered(np, x, y, [900], False), exact(x.astype(float), y.astype(float)), 1e-12)


def test_wide_inputs_are_multiplied_in_float32_and_still_agree() -> None:
    x, y = rows(8, 300, n=WIDE + 1, offset=50.0)
    found = gathered(np, x, y, [100], False)
    expected = exact(x, y)
    np.testing.assert_allclose(found.covariance, expected["covariance"], atol=1e-5)
    np.testing.assert_allclose(found.cross, expected["cross"], atol=1e-5)
    np.testing.assert_allclose(found.mean_x, expected["mean_x"], rtol=1e-12)


@BACKENDS
def test_some_of_the_targets_are_their_own_columns(xp: Any) -> None:
    x, y = rows(9, 30)
    chosen = np.array([0, 2], dtype=np.int64)
    part = gathered(xp, x, y, [7], False).only(chosen)
    assert part.rows == 30
    assert_equal(part, exact(x, y[:, chosen]), 1e-12)


@BACKENDS
def test_rows_without_targets_have_the_same_covariance(xp: Any) -> None:
    x, y = rows(10, 5000)
    found = Moments(4, 0, xp)
    for piece in np.split(x, [10, 4200]):
        found.update(xp.asarray(piece))
    assert found.rows == 5000
    np.testing.assert_allclose(to_numpy(found.covariance), exact(x, y)["covariance"], rtol=1e-12)


def test_many_small_updates_are_held_back_and_counted() -> None:
    x, y = rows(11, 9000)
    found = Moments(4, 3)
    for start in range(0, 9000, 90):
        found.update(x[start : start + 90], y[start : start + 90])
        assert found.rows == start + 90
    assert_equal(found, exact(x, y), 1e-11)


@pytest.mark.parametrize("ridge", [1e-4, 1e-1, 10.0])
def test_few_rows_give_the_same_fit_as_their_moments(rng: np.random.Generator, ridge: float) -> None:
    """The dual system is another road to the same weights, and misses the same share."""
    x, y, prior = rng.standard_normal((30, 80)), rng.standard_normal((30, 5)), rng.standard_normal((5, 80))
    moments, kept = Moments(80, 5), Rows()
    for block in (slice(0, 13), slice(13, 30)):
        moments.update(x[block], y[block])
        kept.update(x[block], y[block])
    primal, dual = _System(moments, prior), _Dual(kept, prior)
    np.testing.assert_allclose(dual.solve(ridge)[0], primal.solve(ridge)[0], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(dual.solve(ridge)[1], primal.solve(ridge)[1], rtol=1e-6, atol=1e-9)
    assert dual.error(*primal.solve(ridge)) == pytest.approx(primal.error(*primal.solve(ridge)), rel=1e-5)


def test_rows_are_kept_where_they_are_fewer_than_half_the_columns() -> None:
    assert isinstance(evidence_for(39, 80, 3, np).train, Rows)
    assert isinstance(evidence_for(40, 80, 3, np).train, Moments)


@BACKENDS
def test_rows_that_become_more_than_expected_go_on_as_moments(xp: Any) -> None:
    """The estimate comes from the first batch, which may be a poor one: the solve stays as small as the columns."""
    x, y = rows(12, 200, n=20, k=2)
    known, truth = evidence_for(5, 20, 2, xp), Evidence(Moments(20, 2, xp), Moments(20, 2, xp))
    for start in range(0, 200, 8):
        for part in (known, truth):
            part.valid.update(xp.asarray(x[start : start + 2]), xp.asarray(y[start : start + 2]))
            part.train.update(xp.asarray(x[start + 2 : start + 8]), xp.asarray(y[start + 2 : start + 8]))
        assert isinstance(known.train, Rows if start <= 8 else Moments)
        known = settled(known)
    assert isinstance(known.train, Moments)
    assert (known.train.rows, known.valid.rows) == (150, 50)
    solved, best = (fit(part, xp.zeros((2, 20))) for part in (known, truth))
    assert solved.ridge == best.ridge
    np.testing.assert_allclose(to_numpy(solved.matrix), to_numpy(best.matrix), atol=1e-9)


@pytest.mark.parametrize("others", [0, 1, 100])
@pytest.mark.parametrize("kept", [0, 1, 100])
def test_evidence_of_two_workers_is_merged_whatever_each_expected(kept: int, others: int) -> None:
    x, y = rows(13, 60, n=6, k=2)
    own, other = evidence_for(kept, 6, 2, np), evidence_for(others, 6, 2, np)
    for part, block in ((own, slice(0, 24)), (other, slice(24, 60))):
        part.train.update(x[block], y[block])
        part.valid.update(x[block][:3], y[block][:3])
    whole = merged(own, other)
    assert isinstance(whole.train, Moments)
    assert_equal(whole.train, exact(x, y), 1e-11)
    assert whole.valid.rows == 6
    empty = evidence_for(others, 6, 2, np)
    assert merged(whole, empty) is whole
    assert merged(empty, whole) is whole


def test_one_layer_for_sets_of_which_some_are_rows_and_some_moments() -> None:
    x, y = rows(14, 80, n=6, k=2)
    mixed, alike = ([evidence_for(count, 6, 2, np) for count in counts] for counts in ((100, 1), (100, 100)))
    for sets in (mixed, alike):
        for part, block in zip(sets, (slice(0, 72), slice(72, 80)), strict=True):
            part.train.update(x[block][1:], y[block][1:])
            part.valid.update(x[block][:1], y[block][:1])
    prior = np.zeros((2, 6))
    for solved, best in zip(fit_jointly(mixed, prior, 1e-4), fit_jointly(alike, prior, 1e-4), strict=True):
        np.testing.assert_allclose(solved.matrix, best.matrix, atol=1e-9)
        np.testing.assert_allclose(solved.bias, best.bias, atol=1e-9)
