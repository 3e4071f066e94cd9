"""How a layer reads a group: the columns of V by class, their second moments, V without them.

A class owns the same number of columns (`taps`) in every block that reads it: all kernel taps of
all its channels. Where one class happens to have fewer channels than another, the gap is filled
with columns that are always zero, which cost and carry nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.ranking import Reading, mixing
from pcns_onnx.dependency.groups import Group, Product
from pcns_onnx.dependency.layers import Layer, Part
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import Array, namespace_of
from pcns_onnx.numerics.linalg import eigh_descending
from pcns_onnx.numerics.moments import Moments
from pcns_onnx.ops import Labels

COLUMNS = 1536
"""Widest second moments used to choose channels; beyond it the taps are compressed."""


@dataclass(frozen=True)
class Columns:
    """Where a block reads a group: `index` (n, taps) columns of V, -1 for none, of `classes` (n,) of the group."""

    classes: Labels
    index: NDArray[np.int64]

    @classmethod
    def of(cls, part: Part, labels: Labels) -> Columns:
        """The columns of a block that read one of the classes `labels`."""
        owners = part.op.owners(part.reads)
        mine = np.argsort(owners, kind="stable")
        mine = mine[np.isin(owners[mine], labels)]
        classes, counts = np.unique(owners[mine], return_counts=True)
        index = np.full((len(classes), int(counts.max(initial=0))), -1, dtype=np.int64)
        index[np.arange(index.shape[1]) < counts[:, None]] = mine
        return cls(classes, index)

    @property
    def taps(self) -> int:
        """Columns per class."""
        return int(self.index.shape[1])

    def places(self, labels: Labels) -> NDArray[np.int64]:
        """Which of the classes are among `labels`."""
        return np.flatnonzero(np.isin(self.classes, labels))


class View:
    """Second moments of a block's input over at most `COLUMNS` columns.

    Where all taps of all classes would be more, the taps are rotated onto their leading principal
    directions, shared by all classes: this only steers which channels stay, the re-fit sees every
    tap. Rows are gathered tap-major, as Conv has them.
    """

    def __init__(self, graph: Graph, group: Group, layer: Layer, part: Part, xp: Any) -> None:
        columns, matrix = Columns.of(part, group.labels), part.op.matrix(stored_weight(graph, layer))
        self.columns, self._places = columns, np.searchsorted(group.labels, columns.classes)
        self._channels, self._taps = len(columns.classes), columns.taps
        self._kept = min(self._taps, max(1, COLUMNS // self._channels))
        self._all = len(self._places) == group.width
        tap_major, width = columns.index.T.reshape(-1), int(matrix.shape[1])
        self._whole = np.array_equal(tap_major, np.arange(width))
        self._gaps = bool((tap_major < 0).any())
        self._index = xp.asarray(np.where(tap_major < 0, width, tap_major))
        self._matrix = self._pick(xp.asarray(matrix))
        self._energy = xp.sum(xp.reshape(self._matrix * self._matrix, (-1, self._taps, self._channels)), axis=(0, 1))
        self._basis: Array | None = None
        self._moments = Moments(self._channels * self._kept, 0, xp)

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
            self._basis = self._principal_taps(self._pick(rows), self._kept)

    def update(self, rows: Array) -> None:
        """Take a batch of the block's input rows in."""
        rows = self._pick(rows)
        self._moments.update(rows if self._basis is None else self._turn(rows, self._basis))

    def merge(self, other: View) -> None:
        """Add what another view, of the same beginning, has seen."""
        self._basis = other._basis
        self._moments.merge(other._moments)

    def reading(self) -> Reading:
        """What was seen, channel-major."""
        xp = namespace_of(self._matrix)
        n, t, matrix = self._channels, self._kept, self._matrix
        if self._basis is not None:
            matrix = self._turn(matrix, xp.astype(self._basis, xp.float64))
        covariance = xp.reshape(self._moments.covariance, (t, n, t, n))
        covariance = xp.reshape(xp.permute_dims(covariance, (1, 0, 3, 2)), (n * t, n * t))
        matrix = xp.reshape(xp.permute_dims(xp.reshape(matrix, (-1, t, n)), (0, 2, 1)), (-1, n * t))
        return Reading(covariance, matrix, t, self._moments.rows, None if self._all else self._places)

    def _pick(self, rows: Array) -> Array:
        if self._whole:
            return rows
        xp = namespace_of(rows)
        if self._gaps:
            rows = xp.concat([rows, xp.zeros((int(rows.shape[0]), 1), dtype=rows.dtype)], axis=1)
        return xp.take(rows, self._index, axis=1)

    def _turn(self, rows: Array, basis: Array) -> Array:
        xp = namespace_of(rows)
        turned = basis.T @ xp.reshape(rows, (-1, int(basis.shape[0]), self._channels))
        return xp.reshape(turned, (int(rows.shape[0]), -1))

    def _principal_taps(self, rows: Array, keep: int) -> Array:
        """(taps, keep) float32: principal directions of the taps, channels weighted by their readers."""
        xp = namespace_of(rows)
        shape = (-1, self._taps, self._channels)
        weighted = xp.reshape(rows, shape) * xp.astype(xp.sqrt(self._energy), rows.dtype)
        moment = xp.sum(weighted @ xp.permute_dims(weighted, (0, 2, 1)), axis=0)
        _, vectors = eigh_descending(xp.astype(moment, xp.float64))
        return xp.astype(vectors[:, :keep], xp.float32)


