"""Every channel of an output in its own scale.

One output often holds parts of different scale, such as boxes in pixels beside scores between 0 and 1. An error
means something only against how much its own channel varies, so errors are shares of that:

    e² = sum_c w_c E|a_c - b_c|² / s_c²  /  sum_c w_c E|a_c - mean a_c|² / s_c²

s_c is the spread (standard deviation over samples and positions) of channel c in the original. Channels of like
spread, in a chain of steps below `LIKE`, share theirs: classes are compared with each other. A channel that hardly
varies, like the score of a class that no sample has, would turn rounding into errors; so s_c is at least `FLOOR` of
the largest among its like: the channels that stay within 0 and 1 (scores), or those that a chain of spreads without
a step of `APART` leads to. A channel that does not vary at all counts by its size, and one below `DEAD` of the largest
for nothing of its own: a norm whose gain has decayed to 1e-33 is zero beside the others, and no unit. Where no channel
varies, all are of one scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.live_rows import LivePlaces
from pcns_onnx.calibration.output_layout import OutputLayout
from pcns_onnx.numerics.arrays import Array, namespace_of, to_numpy, without_common_infinities
from pcns_onnx.ops import Labels

FLOOR = 0.1
"""Share of the largest spread among its like that a channel's scale has at least."""
LIKE = 3.0
"""Channels whose spreads differ by less than such a factor share a scale."""
APART = 30.0
"""Parts of an output whose spreads differ by such a factor are of different scale."""
DEAD = 1e-12
"""Share of the largest scale of an output below which a channel is as good as zero."""
_STILL = 1e-3


@dataclass(frozen=True)
class OutputScale:
    """The channels of one output: to whom each place belongs, the scale and the share of the whole of each.

    `ids` has the output's rank, with size one along axes that do not matter; `axis` is the one that channels are
    counted along. `scale` (C,) is s, `weight` (C,) is w, and `whole` what the errors are divided by: the
    weighted sum over channels of the variance in units of s, per sample; 0 where the original is zero. `places` (C,):
    how many numbers each channel has had.
    """

    ids: Labels
    axis: int | None
    spread: NDArray[np.float64]
    scale: NDArray[np.float64]
    weight: NDArray[np.float64]
    whole: float
    places: NDArray[np.float64] = field(default_factory=lambda: np.ones(1))

    @property
    def importance(self) -> float:
        """The mean weight of its channels."""
        return float(self.weight.mean())

    def per_sample(self, missed: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,): the squared error of every sample from what it misses (N, C); the mean over samples is e².

        Infinite where the original is zero and the other is not.
        """
        errors = missed @ (self.weight / self.scale**2)
        return np.asarray(errors / self.whole if self.whole else np.where(errors > 0, np.inf, 0.0))

    def by_channel(self, missed: NDArray[np.float64]) -> NDArray[np.float64]:
        """(C,): the error of each channel as a share of its scale, from what it misses over all samples."""
        return np.asarray(np.sqrt(missed / np.maximum(self.places, 1)) / self.scale)

    def missed(self, expected: Array, actual: Array) -> NDArray[np.float64]:
        """(N, C): the sum of squares that each channel of each sample misses; equal parts of it where the tensor has
        other channels."""
        if all(a in (1, b) for a, b in zip(self.ids.shape, expected.shape, strict=False)):
            return _missed(expected, actual, self.ids)
        whole = _missed(expected, actual, np.zeros((1,) * expected.ndim, dtype=np.int64))
        return np.repeat(whole / len(self.scale), len(self.scale), axis=1)

    def share(self, missed: NDArray[np.float64], samples: int) -> float:
        """e² from the sums of squares (C,) that the channels miss over so many samples."""
        return float(missed @ (self.weight / self.scale**2)) / ((self.whole or 1.0) * max(samples, 1))

    def first_places(self) -> NDArray[np.int64]:
        """(C,): the first place of each channel along `axis`."""
        places = np.zeros(len(self.scale), dtype=np.int64)
        if self.axis is not None:
            along = np.indices(self.ids.shape)[self.axis].reshape(-1)
            places[self.ids.reshape(-1)[::-1]] = along[::-1]
        return places

    def extents(self) -> NDArray[np.int64]:
        """(C,): how many places along `axis` each channel has; one layer's channel may write several."""
        if self.axis is None:
            return np.ones(len(self.scale), dtype=np.int64)
        along = np.indices(self.ids.shape)[self.axis].reshape(-1)
        pairs = np.unique(np.stack([self.ids.reshape(-1), along]), axis=1)
        return np.bincount(pairs[0], minlength=len(self.scale))

    def parts(self) -> list[NDArray[np.int64]]:
        """Channels by scale, in parts that lie at least `APART` from each other; ascending."""
        varying = np.flatnonzero(self.spread > 0)
        return [varying[run] for run in _runs(self.scale[varying], APART)]


