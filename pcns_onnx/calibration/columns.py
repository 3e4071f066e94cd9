"""How a layer reads a group: the columns of V by class, and V with what goes replaced by its mixture of what stays.

A class owns the same number of columns (`taps`) in every block that reads it: all kernel taps of
all its channels. Where one class happens to have fewer channels than another, the gap is filled
with columns that are always zero, which cost and carry nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.ranking import mixing
from pcns_onnx.dependency.layers import ConvGroup
from pcns_onnx.numerics.arrays import Array, namespace_of
from pcns_onnx.ops import Labels

COLUMNS = 1536
"""Widest second moments used to choose channels; beyond it the taps are compressed."""


def columns_by_class(owners: Labels) -> tuple[Labels, NDArray[np.int64]]:
    """The classes (n,) that own columns, -1 being none, and the columns of each (n, taps), -1 for none."""
    columns = np.argsort(owners, kind="stable")
    columns = columns[owners[columns] >= 0]
    classes, counts = np.unique(owners[columns], return_counts=True)
    index = np.full((len(classes), int(counts.max(initial=0))), -1, dtype=np.int64)
    index[np.arange(index.shape[1]) < counts[:, None]] = columns
    return classes, index


@dataclass(frozen=True)
class Columns:
    """Where a block reads a group: `index` (n, taps) columns of V, -1 for none, of `classes` (n,) of the group."""

    classes: Labels
    index: NDArray[np.int64]

    @classmethod
    def of(cls, part: ConvGroup, labels: Labels) -> Columns:
        """The columns of a block that read one of the classes `labels`."""
        owners = part.op.owners(part.reads)
        return cls(*columns_by_class(np.where(np.isin(owners, labels), owners, -1)))

    @property
    def taps(self) -> int:
        """Columns per class."""
        return int(self.index.shape[1])

    def places(self, labels: Labels) -> NDArray[np.int64]:
        """Which of the classes are among `labels`."""
        return np.flatnonzero(np.isin(self.classes, labels))


@dataclass(frozen=True)
class ChannelCovariance:
    """How the `classes` (n,) of a group that a block reads vary together: (n, n), averaged over taps."""

    classes: Labels
    covariance: Array


def mixed_prior(
    matrix: Array, part: ConvGroup, covariances: Mapping[str, ChannelCovariance], keep: Mapping[str, Labels]
) -> Array:
    """V (K, n') of a block over the columns that stay, what goes replaced by its mixture of what stays.

    `matrix` is the block's V; `covariances` and `keep` are by group.
    """
    xp = namespace_of(matrix)
    stays = np.ones(int(matrix.shape[1]), dtype=np.bool_)
    for name, channels in covariances.items():
        columns = Columns.of(part, channels.classes)
        kept = columns.places(keep[name])
        matrix = mixed_matrix(matrix, columns, mixing(channels.covariance, kept), kept)
        gone = np.delete(columns.index, kept, axis=0).reshape(-1)
        stays[gone[gone >= 0]] = False
    return xp.take(matrix, xp.asarray(np.flatnonzero(stays)), axis=1)


def mixed_matrix(matrix: Array, columns: Columns, mix: Array, places: NDArray[np.int64]) -> Array:
    """V (K, n) with the N classes t = mix t', mix (N, M), the same for all taps.

    The new channels take the places (M,) of old ones; columns at other places stay as they are.
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


BlockKey = tuple[str, int]
"""A layer's name and the number of one of its blocks."""
