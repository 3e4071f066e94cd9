"""How a product of two computed tensors (Q Kᵀ in attention) uses the channels that it sums over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.columns import columns_by_class
from pcns_onnx.calibration.ranking import ReaderStats
from pcns_onnx.dependency.groups import Group, Product
from pcns_onnx.numerics.arrays import Array, namespace_of
from pcns_onnx.numerics.linalg import eigh_descending
from pcns_onnx.numerics.moments import Moments
from pcns_onnx.runtime.samples import Positions


@dataclass(frozen=True)
class PositionChoice:
    """The positions that are looked at in batch number `index`."""

    positions: Positions
    index: int

    def draw(self, available: int) -> NDArray[np.int64] | None:
        """Out of as many of every sample; None for all."""
        return self.positions.draw(self.index, available)

    def live(self, places: NDArray[np.int64], samples: int) -> NDArray[np.int64]:
        """Out of the places that count, of so many samples."""
        return self.positions.choose(self.index, places, self.positions.of_live * samples)


class ProductObserver:
    """How a product of two computed tensors sums over a group's channels: sum_j q_j k_j in every head.

    It loses E|q_j k_j|² when channel j goes: the same as a layer that reads q with V = C_k^½, C_k
    being the covariance of k (its mean adds the same to all scores of a row, which Softmax ignores).
    A head of one side that several of the other share is looked at once.
    """

    def __init__(self, product: Product, xp: Any) -> None:
        channels = len(product.labels)
        self._product = product
        self._sides = tuple([Moments(channels, 0, xp) for _ in range(int(own.max()) + 1)] for own in product.heads)

    def update(
        self,
        q: Array,
        k: Array,
        choice: PositionChoice,
        live: Sequence[NDArray[np.bool_] | None] = (None, None),
    ) -> None:
        """Take a batch of both tensors in, at some positions of each; `live`: which of their places count."""
        for side, (whole, own) in enumerate(zip((q, k), live, strict=True)):
            rows = self._rows(side, whole)
            if own is None:
                positions = choice.draw(int(rows.shape[2]))
                xp = namespace_of(rows)
                rows = rows if positions is None else xp.take(rows, xp.asarray(positions), axis=2)
                chosen = None
            else:
                counts = self._rows(side, np.broadcast_to(own, whole.shape))[:, 0, :, 0].reshape(-1)
                chosen = choice.live(np.flatnonzero(counts), int(rows.shape[0]))
            self._take(self._sides[side], rows, chosen)

    def _rows(self, side: int, whole: Array) -> Array:
        """(samples, heads, positions, channels) of a tensor."""
        part, order = self._product.parts[side], self._product.orders[side]
        tensor = whole if part is None else part.of(whole)
        xp = namespace_of(tensor)
        rows = xp.permute_dims(tensor, tuple(axis for axis in order if axis is not None))
        positions_count = 1 if order[-2] is None else int(rows.shape[-2])
        return xp.reshape(rows, (-1, len(self._sides[side]), positions_count, int(rows.shape[-1])))

    def _take(self, by_head: Sequence[Moments], rows: Array, chosen: NDArray[np.int64] | None) -> None:
        xp = namespace_of(rows)
        for head, moments in enumerate(by_head):
            flat = xp.reshape(rows[:, head], (-1, int(rows.shape[-1])))
            moments.update(flat if chosen is None else xp.take(flat, xp.asarray(chosen), axis=0))

    def merge(self, other: ProductObserver) -> None:
        """Add what another observer has seen."""
        for by_head, others in zip(self._sides, other._sides, strict=True):
            for moments, more in zip(by_head, others, strict=True):
                moments.merge(more)

    def readings(self, group: Group) -> list[ReaderStats]:
        """One reading per head: its covariance is the second moment of q, its matrix C_k^½."""
        classes, index = columns_by_class(self._product.labels)
        places, columns = np.searchsorted(group.labels, classes), index.reshape(-1)
        readings = []
        for of_q, of_k in zip(*self._product.heads, strict=True):
            q, k = self._sides[0][of_q], self._sides[1][of_k]
            xp = namespace_of(q.mean_x)
            second = q.covariance + q.mean_x[:, None] * q.mean_x[None, :]
            values, vectors = eigh_descending(k.covariance)
            root = xp.sqrt(xp.where(values > 0, values, 0.0))[:, None] * vectors.T
            second = _taken(_taken(second, columns).T, columns)
            readings.append(ReaderStats(second, _taken(root, columns), index.shape[1], q.rows, places))
        return readings


def _taken(a: Array, columns: NDArray[np.int64]) -> Array:
    """Columns of `a` (n, m), of zeros for -1."""
    xp = namespace_of(a)
    if np.array_equal(columns, np.arange(int(a.shape[1]))):
        return a
    wide = xp.concat([a, xp.zeros((int(a.shape[0]), 1), dtype=a.dtype)], axis=1)
    return xp.take(wide, xp.asarray(np.where(columns < 0, int(a.shape[1]), columns)), axis=1)