class SpreadTally:
    """How one output of the original varies, channel by channel."""

    def __init__(self, name: str, layout: OutputLayout, *, is_counted: bool = False) -> None:
        """With `is_counted` there is no telling which axis has as many places as were found: all is one channel."""
        self._name, self._layout, self._is_counted = name, layout, is_counted
        self._ids: Labels | None = None
        self._axis: int | None = None
        self._samples = 0
        self._known: dict[tuple[int | None, ...], tuple[Labels, int | None]] = {}

    def channels(self, shape: tuple[int, ...], batch: int | None = 0) -> tuple[Labels, int | None]:
        """`OutputLayout.ids` of this output, worked out once for every shape."""
        key = (batch, *shape)
        if key not in self._known:
            blank = np.zeros((1,) * len(shape), dtype=np.int64), None
            self._known[key] = blank if self._is_counted else self._layout.ids(self._name, shape, batch)
        return self._known[key]

    def update(self, values: Array, batch: int | None = 0, samples: int | None = None) -> None:
        """Take a batch (N, ...) in; from one with another number of channels than the first on, all are one.

        `batch` is the axis that samples were counted along before they were put in front, None for an added one;
        `samples` are how many there are, where that is not N.
        """
        if not values.size:
            return
        values = _numbers(values)
        ids, axis = self.channels(tuple(values.shape), batch)
        count = int(ids.max(initial=0)) + 1
        places = np.bincount(ids.reshape(-1), minlength=count) * (values.size / max(ids.size, 1))
        if self._ids is None:
            self._ids, self._axis = ids, axis
            self._pivot = _sums(values, ids, count).sum(axis=0) / np.maximum(places, 1)
            self._count, self._sum, self._squares = (np.zeros(count) for _ in range(3))
            self._low, self._high = np.full(count, np.inf), np.full(count, -np.inf)
        if count != len(self._pivot):  # what was taken for channels is a length
            self._take_as_one(values.ndim)
            ids = self.channels(tuple(values.shape), batch)[0]
            count, places = 1, np.full(1, float(values.size))
        shifted = values - namespace_of(values).asarray(self._pivot[ids], dtype=values.dtype)
        self._count += places
        self._sum += _sums(shifted, ids, count).sum(axis=0)
        self._squares += _sums(_squared(shifted), ids, count).sum(axis=0)
        low, high = _extremes(values, ids)
        np.minimum.at(self._low, ids.reshape(-1), low)
        np.maximum.at(self._high, ids.reshape(-1), high)
        self._samples += int(values.shape[0]) if samples is None else samples

    def _take_as_one(self, rank: int) -> None:
        """Forget channels: sums about each one's pivot become sums about a common one."""
        self._is_counted, self._axis, self._ids = True, None, np.zeros((1,) * rank, dtype=np.int64)
        self._known.clear()
        pivot = (self._count * self._pivot).sum(keepdims=True) / max(float(self._count.sum()), 1.0)
        apart = self._pivot - pivot
        squares = self._squares + 2 * apart * self._sum + self._count * apart**2
        total = self._sum + self._count * apart
        self._count, self._sum, self._squares = (part.sum(keepdims=True) for part in (self._count, total, squares))
        self._low, self._high = self._low.min(keepdims=True), self._high.max(keepdims=True)
        self._pivot = pivot

    def scale(self) -> OutputScale:
        """What the errors of this output are measured by."""
        if self._ids is None:
            return OutputScale(np.zeros(1, dtype=np.int64), None, np.ones(1), np.ones(1), np.ones(1), 1.0)
        count = np.maximum(self._count, 1)
        mean = self._sum / count
        deviation = np.sqrt(np.maximum(self._squares / count - mean**2, 0.0))
        size = np.sqrt(deviation**2 + (mean + self._pivot) ** 2)
        spread = np.where(deviation > _STILL * size, deviation, 0.0)
        scale = channel_scales(spread, size, (self._low >= 0) & (self._high <= 1))
        weight = np.ones(len(scale))
        unweighted = OutputScale(self._ids, self._axis, spread, scale, weight, 1.0)
        for chosen in self._layout.weights:
            if chosen.output == self._name:
                weight[chosen.holds(unweighted.first_places())] = chosen.weight
        power = np.where(spread > 0, spread, size) ** 2
        whole = float((weight * self._count * power / scale**2).sum()) / max(self._samples, 1)
        return OutputScale(self._ids, self._axis, spread, scale, weight, whole, places=count)


