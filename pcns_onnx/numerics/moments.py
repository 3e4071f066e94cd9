"""Streaming first and second moments of a layer's inputs and outputs.

Blocks of rows are centred on their own means and merged with the parallel-variance formula

    S = S_a + S_b + (n_a n_b / n) (m_a - m_b)(m_a - m_b)ᵀ

(Chan, Golub and LeVeque 1979), so nothing cancels as XᵀX - n m mᵀ would. Sums are float64;
the matrix products inside one block are float32 beyond `WIDE` columns, where they dominate the
run time and a relative ridge well above their rounding is used anyway. Memory is one n*n
matrix whatever the number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.numerics.arrays import Array, namespace_of

WIDE = 1024
"""Columns beyond which the products inside a block are float32."""
_BLOCK = 4096
_STRIP = 512
"""Rows of an n*n matrix that are added to at once, so that no other of its size is needed."""


class Moments:
    """Centred second moments of rows x (n wide) with themselves and with targets y (k wide).

    Blocks are collected until they are as tall as the matrix is wide, so that the products and
    not the sums of n*n matrices set the pace; reading a result flushes what is left.
    """

    def __init__(self, n: int, k: int, xp: Any = np) -> None:
        self.xp = xp
        self._n = n
        self._counted = 0
        self._mean_x = xp.zeros(n, dtype=xp.float64)
        self._mean_y = xp.zeros(k, dtype=xp.float64)
        self._xx = xp.zeros((n, n), dtype=xp.float64)
        self._yx = xp.zeros((k, n), dtype=xp.float64)
        self._yy = xp.zeros(k, dtype=xp.float64)
        self._waiting: list[tuple[Array, Array | None]] = []
        self._waiting_rows = 0

    def update(self, x: Array, y: Array | None = None) -> None:
        """Add a block of rows x (R, n) and, if targets are wanted, y (R, k)."""
        if int(x.shape[0]) == 0:
            return
        self._waiting.append((x, y))
        self._waiting_rows += int(x.shape[0])
        if self._waiting_rows >= max(self._n, _BLOCK):
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        xp = self.xp
        x = xp.concat([x for x, _ in self._waiting], axis=0)
        targets = [y for _, y in self._waiting if y is not None]
        self._waiting, self._waiting_rows = [], 0
        rows = int(x.shape[0])
        dtype = xp.float32 if self._n > WIDE else xp.float64
        mean_x = xp.sum(x, axis=0, dtype=xp.float64) / rows
        x = xp.astype(x, dtype) - xp.astype(mean_x, dtype)
        xx = x.T @ x
        if not targets:
            self._absorb(rows, mean_x, self._mean_y, xx, 0.0, 0.0)
            return
        y = xp.concat(targets, axis=0)
        mean_y = xp.sum(y, axis=0, dtype=xp.float64) / rows
        y = xp.astype(y, dtype) - xp.astype(mean_y, dtype)
        yx, yy = xp.astype(y.T @ x, xp.float64), xp.sum(y * y, axis=0, dtype=xp.float64)
        self._absorb(rows, mean_x, mean_y, xx, yx, yy)

    def _absorb(self, rows: int, mean_x: Array, mean_y: Array, xx: Array, yx: Array | float, yy: Array | float) -> None:
        """The parallel-variance formula: add the moments of `rows` more rows."""
        total = self._counted + rows
        share = self._counted * rows / total
        step_x, step_y = mean_x - self._mean_x, mean_y - self._mean_y
        for start in range(0, self._n, _STRIP):
            strip = slice(start, min(start + _STRIP, self._n))
            self._xx[strip, :] += self.xp.astype(xx[strip, :], self.xp.float64)
            self._xx[strip, :] += share * (step_x[strip][:, None] * step_x[None, :])
        self._yx += yx + share * (step_y[:, None] * step_x[None, :])
        self._yy += yy + share * step_y * step_y
        self._mean_x = self._mean_x + step_x * (rows / total)
        self._mean_y = self._mean_y + step_y * (rows / total)
        self._counted = total

    def __getstate__(self) -> dict[str, Any]:
        """On the way to another process: no rows that wait, and no matrices of zeros."""
        self._flush()
        state = {name: value for name, value in vars(self).items() if name != "xp"}
        return state if self._counted else state | {"_xx": None, "_yx": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.xp = xp = namespace_of(self._mean_x)
        if self._xx is None:
            self._xx = xp.zeros((self._n, self._n), dtype=xp.float64)
            self._yx = xp.zeros((int(self._mean_y.shape[0]), self._n), dtype=xp.float64)

    def merge(self, other: Moments) -> None:
        """Add another accumulator's rows; associative up to rounding."""
        self._flush()
        other._flush()
        if other.rows:
            self._absorb(other.rows, other._mean_x, other._mean_y, other._xx, other._yx, other._yy)

    @classmethod
    def centred(cls, parts: Sequence[Moments]) -> Moments:
        """The rows of all parts, those of each less the means of its own."""
        first = parts[0]
        whole = cls(first._n, int(first._mean_y.shape[0]), first.xp)
        for part in parts:
            part._flush()
            whole._xx, whole._yx, whole._yy = whole._xx + part._xx, whole._yx + part._yx, whole._yy + part._yy
            whole._counted += part._counted
        return whole

    def only(self, targets: NDArray[np.int64]) -> Moments:
        """The same rows with some of the targets; shares the inputs' moments."""
        self._flush()
        if len(targets) == int(self._mean_y.shape[0]):
            return self
        part = Moments(0, 0, self.xp)
        index = self.xp.asarray(targets)
        part._n, part._counted, part._mean_x, part._xx = self._n, self._counted, self._mean_x, self._xx
        part._mean_y = self.xp.take(self._mean_y, index, axis=0)
        part._yx = self.xp.take(self._yx, index, axis=0)
        part._yy = self.xp.take(self._yy, index, axis=0)
        return part

    @property
    def rows(self) -> int:
        """Rows seen."""
        return self._counted + self._waiting_rows

    @property
    def mean_x(self) -> Array:
        """Mean of x, (n,)."""
        self._flush()
        return self._mean_x

    @property
    def mean_y(self) -> Array:
        """Mean of y, (k,)."""
        self._flush()
        return self._mean_y

    @property
    def covariance(self) -> Array:
        """Covariance of x, (n, n)."""
        self._flush()
        return self._xx / max(self._counted, 1)

    @property
    def cross(self) -> Array:
        """Covariance of y with x, (k, n)."""
        self._flush()
        return self._yx / max(self._counted, 1)

    @property
    def variance_y(self) -> Array:
        """Variance of each target, (k,)."""
        self._flush()
        return self._yy / max(self._counted, 1)


