"""Linear algebra on symmetric matrices: against NumPy and SciPy, under NumPy and array-api-strict."""

from __future__ import annotations

from typing import Any

import array_api_strict
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.numerics.linalg import (
    _lapack_pivots,
    add_ridge,
    dimensions_for,
    eigh_descending,
    inverse_spd,
    leading_eigenvectors,
    majorize,
    mean_diagonal,
    pivoted_cholesky,
    solve_spd,
    subtract_product,
)

Array = Any
BACKENDS = pytest.mark.parametrize("xp", [np, array_api_strict], ids=["numpy", "strict"])
QUICK = settings(max_examples=25, deadline=None)


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def gram(seed: int, n: int, rank: int | None = None) -> Array:
    """A symmetric positive semi-definite matrix (n, n) of this rank; definite if rank is None."""
    half = normal(seed, n, 3 * n if rank is None else rank)
    return half @ half.T


# -- ridge -----------------------------------------------------------------------------------


@BACKENDS
def test_an_all_zero_matrix_has_a_mean_diagonal_that_can_be_divided_by(xp: Any) -> None:
    assert mean_diagonal(xp.zeros((3, 3), dtype=xp.float64)) == 1.0
    assert mean_diagonal(xp.asarray(np.diag([1.0, 2.0, 6.0]))) == 3.0


@BACKENDS
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_relative_ridge_means_the_same_at_any_scale(xp: Any, scale: float) -> None:
    a = gram(0, 5)
    ridged = to_numpy(add_ridge(xp.asarray(a * scale), 0.1))
    np.testing.assert_allclose(ridged, scale * (a + 0.1 * np.trace(a) / 5 * np.eye(5)), rtol=1e-13)


def test_the_ridge_goes_on_a_copy() -> None:
    a = gram(0, 4)
    before = a.copy()
    add_ridge(a, 1.0)
    np.testing.assert_array_equal(a, before)


# -- solving ---------------------------------------------------------------------------------


@BACKENDS
@given(seed=st.integers(0, 999), n=st.integers(1, 12), m=st.integers(1, 4))
@QUICK
def test_definite_systems_are_solved(xp: Any, seed: int, n: int, m: int) -> None:
    a, b = gram(seed, n), normal(seed + 1, n, m)
    solved = to_numpy(solve_spd(xp.asarray(a), xp.asarray(b)))
    np.testing.assert_allclose(a @ solved, b, atol=1e-8 * np.abs(b).max())
    np.testing.assert_allclose(to_numpy(inverse_spd(xp.asarray(a))) @ a, np.eye(n), atol=1e-8)


@BACKENDS
@pytest.mark.parametrize("definite", [True, False])
def test_a_ridge_may_be_named_instead_of_added(xp: Any, definite: bool) -> None:
    a = gram(3, 6) if definite else gram(3, 6) - 2.0 * np.eye(6) * np.trace(gram(3, 6)) / 6
    b, before = normal(4, 6, 2), a.copy()
    np.testing.assert_array_equal(
        to_numpy(solve_spd(xp.asarray(a), xp.asarray(b), 0.1)),
        to_numpy(solve_spd(add_ridge(xp.asarray(a), 0.1), xp.asarray(b))),
    )
    np.testing.assert_array_equal(a, before)


@BACKENDS
def test_where_rounding_left_a_negative_eigenvalue_the_positive_part_is_inverted(xp: Any) -> None:
    vectors = np.linalg.qr(normal(3, 6, 6))[0]
    values = np.array([3.0, 2.0, 1.0, 0.5, 0.0, -1e-17])
    a, b = (vectors * values) @ vectors.T, normal(4, 6, 2)
    a = (a + a.T) / 2 - 1e-15 * np.eye(6)
    solved = to_numpy(solve_spd(xp.asarray(a), xp.asarray(b)))
    expected = (vectors[:, :4] / values[:4]) @ vectors[:, :4].T @ b
    np.testing.assert_allclose(solved, expected, rtol=1e-9)


@BACKENDS
def test_an_indefinite_matrix_has_a_pseudo_inverse(xp: Any) -> None:
    a = gram(5, 6, rank=3) - 1e-13 * np.eye(6)
    np.testing.assert_allclose(to_numpy(inverse_spd(xp.asarray(a))), np.linalg.pinv(a, rcond=1e-9), rtol=1e-7)


def test_the_inverse_is_symmetric_to_the_bit() -> None:
    inverse = inverse_spd(gram(6, 40))
    np.testing.assert_array_equal(inverse, inverse.T)