class OutputError:
    """The errors of some models beside the original at outputs, gathered over batches.

    `names` are those that may differ, out of `among` that count (None: all of them do). `places`: where padding is,
    which counts for nothing.
    """

    def __init__(
        self,
        names: Sequence[str],
        layout: OutputLayout,
        models: int,
        among: int | None = None,
        places: LivePlaces | None = None,
    ) -> None:
        self._places = places or LivePlaces()
        self._others = (among or len(names)) - len(names)
        self._spreads = {name: SpreadTally(name, layout) for name in names}
        self._missed: dict[tuple[str, int], NDArray[np.float64]] = {}
        self._samples = dict.fromkeys(names, 0)
        self._models = models

    def expect(self, expected: Mapping[str, Array], tensors: Mapping[str, Array] | None = None) -> None:
        """Take a batch of the original in; `tensors`: what says which positions count, by name."""
        for name, tally in self._spreads.items():
            values = expected[name]
            samples = int(values.shape[0]) if values.ndim else 1
            (counting,) = self._places.only(name, tensors or {}, values)
            if counting is not values:
                samples = len(self._places.live(tensors or {}))
            tally.update(counting, samples=samples)
            self._samples[name] += samples

    def update(
        self,
        expected: Mapping[str, Array],
        actual: Mapping[str, Array],
        model: int,
        tensors: Mapping[str, Array] | None = None,
    ) -> None:
        """Take a batch of one of the models in."""
        for name, tally in self._spreads.items():
            a, b = self._places.only(name, tensors or {}, expected[name], actual[name])
            if not a.size:
                continue
            ids, _ = tally.channels(tuple(a.shape) or (1,))
            missed = _missed(a, b, ids).sum(axis=0)
            known = self._missed.get((name, model), np.zeros(len(missed)))
            self._missed[name, model] = known + missed if len(known) == len(missed) else known

    def shares(self) -> NDArray[np.float64]:
        """(models,): e² of each, the mean over the outputs by their importance."""
        scales = {name: tally.scale() for name, tally in self._spreads.items()}
        total = np.zeros(self._models)
        for (name, model), missed in self._missed.items():
            total[model] += scales[name].importance * scales[name].share(missed, self._samples[name])
        return total / max(sum(scale.importance for scale in scales.values()) + self._others, 1e-300)


def _numbers(values: Array) -> Array:
    """Values that a difference has a size of; ones for what is only equal or not (texts, indices, truth values)."""
    if not _is_graded(values):
        return np.ones(values.shape or (1,), dtype=np.float32)
    xp = namespace_of(values)
    values = xp.astype(values, xp.float32) if values.dtype.itemsize < 4 else values
    return xp.where(xp.isfinite(values), values, xp.zeros_like(values)) if values.ndim else xp.reshape(values, (1,))


def _is_graded(values: Array) -> bool:
    return values.dtype.kind == "f" or (values.dtype.kind in "iu" and values.dtype.itemsize == 1)


