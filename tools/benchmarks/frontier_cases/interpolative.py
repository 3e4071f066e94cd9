"""Interpolative decomposition of activations by column-pivoted QR.

    Z ~ Z[:, kept] T,   Z P = Q [R11 R12; 0 R22],   T P = [I, R11^-1 R12]

with Z (rows x channels) what a layer puts out. The rows come in batches: only R of a running QR is kept, and its
pivots are those of Z. Source: Chee, Flynn, Damle, De Sa, "Model Preserving Compression for Neural Networks"
(2022), written from the paper: the reader's weights become W T^t, nothing else is re-fitted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import qr, solve_triangular

Floats = npt.NDArray[np.float64]


class Decomposition(NamedTuple):
    """Pivoted QR of a layer's outputs: `r` (channels x channels) upper triangular, `pivots` (channels,)."""

    r: Floats
    pivots: npt.NDArray[np.intp]

    @property
    def accuracy(self) -> Floats:
        """Per channel (in the original order), |R_kk| / |R_11| at which it was taken: the error of stopping before."""
        diagonal = np.abs(np.diag(self.r))
        scores = np.empty_like(diagonal)
        # The diagonal falls; rounding must not let a later pivot overtake an earlier one.
        scores[self.pivots] = np.minimum.accumulate(diagonal) / max(diagonal[0], np.finfo(float).tiny)
        return scores

    def mixing(self, count: int) -> tuple[npt.NDArray[np.intp], Floats]:
        """The first `count` pivots, ascending, and T (count x channels)."""
        lead = self.r[:count, :count]
        alive = np.abs(np.diag(lead)) > np.finfo(float).eps * abs(self.r[0, 0]) * len(self.r)
        rank = int(alive.sum())
        found = np.zeros((count, len(self.pivots)))
        found[:rank, self.pivots[count:]] = solve_triangular(lead[:rank, :rank], self.r[:rank, count:])
        found[np.arange(count), self.pivots[:count]] = 1
        order = np.argsort(self.pivots[:count])
        return self.pivots[:count][order], found[order]


def decompose(batches: Iterable[npt.NDArray[np.floating]]) -> Decomposition:
    """Decompose Z, given in batches of rows (each rows x channels)."""
    triangle: Floats | None = None
    for batch in batches:
        rows = batch.astype(np.float64)
        stacked = rows if triangle is None else np.vstack([triangle, rows])
        triangle = np.asarray(np.linalg.qr(stacked, mode="r"), np.float64)
    if triangle is None:
        raise ValueError("there are no samples")
    r, pivots = qr(triangle, mode="r", pivoting=True)
    return Decomposition(np.asarray(r[: len(pivots)], np.float64), np.asarray(pivots, np.intp))