class Rows:
    """The rows themselves, where they are so few that they take less room than their moments."""

    def __init__(self) -> None:
        self._x: list[Array] = []
        self._y: list[Array] = []

    @property
    def blocks(self) -> list[tuple[Array, Array]]:
        """The rows and their targets, block by block."""
        return list(zip(self._x, self._y, strict=True))

    @property
    def columns(self) -> int:
        """Columns of the inputs; 0 as long as there is no row."""
        return int(self._x[0].shape[1]) if self._x else 0

    def update(self, x: Array, y: Array) -> None:
        """Add a block of rows x (R, n) and targets y (R, k)."""
        if int(x.shape[0]):
            xp = namespace_of(x)
            self._x.append(xp.astype(x, xp.float64))
            self._y.append(xp.astype(y, xp.float64))

    def merge(self, other: Rows) -> None:
        """Add another accumulator's rows."""
        self._x += other._x
        self._y += other._y

    @classmethod
    def centred(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, those of each less the means of its own."""
        whole = cls()
        for part in parts:
            if part.rows:
                xp = namespace_of(part.x)
                whole.update(part.x - xp.mean(part.x, axis=0), part.y - xp.mean(part.y, axis=0))
        return whole

    def only(self, targets: NDArray[np.int64]) -> Rows:
        """The same rows with some of the targets."""
        part = Rows()
        part._x = self._x
        part._y = [(xp := namespace_of(y)).take(y, xp.asarray(targets), axis=1) for y in self._y]
        return part

    @property
    def rows(self) -> int:
        """Rows seen."""
        return sum(int(x.shape[0]) for x in self._x)

    @property
    def mean_x(self) -> Array:
        """Mean of x, (n,)."""
        return namespace_of(*self._x).mean(self.x, axis=0)

    @property
    def mean_y(self) -> Array:
        """Mean of y, (k,)."""
        return namespace_of(*self._y).mean(self.y, axis=0)

    @property
    def x(self) -> Array:
        """All inputs, (R, n) float64."""
        return namespace_of(*self._x).concat(self._x, axis=0)

    @property
    def y(self) -> Array:
        """All targets, (R, k) float64."""
        return namespace_of(*self._y).concat(self._y, axis=0)

    @property
    def variance_y(self) -> Array:
        """Variance of each target, (k,)."""
        y = self.y
        xp = namespace_of(y)
        centred = y - xp.mean(y, axis=0)
        return xp.mean(centred * centred, axis=0)