def _missed(expected: Array, actual: Array, ids: Labels) -> NDArray[np.float64]:
    """(N, C): the sum of squares that each channel of each sample misses; of what is not graded, how often."""
    if expected.shape != actual.shape:
        difference = _numbers(expected)  # all is lost
    elif not _is_graded(expected):
        difference = np.asarray(expected != actual, dtype=np.float32)
    else:
        xp = namespace_of(expected)
        a, b = without_common_infinities(*(xp.astype(side, xp.float32) for side in (expected, actual)))
        difference = a - b
    difference = difference if difference.ndim else namespace_of(difference).reshape(difference, (1,))
    return _sums(_squared(difference), ids, int(ids.max(initial=0)) + 1)


def _squared(values: Array) -> Array:
    """Squares in float64 where those of float32 might overflow."""
    xp = namespace_of(values)
    if values.size and float(xp.max(xp.abs(values))) > 1e18:
        values = xp.astype(values, xp.float64)
    return values * values


def _sums(values: Array, ids: Labels, count: int) -> NDArray[np.float64]:
    """(N, C): values summed by channel, sample by sample."""
    xp = namespace_of(values)
    axes = tuple(axis for axis in range(1, values.ndim) if ids.shape[axis] == 1)
    reduced = xp.sum(values, axis=axes, dtype=xp.float64) if axes else values
    rows = np.asarray(to_numpy(reduced), dtype=np.float64).reshape(int(values.shape[0]), -1)
    flat = ids.reshape(-1)
    if count == rows.shape[1]:
        return np.asarray(rows[:, np.argsort(flat)], dtype=np.float64)
    if count == 1:
        return np.asarray(rows.sum(axis=1, keepdims=True), dtype=np.float64)
    return np.stack([np.bincount(flat, row, count) for row in rows]) if len(rows) else np.zeros((0, count))


def _extremes(values: Array, ids: Labels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest value at every place of `ids`, flat."""
    xp = namespace_of(values)
    axes = tuple(axis for axis in range(values.ndim) if ids.shape[axis] == 1)
    if not values.size:
        return np.full(ids.size, np.inf), np.full(ids.size, -np.inf)
    low, high = (to_numpy(f(values, axis=axes)).reshape(-1).astype(np.float64) for f in (xp.min, xp.max))
    return low, high


def channel_scales(
    spread: NDArray[np.float64], size: NDArray[np.float64] | None = None, bounded: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """s of every channel: its spread (its `size` where it has none), at least `FLOOR` of the largest among its like.

    `bounded` are the channels that stay within 0 and 1.
    """
    bounded = np.zeros(len(spread), dtype=np.bool_) if bounded is None else bounded
    scale = np.array(spread if size is None else np.where(spread > 0, spread, size))
    positive = np.flatnonzero(scale > 0)
    for run in _runs(scale[positive], LIKE):
        scale[positive[run]] = np.sqrt(np.mean(scale[positive[run]] ** 2))
    # Where nothing varies, as in a single sample, sizes are what happened to come out, and no scales.
    varies = bool((spread > 0).any())
    bounded = bounded if varies else np.zeros_like(bounded)
    floor = np.zeros(len(scale))
    floor[bounded] = FLOOR * scale[bounded].max(initial=0.0)
    others = np.flatnonzero(~bounded & (scale > 0))
    for part in _runs(scale[others], APART if varies else np.inf):
        floor[others[part]] = FLOOR * scale[others[part]].max()
    floor[scale < DEAD * scale.max(initial=0.0)] = FLOOR * scale.max(initial=0.0)
    scale = np.maximum(scale, floor)
    return np.asarray(np.where(scale > 0, scale, scale.max(initial=0.0) or 1.0), dtype=np.float64)


def _runs(scale: NDArray[np.float64], step: float) -> list[NDArray[np.int64]]:
    """Indices in runs of neighbouring sizes, without a step above `step` inside a run; the smallest first."""
    order = np.argsort(scale, kind="stable")
    breaks = np.flatnonzero(scale[order][1:] > step * scale[order][:-1]) + 1
    return [run for run in np.split(order, breaks) if len(run)]
