"""Consecutive samples, cut and joined along the axis that counts them in each input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from pcns_onnx.data.columns import Array

Feeds: TypeAlias = dict[str, Array]
Axes: TypeAlias = Mapping[str, int | None]
"""By input, the axis along which samples lie, None where it is the same in every run; those not listed have axis 0."""


@dataclass(frozen=True)
class Batch:
    """Consecutive samples: `feeds` by input name, of the model's dtypes and C-contiguous, as the model takes them.

    `labels` is an integer or bool array (size, ...) or None. Arrays may be read-only views of the source.
    `index` (size,) are the samples' numbers in the data as it was opened, from 0; `begins` (size,) tells those
    with which a sequence begins, where the data has any. `order` (size,) are their numbers among all that come, from 0,
    where these do not come in the order of the data.
    """

    feeds: Feeds
    labels: Array | None
    size: int
    index: Array | None = None
    axes: Axes = field(default_factory=dict)
    begins: Array | None = None
    order: Array | None = None

    def rows(self, rows: slice | Array) -> Batch:
        """Some of the samples."""
        feeds = {name: _taken(array, rows, self.axes.get(name, 0)) for name, array in self.feeds.items()}
        labels, index, begins, order = (
            None if a is None else a[rows] for a in (self.labels, self.index, self.begins, self.order)
        )
        return Batch(feeds, labels, len(np.arange(self.size)[rows]), index, self.axes, begins, order)

    def repeated(self, size: int) -> Feeds:
        """Feeds of `size` samples: these ones, over and over."""
        rows = np.arange(size) % self.size
        return self.rows(rows).feeds

    def goes_with(self, other: Batch) -> bool:
        """Whether the model can be run on the samples of both at once: only their number may differ."""
        counts = any(self.axes.get(name, 0) is not None for name in self.feeds)
        return (
            counts
            and self.axes == other.axes
            and self._form == other._form
            and all(
                np.array_equal(array, other.feeds[name])
                for name, array in self.feeds.items()
                if self.axes.get(name, 0) is None and array is not other.feeds[name]
            )
        )

    @property
    def _form(self) -> list[tuple[int, ...]]:
        sizes = [
            tuple(size for at, size in enumerate(array.shape) if at != self.axes.get(name, 0))
            for name, array in self.feeds.items()
        ]
        return sizes + ([] if self.labels is None else [self.labels.shape[1:]])


def joined(batches: Sequence[Batch]) -> Batch:
    """The samples of batches that go with one another, as one."""
    first = batches[0]
    if len(batches) == 1:
        return first
    feeds = {
        name: array
        if (axis := first.axes.get(name, 0)) is None
        else np.concatenate([batch.feeds[name] for batch in batches], axis)
        for name, array in first.feeds.items()
    }
    labels = [batch.labels for batch in batches if batch.labels is not None]
    index = [batch.index for batch in batches if batch.index is not None]
    begins = [batch.begins for batch in batches if batch.begins is not None]
    order = [batch.order for batch in batches if batch.order is not None]
    return Batch(
        feeds,
        np.concatenate(labels) if labels else None,
        sum(batch.size for batch in batches),
        np.concatenate(index) if index else None,
        first.axes,
        np.concatenate(begins) if begins else None,
        np.concatenate(order) if order else None,
    )


def recut(runs: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same samples in batches of `size`; shorter at the end and where samples cannot be run at once."""
    pieces: list[Batch] = []
    missing = size
    for run in runs:
        if pieces and not pieces[0].goes_with(run):
            yield joined(pieces)
            pieces, missing = [], size
        start = 0
        while start < run.size:
            piece = run.rows(slice(start, start + missing)) if start or run.size > missing else run
            pieces.append(piece)
            start += piece.size
            missing -= piece.size
            if not missing:
                yield joined(pieces)
                pieces, missing = [], size
    if pieces:
        yield joined(pieces)


def _taken(array: Array, rows: slice | Array, axis: int | None) -> Array:
    if axis is None:
        return array
    if axis == 0:
        return array[rows]
    return np.ascontiguousarray(array[(slice(None),) * axis + (rows,)])