@BACKENDS
@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_is_subtracted_in_place(xp: Any, transposed: bool) -> None:
    a, b, c = normal(7, 5, 5), normal(8, 5, 2), normal(9, 2, 5)
    expected = (a.T if transposed else a) - b @ c
    target = xp.asarray(a.copy())
    target = target.T if transposed else target
    subtract_product(target, xp.asarray(b), xp.asarray(c))
    np.testing.assert_allclose(to_numpy(target), expected, atol=1e-14)


# -- eigenvalues -----------------------------------------------------------------------------


@BACKENDS
def test_eigenvalues_fall_and_rebuild_the_matrix(xp: Any) -> None:
    a = gram(10, 8)
    values, vectors = (to_numpy(v) for v in eigh_descending(xp.asarray(a)))
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose((vectors * values) @ vectors.T, a, atol=1e-10)


@given(values=st.lists(st.floats(0, 1e6), min_size=1, max_size=20), share=st.floats(0.01, 1))
@QUICK
def test_the_number_of_dimensions_is_the_least_that_reaches_the_share(values: list[float], share: float) -> None:
    falling = np.sort(np.asarray(values))[::-1]
    needed = dimensions_for(falling, share)
    assert 1 <= needed <= len(falling)
    wanted = share * falling.sum()
    slack = 1e-9 * falling.sum()
    assert falling[:needed].sum() >= wanted - slack
    assert needed == 1 or falling[: needed - 1].sum() < wanted + slack


@pytest.mark.parametrize(
    ("values", "share", "needed"),
    [([0.0, 0.0], 0.9, 1), ([5.0, -1e-12], 1.0, 1), ([1.0, 1.0, 1.0, 1.0], 0.5, 2), ([3.0, 2.0, 1.0], 1.0, 3)],
)
def test_dimensions_at_the_edges(values: list[float], share: float, needed: int) -> None:
    assert dimensions_for(np.asarray(values), share) == needed


# -- pivoted Cholesky ------------------------------------------------------------------------


def schur_traces(a: Array, order: Array) -> list[float]:
    """Trace of what is left of `a` when the first k of `order` are projected out, k = 0..n."""
    traces = []
    for k in range(len(order) + 1):
        kept = order[:k]
        explained = a[:, kept] @ np.linalg.pinv(a[np.ix_(kept, kept)]) @ a[kept] if k else 0.0
        traces.append(float(np.trace(a - explained)))
    return traces


@BACKENDS
@given(seed=st.integers(0, 999), n=st.integers(1, 12))
@QUICK
def test_pivots_are_those_of_column_pivoted_qr(xp: Any, seed: int, n: int) -> None:
    x = normal(seed, n + 20, n) * np.exp(normal(seed + 1, n))
    _, triangle, order = scipy.linalg.qr(x, mode="economic", pivoting=True)
    pivots = pivoted_cholesky(xp.asarray(x.T @ x))
    assert pivots.order.tolist() == order.tolist()
    rest = [float((triangle[k:] ** 2).sum()) for k in range(n + 1)]
    np.testing.assert_allclose(pivots.residual, rest, atol=1e-9 * rest[0])


@BACKENDS
def test_the_residual_is_the_trace_that_is_left(xp: Any) -> None:
    a = gram(11, 9, rank=5)
    pivots = pivoted_cholesky(xp.asarray(a))
    np.testing.assert_allclose(pivots.residual, schur_traces(a, pivots.order), atol=1e-9 * np.trace(a))
    assert pivots.residual[5] < 1e-10 * pivots.residual[0]
    assert sorted(pivots.order) == list(range(9))


@BACKENDS
def test_ties_go_to_the_smaller_index(xp: Any) -> None:
    assert pivoted_cholesky(xp.eye(5, dtype=xp.float64)).order.tolist() == [0, 1, 2, 3, 4]


@given(seed=st.integers(0, 999), copies=st.integers(1, 3), n=st.integers(1, 8), rows=st.integers(3, 40))
@QUICK
def test_pivots_of_lapack_are_those_of_the_plain_loop(seed: int, copies: int, n: int, rows: int) -> None:
    """With duplicated columns, fewer rows than columns, and both: ties at every step, and nothing left at last."""
    source = np.random.default_rng(seed).permutation(n * copies) // copies
    x = normal(seed, rows, n)[:, source]
    a = x.T @ x
    plain, lapack = pivoted_cholesky(array_api_strict.asarray(a)), pivoted_cholesky(a)
    rank = min(n, rows)
    # Copies of a column may differ in their products' last place, and so may what is left of them.
    assert source[lapack.order[:rank]].tolist() == source[plain.order[:rank]].tolist()
    assert sorted(lapack.order) == sorted(plain.order)
    np.testing.assert_allclose(lapack.residual, plain.residual, atol=1e-12 * plain.residual[0])


