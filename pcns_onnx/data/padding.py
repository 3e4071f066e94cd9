"""Padding: which positions of a sample count, as a mask of 0 and 1 among the inputs has it.

    live(n, s) = mask(n, s) is not 0

What nobody counts is cut off where the model allows it: columns that are padding in all samples of a batch, on either
end. So that few are left, samples of like length are put together (bucketing): within windows of some megabytes they
are sorted by length and cut into batches; batches, and the samples in them, stay in the order of the data as far as
that goes. What remains is left out row by row (`PositionAxes`). That both are right is found out by runs of the model
(`runtime.padding`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.data.batch import Batch, joined
from pcns_onnx.data.columns import Array
from pcns_onnx.numerics.arrays import namespace_of

WINDOW = 1 << 25
"""Bytes of samples, without their padding, that are sorted at once."""

Live = NDArray[np.bool_]
"""(N, S): which positions of each sample count."""


@dataclass(frozen=True)
class PositionAxes:
    """Where a tensor has samples and their positions: along two axes, or sample by sample along one (None)."""

    samples: int
    positions: int | None

    def fits(self, shape: tuple[int, ...], live: Live) -> bool:
        """Whether a tensor of this shape has these samples and positions there."""
        if max(self.samples, self.positions or 0) >= len(shape):
            return False
        if self.positions is None:
            return shape[self.samples] == live.size
        return (shape[self.samples], shape[self.positions]) == live.shape

    def spread(self, live: Live, rank: int) -> Live:
        """`live` along the axes of a tensor of this rank, all others of size one."""
        shape = [1] * rank
        if self.positions is None:
            shape[self.samples] = live.size
            return live.reshape(shape)
        shape[self.samples], shape[self.positions] = live.shape
        return (live if self.samples < self.positions else live.T).reshape(shape)

    def only(self, values: Array, live: Live) -> Array:
        """What counts of a tensor: samples become (sample, position) pairs along their axis, positions one."""
        xp, chosen = namespace_of(values), np.flatnonzero(live)
        if self.positions is None:
            taken: Array = xp.take(values, xp.asarray(chosen), axis=self.samples)
            return taken
        moved = xp.moveaxis(values, (self.samples, self.positions), (0, 1))
        flat = xp.reshape(moved, (live.size, 1, *moved.shape[2:]))
        only: Array = xp.moveaxis(xp.take(flat, xp.asarray(chosen), axis=0), (0, 1), (self.samples, self.positions))
        return only

    def filled(self, values: Array, live: Live) -> Array:
        """The tensor with zeros where nothing counts."""
        xp = namespace_of(values)
        counts, blank = xp.asarray(self.spread(live, values.ndim)), xp.asarray(0, dtype=values.dtype)
        filled: Array = xp.where(counts, values, blank)
        return filled


@dataclass(frozen=True, eq=False)
class Padding:
    """What is known of a model's padding.

    `mask` is the input (N, S) that says what counts, `axes` by input the axes that its positions lie along where the
    model says so by name. At the `left` and the `right` end padding may be cut off. `pair` are some samples, and the
    same with other values where nothing counts; `places`, by tensor, where these values arrive (None: nowhere).
    """

    mask: str
    axes: Mapping[str, tuple[int, ...]]
    left: bool
    right: bool
    pair: tuple[Batch, Batch]
    places: dict[str, PositionAxes | None] = field(default_factory=dict)

    @property
    def cuts(self) -> bool:
        """Whether anything may be cut off."""
        return self.left or self.right

    def live(self, feeds: Mapping[str, Any]) -> Live:
        """Which positions of a batch count."""
        return np.asarray(np.asarray(feeds[self.mask]) != 0)

    def extents(self, batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first position of each sample that stays, and the one behind the last; all of one that has none."""
        live = self.live(batch.feeds)
        length, has_any = live.shape[1], live.any(axis=1)
        first = np.where(has_any & self.left, live.argmax(axis=1), 0)
        last = np.where(has_any & self.right, length - live[:, ::-1].argmax(axis=1), length)
        return first, last

    def cut(self, batch: Batch) -> Batch:
        """The batch without what is padding in all of its samples, at the ends where that may be cut off."""
        if not self.cuts or self.mask not in self.axes:
            return batch
        first, last = self.extents(batch)
        start, stop = int(first.min()), int(last.max())
        if (start, stop) == (0, batch.feeds[self.mask].shape[1]):
            return batch
        return replace(
            batch, feeds={name: self._taken(name, array, start, stop) for name, array in batch.feeds.items()}
        )

    def place(self, batch: Batch, name: str) -> tuple[int, int] | None:
        """The axes of samples and positions of an input other than the mask; None where it has not both."""
        array, samples, length = batch.feeds[name], batch.axes.get(name, 0), batch.feeds[self.mask].shape[1]
        along = [axis for axis, size in enumerate(array.shape) if size == length and axis != samples]
        along = [axis for axis in along if axis in self.axes.get(name, along)]
        return None if name == self.mask or samples is None or not along else (samples, along[0])

    def blanked(self, batch: Batch) -> Batch:
        """The batch with zeros where nothing counts."""
        live, feeds = self.live(batch.feeds), dict(batch.feeds)
        for name, array in batch.feeds.items():
            if (axes := self.place(batch, name)) is not None:
                feeds[name] = np.asarray(PositionAxes(*axes).filled(array, live))
        return replace(batch, feeds=feeds)

    def _taken(self, name: str, array: Array, start: int, stop: int) -> Array:
        index = [slice(None)] * array.ndim
        for axis in self.axes.get(name, ()):
            index[axis] = slice(start, stop)
        return np.ascontiguousarray(array[tuple(index)]) if name in self.axes else array


def arranged(batches: Iterable[Batch], padding: Padding, size: int) -> Iterator[Batch]:
    """The samples in batches of like length, without common padding; `order` says where they were."""
    window, used, count = list[Batch](), 0, 0
    for batch in batches:
        numbered = replace(batch, order=np.arange(count, count + batch.size))
        count += batch.size
        if window and (used > WINDOW or not window[-1].goes_with(numbered)):
            yield from _sorted(joined(window), padding, size)
            window, used = [], 0
        window.append(numbered)
        used += sum(array.nbytes for array in padding.cut(batch).feeds.values())
    if window:
        yield from _sorted(joined(window), padding, size)


def _sorted(whole: Batch, padding: Padding, size: int) -> Iterator[Batch]:
    """Samples sorted by length and cut into batches, which come in the order of their first samples."""
    first, last = padding.extents(whole)
    order = np.argsort(last - first, kind="stable")
    chunks = [np.sort(order[start : start + size]) for start in range(0, whole.size, size)]
    for rows in sorted(chunks, key=lambda rows: (-len(rows), int(rows[0]))):
        yield padding.cut(whole.rows(rows))
