"""How a layer reads a group: the second moments of its inputs, by class (see `calibration.columns`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from pcns_onnx.calibration.columns import COLUMNS, Columns
from pcns_onnx.calibration.ranking import ReaderStats
from pcns_onnx.dependency.groups import Group
from pcns_onnx.dependency.layers import ConvGroup, Layer
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import Array, namespace_of, to_numpy
from pcns_onnx.numerics.linalg import eigh_descending
from pcns_onnx.numerics.moments import Moments
from pcns_onnx.rewrite.layer_weights import stored_weight

_WATCHED = 256
"""Rows of a batch of which is counted how often channels change from one to the next."""
_PRODUCTS = 1 << 24
"""Numbers that products of taps may take at a time."""


class InputObserver:
    """Second moments of a block's input over at most `COLUMNS` columns.

    Where all taps of all classes would be more, the taps are rotated onto their leading principal
    directions, shared by all classes: this only steers which channels stay, the re-fit sees every
    tap. Rows are gathered tap-major, as Conv has them.
    """

    def __init__(self, graph: Graph, group: Group, layer: Layer, part: ConvGroup, xp: Any) -> None:
        columns, matrix = Columns.of(part, group.labels), part.op.matrix(stored_weight(graph, layer))
        self.columns, self._places = columns, np.searchsorted(group.labels, columns.classes)
        self._channels, self._taps = len(columns.classes), columns.taps
        self._kept = min(self._taps, max(1, COLUMNS // self._channels))
        self._all = len(self._places) == group.width
        tap_major, width = columns.index.T.reshape(-1), int(matrix.shape[1])
        self._whole = np.array_equal(tap_major, np.arange(width))
        self._gaps = bool((tap_major < 0).any())
        self._index = xp.asarray(np.where(tap_major < 0, width, tap_major))
        self._matrix = self._select(xp.asarray(matrix))
        self._energy = xp.sum(xp.reshape(self._matrix * self._matrix, (-1, self._taps, self._channels)), axis=(0, 1))
        self._basis: Array | None = None
        self._moments = Moments(self._channels * self._kept, 0, xp)
        self._values = 0
        self._changes = xp.zeros(self._channels, dtype=xp.float64)

    def __getstate__(self) -> dict[str, Any]:
        """V stays at home: what is gathered of the rows does not need it."""
        return vars(self) | {"_matrix": None}

    @property
    def is_open(self) -> bool:
        """Whether the taps have to be compressed, and it is not settled how."""
        return self._kept < self._taps and self._basis is None

    def begin(self, rows: Array) -> None:
        """Settle how taps are compressed, from the first batch's rows."""
        if self.is_open:
            self._basis = self._principal_taps(self._select(rows), self._kept)

    def update(self, rows: Array, *, apart: bool = False) -> None:
        """Take a batch of the block's input rows in; `apart` where no two taps read the same value."""
        self._values += int(rows.shape[0]) * (self._kept if apart else 1)
        rows = self._select(rows)
        self._watch(rows[:_WATCHED], 1 if apart else self._taps)
        self._moments.update(rows if self._basis is None else self._project(rows, self._basis))

    def merge(self, other: InputObserver) -> None:
        """Add what another observer, of the same beginning, has seen."""
        self._basis = other._basis
        self._moments.merge(other._moments)
        self._values += other._values
        self._changes = self._changes + other._changes

    def reading(self) -> ReaderStats:
        """What was seen, channel-major."""
        xp = namespace_of(self._matrix)
        n, t, matrix = self._channels, self._kept, self._matrix
        if self._basis is not None:
            matrix = self._project(matrix, xp.astype(self._basis, xp.float64))
        covariance = xp.reshape(self._moments.covariance, (t, n, t, n))
        covariance = xp.reshape(xp.permute_dims(covariance, (1, 0, 3, 2)), (n * t, n * t))
        matrix = xp.reshape(xp.permute_dims(xp.reshape(matrix, (-1, t, n)), (0, 2, 1)), (-1, n * t))
        places = None if self._all else self._places
        return ReaderStats(covariance, matrix, t, self._moments.rows, places, self._values, to_numpy(self._changes))

    def _watch(self, rows: Array, same: int) -> None:
        """Count changes from row to row; a value stands in `same` of the columns of its channel."""
        xp = namespace_of(rows)
        changes = xp.reshape(rows[1:, :] != rows[:-1, :], (-1, self._channels))
        self._changes = self._changes + xp.sum(xp.astype(changes, xp.float64), axis=0) / same

    def _select(self, rows: Array) -> Array:
        if self._whole:
            return rows
        xp = namespace_of(rows)
        if self._gaps:
            rows = xp.concat([rows, xp.zeros((int(rows.shape[0]), 1), dtype=rows.dtype)], axis=1)
        return xp.take(rows, self._index, axis=1)

    def _project(self, rows: Array, basis: Array) -> Array:
        xp = namespace_of(rows)
        projected = basis.T @ xp.reshape(rows, (-1, int(basis.shape[0]), self._channels))
        return xp.reshape(projected, (int(rows.shape[0]), -1))

    def _principal_taps(self, rows: Array, keep: int) -> Array:
        """(taps, keep) float32: principal directions of the taps, channels weighted by their readers."""
        xp = namespace_of(rows)
        shape = (-1, self._taps, self._channels)
        weighted = xp.reshape(rows, shape) * xp.astype(xp.sqrt(self._energy), rows.dtype)
        moment, step = xp.zeros((self._taps, self._taps), dtype=rows.dtype), max(_PRODUCTS // self._taps**2, 1)
        for start in range(0, int(weighted.shape[0]), step):  # a matrix of taps by taps for each row
            part = weighted[start : start + step]
            moment = moment + xp.sum(part @ xp.permute_dims(part, (0, 2, 1)), axis=0)
        _, vectors = eigh_descending(xp.astype(moment, xp.float64))
        return xp.astype(vectors[:, :keep], xp.float32)