@given(diagonal=st.lists(st.sampled_from([3.0, 2.0, 1.0, 1e-20, 1e-30, 0.0, -1e-17]), min_size=1, max_size=9))
@QUICK
def test_no_pivot_is_too_small_and_what_is_none_keeps_its_order(diagonal: list[float]) -> None:
    """Exact to the last place on a diagonal: LAPACK's own tolerance would end the run early."""
    plain, lapack = (pivoted_cholesky(xp.asarray(np.diag(diagonal))) for xp in (array_api_strict, np))
    large = sum(value > 1e-9 for value in diagonal)
    assert lapack.order[:large].tolist() == plain.order[:large].tolist()
    assert np.asarray(diagonal)[lapack.order].clip(0).tolist() == sorted(np.clip(diagonal, 0, None), reverse=True)
    none = [index for index, value in enumerate(diagonal) if value <= 0]
    assert lapack.order[len(diagonal) - len(none) :].tolist() == none
    np.testing.assert_allclose(lapack.residual, plain.residual, rtol=1e-15)


def test_only_ties_keep_numpy_from_lapack() -> None:
    assert _lapack_pivots(gram(17, 60)) is not None
    assert _lapack_pivots(gram(18, 60, rank=20)) is not None
    assert _lapack_pivots(np.diag([1.0, 1.0, 2.0])) is None  # its first swap puts 0 behind 1


# -- majorisation ----------------------------------------------------------------------------


def one_sided(x: Array, targets: Array, weight: Array) -> float:
    """What a ReLU's pre-activations miss: match positive targets, stay below zero elsewhere."""
    s = x @ weight
    miss = np.where(targets > 0, targets - s, np.minimum(-s, 0.0))
    return float((miss * miss).sum())


@BACKENDS
def test_majorisation_finds_the_minimum_of_a_one_sided_problem(xp: Any) -> None:
    x = normal(12, 80, 4)
    targets = np.maximum(x @ normal(13, 4, 2) + 0.3 * normal(16, 80, 2), 0.0)
    start = np.linalg.lstsq(x, targets, rcond=None)[0]
    inside = xp.asarray(targets)

    def retarget(s: Array) -> Array:
        return xp.where(inside > 0, inside, xp.clip(s, None, 0.0))

    found, sizes = majorize(xp.asarray(x), xp.asarray(start), retarget, 1e-9, 300)

    def flat(w: Array) -> float:
        return one_sided(x, targets, w.reshape(4, 2))

    best = scipy.optimize.minimize(flat, start.reshape(-1), tol=1e-12).fun
    assert one_sided(x, targets, to_numpy(found)) == pytest.approx(best, rel=1e-6)
    assert one_sided(x, targets, start) > 1.05 * best
    assert len(sizes) == 300 and sizes[-1] < 1e-6 * sizes[0]


@BACKENDS
def test_one_step_of_majorisation_is_least_squares_when_the_targets_stand_still(xp: Any) -> None:
    x, targets = normal(14, 50, 5), normal(15, 50, 3)
    start = xp.zeros((5, 3), dtype=xp.float64)
    found, _ = majorize(xp.asarray(x), start, lambda s: xp.asarray(targets), 1e-12, 1)
    np.testing.assert_allclose(to_numpy(found), np.linalg.lstsq(x, targets, rcond=None)[0], rtol=1e-8)


@BACKENDS
@pytest.mark.parametrize("size", [6, 90])
def test_leading_eigenvectors_are_those_of_the_whole(xp: Array, size: int) -> None:
    basis = np.linalg.qr(normal(3, size, size))[0]
    matrix = (basis * np.geomspace(1.0, 1e-6, size)) @ basis.T
    eigenvalues, vectors = (to_numpy(side) for side in leading_eigenvectors(xp.asarray(matrix), 5))
    np.testing.assert_allclose(eigenvalues, np.linalg.eigvalsh(matrix)[::-1][:5], rtol=1e-2)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(5), atol=1e-10)
    np.testing.assert_allclose(np.sum((matrix @ vectors) * vectors, axis=0), eigenvalues, rtol=1e-8)
