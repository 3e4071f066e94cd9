"""How a product of two computed tensors (Q Kᵀ in attention) uses the channels that it sums over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.ranking import ReaderStats
from pcns_onnx.dependency.groups import Group, Product
from pcns_onnx.numerics.arrays import Array, namespace_of
from pcns_onnx.numerics.linalg import eigh_descending
from pcns_onnx.numerics.moments import Moments


class ProductObserver:
    """How a product of two computed tensors sums over a group's channels: sum_j q_j k_j in every head.

    It loses E|q_j k_j|² when channel j goes: the same as a layer that reads q with V = C_k^½, C_k
    being the covariance of k (its mean adds the same to all scores of a row, which Softmax ignores).
    """

    def __init__(self, product: Product, xp: Any) -> None:
        channels, heads = len(product.labels), product.heads
        self._product, self._heads = product, heads
        self._q = [Moments(channels, 0, xp) for _ in range(heads)]
        self._k = [Moments(channels, 0, xp) for _ in range(heads)]

    def update(self, q: Array, k: Array, at: Callable[[int], NDArray[np.int64] | None]) -> None:
        """Take a batch of both tensors in, at some positions of each."""
        for tensor, order, by_head in zip((q, k), self._product.orders, (self._q, self._k), strict=True):
            xp = namespace_of(tensor)
            rows = xp.permute_dims(tensor, order)
            rows = xp.reshape(rows, (-1, self._heads, int(rows.shape[-2]), int(rows.shape[-1])))
            positions = at(int(rows.shape[2]))
            rows = rows if positions is None else xp.take(rows, xp.asarray(positions), axis=2)
            for head, moments in enumerate(by_head):
                moments.update(xp.reshape(rows[:, head], (-1, int(rows.shape[-1]))))

    def merge(self, other: ProductObserver) -> None:
        """Add what another observer has seen."""
        for moments, others in zip((*self._q, *self._k), (*other._q, *other._k), strict=True):
            moments.merge(others)

    def readings(self, group: Group) -> list[ReaderStats]:
        """One reading per head: its covariance is the second moment of q, its matrix C_k^½."""
        readings = []
        places = np.searchsorted(group.labels, self._product.labels)
        for q, k in zip(self._q, self._k, strict=True):
            xp = namespace_of(q.mean_x)
            second = q.covariance + q.mean_x[:, None] * q.mean_x[None, :]
            values, vectors = eigh_descending(k.covariance)
            root = xp.sqrt(xp.where(values > 0, values, 0.0))[:, None] * vectors.T
            readings.append(ReaderStats(second, root, 1, q.rows, places))
        return readings
