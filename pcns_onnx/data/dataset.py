"""Datasets: parts re-cut into batches of one size, and datasets that are rows of another.

    batches(size) = recut(stream(size), size)      stream = the parent's rows, filtered

A stream yields batches of whatever size comes easily; only `Dataset.batches` cuts to measure, so a subset or
a held-out share costs one mask per run and no copy of the data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice, takewhile
from typing import TypeAlias

import numpy as np

from pcns_onnx.data.columns import LABELS, Array, Part
from pcns_onnx.data.conform import Normalize, convert, match
from pcns_onnx.data.fingerprints import SampleSummary
from pcns_onnx.data.preprocess import Preprocess
from pcns_onnx.data.sources import DataSource, find_source
from pcns_onnx.errors import InputError
from pcns_onnx.graph import TensorSpec

Feeds: TypeAlias = dict[str, Array]


@dataclass(frozen=True)
class Batch:
    """Consecutive samples: `feeds` by input name, of the model's dtypes and C-contiguous, (size, ...) each.

    `labels` is an integer or bool array (size, ...) or None. Arrays may be read-only views of the source.
    `index` (size,) are the samples' numbers in the data as it was opened, from 0.
    """

    feeds: Feeds
    labels: Array | None
    size: int
    index: Array | None = None


Stream: TypeAlias = Callable[[int], Iterator[Batch]]


class Dataset:
    """Samples that can be streamed any number of times, always the same ones in the same order.

    `count` is the number of samples, None while unknown (feeds, until one pass has been made), `has_labels`
    says whether batches carry labels, and `ignored` names the arrays that are no input of the model.
    """

    def __init__(self, stream: Stream, *, count: int | None, has_labels: bool, ignored: tuple[str, ...] = ()) -> None:
        """Wrap `stream(size)`, which starts a pass in runs of any length, preferably `size`."""
        self._stream = stream
        self.count = count
        self.has_labels = has_labels
        self.ignored = ignored
        self.summaries: dict[int | None, SampleSummary] = {}

    def batches(self, size: int) -> Iterator[Batch]:
        """A fresh pass in batches of `size` samples; the last one may be shorter.

        A batch is also cut short where the sizes of dynamic dimensions change, as between feeds of other
        sequence lengths. Raises InputError, also while iterating, for unusable values, no samples at all, and
        a source that gives another number of samples than in the pass before.
        """
        if size < 1:
            raise InputError(f"a batch of {size} samples is impossible: give a batch size of at least 1")
        return self._counted(_recut(self._stream(size), size))

    def _counted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        count = 0
        for batch in batches:
            count += batch.size
            yield batch
        if not count:
            raise InputError("the data has no samples: give more, or hold out a larger share")
        if self.count not in (None, count):
            raise InputError(f"the data gave {self.count} samples and then {count}: it must not change between passes")
        self.count = count


def open_data(
    source: DataSource,
    inputs: Sequence[TensorSpec],
    *,
    normalize: Normalize | None = None,
    preprocess: Preprocess | None = None,
) -> Dataset:
    """Open `source` (see `DataSource`) as samples for a model with these `inputs`.

    Axis 0 of every array counts samples; the other axes must be the inputs'. Floats convert to the input's
    float dtype, integers to its integer dtype if in range, and uint8 to float by `normalize` only. `preprocess`
    says how files of images and texts become arrays. An integer
    array `labels` goes to `Batch.labels`. Files are checked at once by their headers, feeds by the first one
    (so a callable is called here); values are checked while streaming. Raises InputError.
    """
    names = _fed(inputs)
    reader = find_source(source, inputs, preprocess)
    known = list(reader.parts() if reader.counted else islice(reader.parts(), 1))
    if not known:
        raise InputError("the data has no samples: it yields no feeds")
    has_labels = LABELS not in names and LABELS in known[0].columns

    def check(part: Part) -> Part:
        match(part, inputs, normalize)
        if LABELS not in names and (LABELS in part.columns) != has_labels:
            verb = "lacks" if has_labels else "has"
            raise InputError(f"{part.where} {verb} `{LABELS}`, unlike the data before: label all or none")
        return part

    def stream(size: int) -> Iterator[Batch]:
        start = 0
        for part in map(check, reader.parts()):
            yield from _converted(part, inputs, normalize, LABELS if has_labels else None, size, start)
            start += part.count

    count = sum(check(part).count for part in known)
    ignored = tuple(dict.fromkeys(chain.from_iterable(part.ignored for part in known)))
    return Dataset(stream, count=count if reader.counted else None, has_labels=has_labels, ignored=ignored)


def _fed(inputs: Sequence[TensorSpec]) -> list[str]:
    """The names of the inputs, if samples can be fed to all of them."""
    if not inputs:
        raise InputError("the model has no inputs: there is nothing to feed samples to")
    for spec in inputs:
        if not spec.shape or spec.dtype.hasobject:
            raise InputError(f"model input `{spec.name}` has no batch axis or takes strings: make it a constant")
    return [spec.name for spec in inputs]


def split(data: Dataset, *, holdout: float, seed: int, samples: int | None = None) -> tuple[Dataset, Dataset | None]:
    """Keep `samples` of the data, then hold out a share: (the rest, the held-out part), both streaming.

    The subset is a seeded random one in the data's order, or the first `samples` where the count is unknown.
    Of every 1 / `holdout` consecutive samples, one at a seeded random position is held out, so the proportion
    is exact, the length need not be known, and periodic order does no harm. The second is None if `holdout`
    is 0 or there is but one sample. Raises InputError unless 0 <= holdout <= 0.5, samples >= 1 and seed >= 0.
    """
    if not 0 <= holdout <= 0.5:
        raise InputError(f"a holdout of {holdout} is impossible: give a share from 0 to 0.5")
    if samples is not None and samples < 1:
        raise InputError(f"{samples} samples are too few: give at least 1")
    if seed < 0:
        raise InputError(f"a seed of {seed} is impossible: give 0 or more")
    if samples is not None and (data.count is None or samples < data.count):
        data = _picked(data, _subset(data.count, samples, seed), inside=True)
    if not holdout or data.count == 1:
        return data, None
    held_out = _held_out(1 / Fraction(str(float(holdout))), data.count, seed)
    return _picked(data, held_out, inside=False), _picked(data, held_out, inside=True)


Positions: TypeAlias = Callable[[], Iterator[int]]
"""Sample indices in ascending order, from the start at each call; endless where the count is unknown."""


def _subset(count: int | None, samples: int, seed: int) -> Positions:
    if count is None:
        return lambda: iter(range(samples))
    chosen = np.sort(np.random.default_rng([seed, 0]).choice(count, samples, replace=False, shuffle=False))
    return lambda: map(int, chosen)


def _held_out(block: Fraction, count: int | None, seed: int) -> Positions:
    """One random position in each `block` consecutive samples (rounded up or down if that is a fraction)."""
    if count is not None and count < block:
        # Some sample must be held out, even if the data is less than a block.
        block = Fraction(count)

    def positions() -> Iterator[int]:
        generator = np.random.default_rng([seed, 1])
        start = 0
        for end in (math.floor(block * number) for number in itertools.count(1)):
            yield start + int(generator.integers(end - start))
            start = end

    return positions


def _picked(data: Dataset, positions: Positions, *, inside: bool) -> Dataset:
    """The samples of `data` at `positions`, or all others."""

    def stream(size: int) -> Iterator[Batch]:
        chosen = positions()
        coming = next(chosen, None)
        start = 0
        for run in data._stream(size):
            mask = np.zeros(run.size, bool)
            while coming is not None and coming < start + run.size:
                mask[coming - start] = True
                coming = next(chosen, None)
            start += run.size
            rows = mask if inside else ~mask
            if rows.any():
                yield _rows(run, rows)
            if inside and coming is None:
                return

    count = data.count
    if count is not None:
        total = count
        picked = sum(1 for _ in takewhile(lambda position: position < total, positions()))
        count = picked if inside else total - picked
    return Dataset(stream, count=count, has_labels=data.has_labels, ignored=data.ignored)


def _converted(
    part: Part, inputs: Sequence[TensorSpec], normalize: Normalize | None, labels: str | None, size: int, start: int
) -> Iterator[Batch]:
    first = 0
    for run in part.runs(size):
        feeds = {
            spec.name: convert(run[spec.name], spec, normalize, part.columns[spec.name].where, first) for spec in inputs
        }
        rows = len(feeds[inputs[0].name])
        index = np.arange(start + first, start + first + rows)
        yield Batch(feeds, None if labels is None else np.ascontiguousarray(run[labels]), rows, index)
        first += rows


def _recut(runs: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same samples in batches of `size`; shorter at the end and where the sizes of other axes change."""
    pieces: list[Batch] = []
    missing = size
    for run in runs:
        if pieces and _form(pieces[0]) != _form(run):
            yield _joined(pieces)
            pieces, missing = [], size
        start = 0
        while start < run.size:
            piece = _rows(run, slice(start, start + missing)) if start or run.size > missing else run
            pieces.append(piece)
            start += piece.size
            missing -= piece.size
            if not missing:
                yield _joined(pieces)
                pieces, missing = [], size
    if pieces:
        yield _joined(pieces)


def _form(batch: Batch) -> list[tuple[int, ...]]:
    return [array.shape[1:] for array in _arrays(batch)]


def _arrays(batch: Batch) -> list[Array]:
    return [*batch.feeds.values(), *([] if batch.labels is None else [batch.labels])]


def _rows(batch: Batch, rows: slice | Array) -> Batch:
    feeds = {name: array[rows] for name, array in batch.feeds.items()}
    labels = None if batch.labels is None else batch.labels[rows]
    index = None if batch.index is None else batch.index[rows]
    return Batch(feeds, labels, len(next(iter(feeds.values()))), index)


def _joined(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    feeds = {name: np.concatenate([batch.feeds[name] for batch in batches]) for name in first.feeds}
    labels = [batch.labels for batch in batches if batch.labels is not None]
    index = [batch.index for batch in batches if batch.index is not None]
    size = sum(batch.size for batch in batches)
    return Batch(feeds, np.concatenate(labels) if labels else None, size, np.concatenate(index) if index else None)
