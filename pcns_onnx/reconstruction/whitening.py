"""Coordinates of a matrix in which what it reads is nearly white, so that descent moves all directions alike.

Inputs x of a layer vary a hundred times more in some directions than in others, and a step that is right for the first
is far too short for the rest. With E[x x'] = U L U', of the leading directions U (n, k),

    W~ = W P,   P = I + U (D - I) U',   D = (L / f)^(1/2),   so that  W x = W~ (P^-1 x),  P^-1 = I + U (D^-1 - I) U'

where f is the larger of `FLOOR` of the first eigenvalue and the last of the k: what varies less is left as it is. Adam
moves W~. This is what the input's half of K-FAC does (Martens and Grosse 2015), as a change of coordinates (Desjardins
et al. 2015). On the nets of docs/performance.md it takes a quarter of the steps; 32 directions are as good as all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pcns_onnx.numerics.arrays import Array, namespace_of
from pcns_onnx.numerics.linalg import leading_eigenvectors

DIRECTIONS = 32
"""So many leading directions are made alike, at most."""
FLOOR = 0.01
"""Share of the largest direction's variance from which on a direction is left as it is."""
_ROWS_PER_COLUMN = 8
"""Rows that directions are found from, per column."""


@dataclass(frozen=True)
class Whitening:
    """U (n, k) float32 and what W gains along each of its directions, D - I (k,)."""

    directions: Array
    gains: Array

    def into(self, matrix: Array) -> Array:
        """W~ = W P (m, n) of a matrix W (m, n)."""
        return matrix + ((matrix @ self.directions) * self.gains) @ self.directions.T

    def back(self, matrix: Array) -> Array:
        """W = W~ P^-1."""
        return matrix + ((matrix @ self.directions) * (1 / (1 + self.gains) - 1)) @ self.directions.T


@dataclass(frozen=True)
class Coordinates:
    """Those of a list of arrays, None for one that moves as it is."""

    by_array: Sequence[Whitening | None]

    def into(self, arrays: Sequence[Array]) -> list[Array]:
        """What the descent moves."""
        return [a if own is None else own.into(a) for own, a in zip(self.by_array, arrays, strict=True)]

    def back(self, moved: Sequence[Array]) -> list[Array]:
        """The arrays themselves."""
        return [a if own is None else own.back(a) for own, a in zip(self.by_array, moved, strict=True)]

    def slopes(self, slopes: Sequence[Array]) -> list[Array]:
        """The slopes by what is moved, of those by the arrays: P^-1 is symmetric."""
        return self.back(slopes)


def whitening(blocks: Iterable[Array]) -> Whitening:
    """The coordinates for what reads such rows; `blocks` (rows, n) float32 are taken until there are enough."""
    total: Array | None = None
    count = 0
    for rows in blocks:
        xp = namespace_of(rows)
        own = xp.astype(rows.T @ rows, xp.float64)
        total = own if total is None else total + own
        count += int(rows.shape[0])
        if count >= _ROWS_PER_COLUMN * int(rows.shape[1]):
            break
    assert total is not None, "asked for without a row"
    xp = namespace_of(total)
    variances, vectors = leading_eigenvectors(total, min(DIRECTIONS, int(total.shape[0])))
    floor = max(FLOOR * float(variances[0]), float(variances[-1]), 1e-30)
    gains = xp.sqrt(xp.clip(variances / floor, min=1.0)) - 1.0
    return Whitening(xp.astype(vectors, xp.float32), xp.astype(gains, xp.float32))
