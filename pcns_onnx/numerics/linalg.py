"""Pure linear algebra on symmetric positive (semi-)definite matrices, for any array namespace.

All matrices are float64. A *relative* ridge r adds r * mean(diag) to the diagonal, so that it
means the same for activations of any scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg

from pcns_onnx.numerics.arrays import Array, namespace_of, to_numpy

_OVERSAMPLED, _ITERATIONS = 8, 4


def mean_diagonal(a: Array) -> float:
    """Mean of the diagonal of `a` (n, n); 1 for an all-zero matrix, so that it can be divided by."""
    xp = namespace_of(a)
    value = float(xp.sum(xp.linalg.diagonal(a))) / max(int(a.shape[0]), 1)
    return value if value > 0 else 1.0


def add_ridge(a: Array, ridge: float) -> Array:
    """`a` plus a relative ridge on its diagonal, as a new array."""
    xp = namespace_of(a)
    if xp is np:
        return _ridged(a, ridge, "C")
    return a + ridge * mean_diagonal(a) * xp.eye(int(a.shape[0]), dtype=a.dtype)


def _ridged(a: Array, ridge: float, order: Literal["C", "F"]) -> Array:
    """The same for NumPy, in the order of `order`, with no other matrix of that size."""
    ridged = np.array(a, order=order)
    np.einsum("ii->i", ridged)[:] += ridge * mean_diagonal(a)
    return ridged


def solve_spd(a: Array, b: Array, ridge: float = 0.0) -> Array:
    """X with (A + r s I) X = B for symmetric positive definite A (n, n), B (n, m), with a relative ridge r.

    Cholesky; where rounding has left the matrix indefinite, the pseudo-inverse on its positive part.
    """
    xp = namespace_of(a)
    if xp is not np:
        a = add_ridge(a, ridge) if ridge else a
        return xp.linalg.solve(a, b) if _is_definite(a) else _pseudo_solve(a, b)
    try:
        factor = scipy.linalg.cho_factor(_ridged(a, ridge, "F"), lower=True, overwrite_a=True, check_finite=False)
        return scipy.linalg.cho_solve(factor, b, check_finite=False)
    except np.linalg.LinAlgError:
        return _pseudo_solve(add_ridge(a, ridge), b)


def inverse_spd(a: Array) -> Array:
    """The inverse of a symmetric positive definite matrix (n, n)."""
    xp = namespace_of(a)
    if xp is not np:
        return xp.linalg.inv(a) if _is_definite(a) else _pseudo_solve(a, xp.eye(int(a.shape[0]), dtype=a.dtype))
    factor, info = scipy.linalg.lapack.dpotrf(a, lower=1, clean=1)
    if info == 0:
        half, info = scipy.linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)
    if info != 0:
        return _pseudo_solve(a, np.eye(len(a)))
    diagonal = half.diagonal().copy()
    full = np.add(half, half.T, order="C")
    np.fill_diagonal(full, diagonal)
    return full


def _is_definite(a: Array) -> bool:
    """Whether Cholesky goes through; its product is looked at, since CuPy does not raise where it fails."""
    xp = namespace_of(a)
    try:
        half = xp.linalg.cholesky(a)
    except np.linalg.LinAlgError:
        return False
    residual = half @ half.T - a
    positive = bool(xp.all(xp.linalg.diagonal(half) > 0))
    return positive and float(xp.sum(residual * residual)) <= 1e-12 * float(xp.sum(a * a))


def _pseudo_solve(a: Array, b: Array) -> Array:
    """The pseudo-inverse of the positive part of a symmetric `a`, times `b`."""
    xp = namespace_of(a)
    values, vectors = eigh_descending(a)
    floor = float(xp.max(values)) * int(a.shape[0]) * 2.3e-16
    inverse = xp.where(values > floor, 1.0 / xp.where(values > floor, values, floor), 0.0)
    return vectors @ (inverse[:, None] * (vectors.T @ b))


def subtract_product(a: Array, b: Array, c: Array) -> None:
    """a -= b @ c in place; for NumPy without a temporary of the size of `a` (C-ordered float64)."""
    if namespace_of(a) is np and a.flags.c_contiguous:
        scipy.linalg.blas.dgemm(-1.0, c.T, b.T, beta=1.0, c=a.T, overwrite_c=True)
    else:
        a -= b @ c


def eigh_descending(a: Array) -> tuple[Array, Array]:
    """Eigenvalues (n,) from large to small and eigenvectors (n, n) as columns."""
    xp = namespace_of(a)
    values, vectors = xp.linalg.eigh(a)
    return xp.flip(values, axis=0), xp.flip(vectors, axis=1)


def eigenvalues_descending(a: Array) -> Array:
    """Eigenvalues (n,) from large to small, in a third of the time that the vectors take, too."""
    xp = namespace_of(a)
    return xp.flip(xp.linalg.eigvalsh(a), axis=0)


def leading_eigenvectors(a: Array, count: int) -> tuple[Array, Array]:
    """The largest `count` eigenvalues (k,) of a positive semi-definite `a` (n, n), descending, and vectors (n, k).

    By subspace iteration from a fixed start where `a` is much larger (Halko, Martinsson and Tropp 2011): near the
    truth, and exactly orthonormal.
    """
    xp, size = namespace_of(a), int(a.shape[0])
    if size <= 4 * count:
        eigenvalues, vectors = eigh_descending(a)
        return eigenvalues[:count], vectors[:, :count]
    start = np.random.default_rng(0).standard_normal((size, count + _OVERSAMPLED))
    basis = xp.linalg.qr(xp.asarray(start, dtype=a.dtype))[0]
    for _ in range(_ITERATIONS):
        basis = xp.linalg.qr(a @ basis)[0]
    eigenvalues, rotation = eigh_descending(basis.T @ a @ basis)
    return eigenvalues[:count], basis @ rotation[:, :count]


def dimensions_for(values: Array, share: float) -> int:
    """How many of the eigenvalues (largest first) are needed for `share` of their sum."""
    host = np.clip(to_numpy(values), 0.0, None)
    total = host.sum()
    if total <= 0:
        return 1
    reached = np.cumsum(host) / total
    return min(int(np.searchsorted(reached, share - 1e-12)) + 1, len(host))


@dataclass(frozen=True)
class Pivots:
    """A pivoted Cholesky run: `order` of the pivots and `residual` trace before each, (n+1,)."""

    order: np.ndarray
    residual: np.ndarray


def pivoted_cholesky(a: Array) -> Pivots:
    """Greedy subset of a symmetric positive semi-definite matrix (n, n).

    Each step takes the largest remaining diagonal and projects it out: column-pivoted QR of
    any X with XᵀX = A, without X. Ties go to the smaller index.
    """
    xp = namespace_of(a)
    pivots = _lapack_pivots(a) if xp is np and len(a) else None
    if pivots is not None:
        return pivots
    n = int(a.shape[0])
    remainder = a + 0.0
    left = np.arange(n)
    order, residual = [], []
    for _ in range(n):
        diagonal = np.clip(to_numpy(xp.linalg.diagonal(remainder)), 0.0, None)[left]
        residual.append(float(diagonal.sum()))
        best = int(left[int(np.argmax(diagonal))])
        order.append(best)
        left = left[left != best]
        pivot = float(remainder[best, best])
        if pivot > 0:
            column = remainder[:, best]
            remainder = remainder - column[:, None] * (column[None, :] / pivot)
    return Pivots(np.asarray(order, dtype=np.int64), np.asarray([*residual, 0.0]))


def _lapack_pivots(a: np.ndarray) -> Pivots | None:
    """The same from LAPACK, or None where a tie went to the larger index: its swaps take the smaller one further back.

    It runs until no pivot is positive, as the plain loop does, and what is left then keeps its order. Pivots that
    differ by rounding alone are tied; those so small that all differ by no more are not looked at.
    """
    factor, order, rank, _ = scipy.linalg.lapack.dpstrf(a, tol=0.0, lower=0)
    order = order.astype(np.int64) - 1
    squares, left = np.square(factor), a.diagonal()[order]
    rounding = len(order) * np.finfo(np.float64).eps * left.max()
    for step in range(rank):
        if left[step] <= len(order) * rounding:
            break
        rivals = left[step:][order[step:] < order[step]]
        if rivals.size and rivals.max() >= left[step] - rounding:
            return None
        left[step + 1 :] -= squares[step, step + 1 :]
    explained = [float(squares[step, step:].sum()) for step in range(rank)]
    residual = np.cumsum([0.0] * (len(order) - rank + 1) + explained[::-1])[::-1]
    return Pivots(np.concatenate([order[:rank], np.sort(order[rank:])]), residual)


def majorize(
    x: Array, start: Array, retarget: Callable[[Array], Array], ridge: float, steps: int
) -> tuple[Array, list[float]]:
    """Minimise sum of f(x W) over W (n, m) for f with second derivative at most one.

    f enters through `retarget`: for predictions s (R, m) it returns s - f'(s), the targets
    whose plain least squares is the majorising step W <- argmin |x W - retarget(x W)|².
    Nesterov's momentum with restarts. `x` is (R, n). Returns W and the size of each step.
    """
    xp = namespace_of(x)
    gram = add_ridge(x.T @ x, ridge)
    factor = inverse_spd(gram)
    weight, ahead, pace, sizes = start, start, 1.0, list[float]()
    for _ in range(steps):
        predicted = x @ ahead
        step = factor @ (x.T @ (retarget(predicted) - predicted))
        following = ahead + step
        sizes.append(float(xp.sqrt(xp.sum(step * step))))
        against = float(xp.sum((ahead - following) * (following - weight)))
        pace_next = (1 + (1 + 4 * pace * pace) ** 0.5) / 2
        momentum = 0.0 if against > 0 else (pace - 1) / pace_next
        ahead = following + momentum * (following - weight)
        weight, pace = following, (1.0 if against > 0 else pace_next)
    return weight, sizes
