"""Exact linear dependence between variables, from their covariance C (N, N).

In the scale S = D^-½ C D^-½ with D = diag C a variable is worth the same whatever its size, and

* i and j are *copies*, up to a factor and a constant, where S_ij² = 1;
* what pivoted Cholesky of S leaves without a remainder follows from the pivots (LAPACK's dpstrf).

There is no ridge: it would hide what is exact and weak behind what is not and strong. "Exact" means
up to the rounding of float32 values: `TOLERANCE` is the share of a variable's variance that may be
left. Covariances whose own products were float32 are coarser (`TOLERANCE_WIDE`).
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from pcns_onnx.numerics.moments import WIDE

TOLERANCE, TOLERANCE_WIDE = 1e-8, 3e-5


def tolerance_for(columns: int) -> float:
    """The share of a variance that counts as nothing, in moments of so many columns."""
    return TOLERANCE if columns <= WIDE else TOLERANCE_WIDE


def correlation(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """S (N, N), with rows and columns of zeros where a variable does not vary."""
    size = np.sqrt(np.maximum(covariance.diagonal(), 0.0))
    inverse = np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)
    return np.asarray(covariance * inverse[:, None] * inverse)


def copies(covariance: NDArray[np.float64], tolerance: float = TOLERANCE) -> NDArray[np.int64]:
    """(N,): the variable that each one is a copy of, or itself: of several, the largest and then the first."""
    alike = correlation(covariance) ** 2 >= 1.0 - tolerance
    np.fill_diagonal(alike, False)
    original = np.arange(len(covariance), dtype=np.int64)
    variance, open_ = covariance.diagonal(), np.asarray(alike.any(axis=1))
    for first in np.flatnonzero(open_):
        if open_[first]:
            together = np.flatnonzero(alike[first] & open_)
            together = np.concatenate([[first], together])
            largest = together[variance[together] >= (1.0 - 1e-5) * variance[together].max()]
            original[together] = largest.min()
            open_[together] = False
    return original


def repeats(covariance: NDArray[np.float64], tolerance: float = TOLERANCE) -> NDArray[np.bool_]:
    """(N,): whether a variable does the same as an earlier one, size and sign included."""
    variance = covariance.diagonal()
    same = correlation(covariance) >= 1.0 - tolerance / 2
    same &= np.abs(variance[:, None] - variance) <= 1e-5 * variance
    return np.asarray(np.tril(same, -1).any(axis=1))


def with_copies_equal(covariance: NDArray[np.float64], tolerance: float) -> NDArray[np.float64]:
    """The covariance with copies made copies to the last bit."""
    original = copies(covariance, tolerance)
    if (original == np.arange(len(original))).all():
        return covariance
    variance = np.maximum(covariance.diagonal(), 0.0)
    factor = np.sqrt(variance / np.where(variance[original] > 0, variance[original], 1.0))
    sign = np.sign(covariance[np.arange(len(original)), original])
    factor = np.where(original == np.arange(len(original)), 1.0, factor * sign)
    return np.asarray(covariance[np.ix_(original, original)] * factor[:, None] * factor)


def independent(covariance: NDArray[np.float64], tolerance: float = TOLERANCE) -> NDArray[np.int64]:
    """Variables, ascending, from which all others follow: the pivots of S that leave more than `tolerance`."""
    if not len(covariance):
        return np.zeros(0, dtype=np.int64)
    _, order, rank, _ = scipy.linalg.lapack.dpstrf(correlation(covariance), tol=tolerance, lower=0)
    return np.sort(order[:rank].astype(np.int64) - 1)


def copied(
    covariance: NDArray[np.float64], keep: NDArray[np.int64], tolerance: float = TOLERANCE
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Variables that are copies of some of `keep` or are these: (which, place among `keep`, factor), (L,) each.

    Of several the one nearest in size is taken, and of those the first.
    """
    kept = covariance[:, keep]
    variance = np.maximum(covariance.diagonal(), 0.0)
    alike = correlation(covariance)[:, keep] ** 2 >= 1.0 - tolerance
    alike[keep] = np.eye(len(keep), dtype=np.bool_)
    which = np.flatnonzero(alike.any(axis=1))
    factor = kept[which] / np.where(variance[keep] > 0, variance[keep], 1.0)
    apart = np.where(alike[which], np.round(np.abs(factor - 1.0), 4), np.inf)
    place = np.argmin(apart, axis=1).astype(np.int64)
    own = np.searchsorted(keep, which)
    is_kept = np.isin(which, keep)
    place[is_kept] = own[is_kept]
    factor = factor[np.arange(len(which)), place]
    factor[is_kept] = 1.0
    return which, place, factor