class ProductView:
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
        for tensor, axis, moments in zip((q, k), self._product.axes, (self._q, self._k), strict=True):
            xp = namespace_of(tensor)
            rows = xp.permute_dims(tensor, (*(a for a in range(tensor.ndim) if a != axis), axis))
            rows = xp.reshape(rows, (-1, self._heads, int(rows.shape[-2]), int(rows.shape[-1])))
            some = at(int(rows.shape[2]))
            rows = rows if some is None else xp.take(rows, xp.asarray(some), axis=2)
            for head, found in enumerate(moments):
                found.update(xp.reshape(rows[:, head], (-1, int(rows.shape[-1]))))

    def merge(self, other: ProductView) -> None:
        """Add what another view has seen."""
        for mine, found in zip((*self._q, *self._k), (*other._q, *other._k), strict=True):
            mine.merge(found)

    def readings(self, group: Group) -> list[Reading]:
        """One reading per head: its covariance is the second moment of q, its matrix C_k^½."""
        found = []
        places = np.searchsorted(group.labels, self._product.labels)
        for q, k in zip(self._q, self._k, strict=True):
            xp = namespace_of(q.mean_x)
            second = q.covariance + q.mean_x[:, None] * q.mean_x[None, :]
            values, vectors = eigh_descending(k.covariance)
            root = xp.sqrt(xp.where(values > 0, values, 0.0))[:, None] * vectors.T
            found.append(Reading(second, root, 1, q.rows, places))
        return found


@dataclass(frozen=True)
class Seen:
    """How the `classes` (n,) of a group that a block reads vary together: (n, n), averaged over taps."""

    classes: Labels
    covariance: Array


def stored_weight(graph: Graph, layer: Layer) -> NDArray[np.float64]:
    """The weight of a layer as it stands in `graph`, in its own layout."""
    weight = graph.constant(graph.node(layer.key).inputs[layer.linear.weight])
    assert weight is not None, "layers have stored weights"
    return weight.astype(np.float64)


def stored_bias(graph: Graph, layer: Layer) -> NDArray[np.float64]:
    """The bias that a layer adds as it stands in `graph`, (K,)."""
    found = layer.bias
    rows = layer.linear.op.matrix(stored_weight(graph, layer)).shape[0]
    if found.absent:
        return np.zeros(rows)
    value = graph.constant(graph.node(found.key).inputs[found.position])
    assert value is not None, "a bias is stored"
    node = graph.node(found.key)
    scale = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
    return np.broadcast_to(value.astype(np.float64).reshape(-1) * scale, (rows,))


def mixed_prior(matrix: Array, part: Part, seen: Mapping[str, Seen], keep: Mapping[str, Labels]) -> Array:
    """V (K, n') of a block over the columns that stay, what goes replaced by its mixture of what stays.

    `matrix` is the block's V; `seen` and `keep` are by group.
    """
    xp = namespace_of(matrix)
    stays = np.ones(int(matrix.shape[1]), dtype=np.bool_)
    for name, view in seen.items():
        columns = Columns.of(part, view.classes)
        kept = columns.places(keep[name])
        matrix = mixed_matrix(matrix, columns, mixing(view.covariance, kept), kept)
        gone = np.delete(columns.index, kept, axis=0).reshape(-1)
        stays[gone[gone >= 0]] = False
    return xp.take(matrix, xp.asarray(np.flatnonzero(stays)), axis=1)


def mixed_matrix(matrix: Array, columns: Columns, mix: Array, places: NDArray[np.int64]) -> Array:
    """V (K, n) with the N classes t = mix t', mix (N, M), the same for all taps.

    The new channels take the places (M,) of old ones; columns at other places keep what they had.
    """
    xp = namespace_of(mix)
    n, taps = columns.index.shape
    wide = xp.concat([matrix, xp.zeros((int(matrix.shape[0]), 1), dtype=matrix.dtype)], axis=1)
    split = xp.reshape(xp.take(wide, xp.asarray(columns.index.reshape(-1)), axis=1), (-1, n, taps))
    mixed = xp.permute_dims(xp.permute_dims(split, (0, 2, 1)) @ mix, (0, 2, 1))
    mixed = xp.reshape(mixed, (int(matrix.shape[0]), len(places) * taps))
    source, new = np.arange(int(matrix.shape[1])), columns.index[places].reshape(-1)
    source[new[new >= 0]] = len(source) + np.flatnonzero(new >= 0)
    return xp.take(xp.concat([matrix, mixed], axis=1), xp.asarray(source), axis=1)
