"""Datasets: parts re-cut into batches of one size, and datasets that are rows of another.

    batches(size) = recut(stream(size), size)      stream = the parent's rows, filtered

A stream yields batches of whatever size comes easily; only `Dataset.batches` cuts to measure, so a subset or
a held-out share costs one mask per run and no copy of the data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain, islice, takewhile
from typing import TypeAlias

import numpy as np

from pcns_onnx.data.batch import Batch, recut
from pcns_onnx.data.columns import LABELS, Array, Column, Part
from pcns_onnx.data.conform import Normalize, check_classes, convert, is_floating, match
from pcns_onnx.data.fingerprints import SampleSummary
from pcns_onnx.data.formats.preprocess import Preprocess
from pcns_onnx.data.padding import Padding
from pcns_onnx.data.placement import Placement, unrolled
from pcns_onnx.data.sources import DataSource, find_source
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Layout, TensorSpec
from pcns_onnx.graph.layout import layout_of

Stream: TypeAlias = Callable[[int], Iterator[Batch]]


class Dataset:
    """Samples that can be streamed any number of times, always the same ones in the same order.

    `count` is the number of samples, None while unknown (feeds, until one pass has been made), `has_labels`
    says whether batches carry labels, and `ignored` names the arrays that are no input of the model. `layout` tells
    where the samples lie in the model's inputs (None: along their first axes), and `is_single` that they are to be
    run one by one. `settings` are the inputs that are meant to be the same in every run, `notes` what
    the user should know. `padding`: what of the samples does not count, where that is known.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        count: int | None,
        has_labels: bool,
        ignored: tuple[str, ...] = (),
        layout: Layout | None = None,
        is_single: bool = False,
        settings: frozenset[str] = frozenset(),
        notes: tuple[str, ...] = (),
        padding: Padding | None = None,
    ) -> None:
        """Wrap `stream(size)`, which starts a pass in runs of any length, preferably `size`."""
        self.stream = stream
        self.count = count
        self.has_labels = has_labels
        self.ignored = ignored
        self.layout = layout
        self.is_single = is_single or (layout is not None and layout.whole)
        self.settings = settings
        self.padding = padding
        self.lengths: Array | None = None
        self.summaries: dict[int | None, SampleSummary] = {}
        self.notes = notes

    def one_by_one(self) -> Dataset:
        """The same samples, of which no two are run at once."""
        return self.streaming(self.stream, is_single=True)

    def padded(self, padding: Padding | None) -> Dataset:
        """The same samples, of which it is known what is padding."""
        dataset = self.streaming(self.stream)
        dataset.padding = padding
        return dataset

    def streaming(self, stream: Stream, *, is_single: bool = False) -> Dataset:
        """The same samples in another form."""
        return Dataset(
            stream,
            count=self.count,
            has_labels=self.has_labels,
            ignored=self.ignored,
            layout=self.layout,
            is_single=self.is_single or is_single,
            settings=self.settings,
            padding=self.padding,
        )

    def batches(self, size: int) -> Iterator[Batch]:
        """A fresh pass in batches of `size` samples; the last one may be shorter.

        A batch is also cut short where the sizes of dynamic dimensions change, as between feeds of other
        sequence lengths. Raises InputError, also while iterating, for unusable values, no samples at all, and
        a source that gives another number of samples than in the pass before.
        """
        if size < 1:
            raise InputError(f"a batch of {size} samples is impossible: give a batch size of at least 1")
        return self._counted(recut(self.stream(size), size))

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
    feeding: Feeding | None = None,
) -> Dataset:
    """Open `source` (see `DataSource`) as samples for a model with these `inputs`.

    Where the samples lie in each input, `feeding` says or the names of its sizes (`graph.layout`); the other axes must
    be the inputs'. Floats convert to the input's float dtype, integers to its integer dtype if in range, and uint8 to
    float by `normalize` only. `preprocess` says how files of images and texts become arrays. An integer
    array `labels` goes to `Batch.labels`. Files are checked at once by their headers, feeds by the first one
    (so a callable is called here); values are checked while streaming. Raises InputError.
    """
    feeding = feeding or Feeding(layout_of(inputs))
    varying = _fed(inputs, feeding)
    names = [spec.name for spec in varying]
    reader = find_source(source, varying, preprocess, feeding.carried)
    known = list(reader.parts() if reader.counted else islice(reader.parts(), 1))
    if not known:
        raise InputError("the data has no samples: it yields no feeds")
    has_labels = LABELS not in names and LABELS in known[0].columns

    def check(part: Part, feeding: Feeding) -> _Opened:
        if LABELS not in names and (LABELS in part.columns) != has_labels:
            verb = "lacks" if has_labels else "has"
            raise InputError(f"{part.where} {verb} `{LABELS}`, unlike the data before: label all or none")
        there = [spec for spec in varying if spec.name in part.columns or spec.name not in feeding.carried]
        if not feeding.carried:
            return _Opened(match(part, there, feeding.layout, normalize), there)
        steps, length = unrolled(part, there, feeding.layout, feeding.carried)
        resets = not part.is_feed or any(name in part.columns for name in feeding.carried)
        return _Opened(match(steps, there, feeding.layout, normalize), there, length, resets)

    opened = [check(part, feeding) for part in known]
    if reader.counted:
        for part in opened:
            _check_labels(part.placement.labels, feeding.classes)
    if opened[0].placement.layout.whole:
        feeding = replace(feeding, layout=opened[0].placement.layout)
        opened = [check(part, feeding) for part in known]

    def stream(size: int) -> Iterator[Batch]:
        start = 0
        for part in reader.parts():
            opened = check(part, feeding)
            yield from _converted(opened, normalize, feeding, size, start)
            start += opened.placement.count

    return Dataset(
        stream,
        count=sum(part.placement.count for part in opened) if reader.counted else None,
        has_labels=has_labels,
        ignored=tuple(dict.fromkeys(chain.from_iterable(part.ignored for part in known))),
        layout=opened[0].placement.layout,
        settings=frozenset(spec.name for spec in inputs if spec.name not in feeding.carried) - _varying(opened[0]),
        notes=tuple(dict.fromkeys(part.note for part in known if part.note is not None)),
    )


def _varying(opened: _Opened) -> set[str]:
    return {name for name, placed in opened.placement.placed.items() if placed.count is not None}


@dataclass(frozen=True)
class Feeding:
    """How a model is fed: where samples lie, the `constants` of every run, and inputs that are `carried` over time.

    Labels are class numbers below `classes` (0: of whatever number; None: they are what the caller's metric takes).
    """

    layout: Layout
    constants: Mapping[str, Array] = field(default_factory=dict)
    carried: Sequence[str] = ()
    classes: int | None = None


def _check_labels(labels: Column | None, classes: int | None) -> None:
    """Refuse labels that are no class numbers before any work is done."""
    if labels is None or classes is None:
        return
    first = 0
    for run in labels.rows(1 << 16):
        check_classes(run, labels.where, first, classes)
        first += len(run)


def _fed(inputs: Sequence[TensorSpec], feeding: Feeding) -> list[TensorSpec]:
    """The inputs that the data has to have, if samples can be fed to them."""
    if not inputs:
        raise InputError("the model has no inputs: there is nothing to feed samples to")
    for spec in inputs:
        if spec.dtype.kind == "V" and not is_floating(spec.dtype):
            raise InputError(f"model input `{spec.name}` is no tensor: nothing can be fed to it")
    varying = [spec for spec in inputs if spec.name not in feeding.constants or spec.name in feeding.carried]
    if not any(spec.name not in feeding.carried for spec in varying):
        raise InputError("all inputs of the model are constants: leave out the one that the samples are for")
    return varying


@dataclass(frozen=True)
class _Opened:
    """A part that suits the model's `inputs`; a sequence begins with it if it `resets`, and every `length` samples."""

    placement: Placement
    inputs: Sequence[TensorSpec]
    length: int = 0
    resets: bool = True


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
        for run in data.stream(size):
            mask = np.zeros(run.size, bool)
            while coming is not None and coming < start + run.size:
                mask[coming - start] = True
                coming = next(chosen, None)
            start += run.size
            rows = mask if inside else ~mask
            if rows.any():
                yield run.rows(rows)
            if inside and coming is None:
                return

    count = data.count
    if count is not None:
        total = count
        chosen = sum(1 for _ in takewhile(lambda position: position < total, positions()))
        count = chosen if inside else total - chosen
    picked = data.streaming(stream)
    picked.count = count
    return picked


def _converted(
    opened: _Opened, normalize: Normalize | None, feeding: Feeding, size: int, start: int
) -> Iterator[Batch]:
    placement, first = opened.placement, 0
    placed, specs = placement.placed, {spec.name: spec for spec in opened.inputs}
    shared = {
        name: np.asarray(convert(value.column.whole()[None], specs[name], normalize, value.column.where, 0)[0])
        for name, value in placed.items()
        if value.count is None
    }
    fixed = {name: value for name, value in feeding.constants.items() if name not in {*placed, *feeding.carried}}
    for rows, run, labels in placement.runs(size):
        if labels is not None and placement.labels is not None and feeding.classes is not None:
            check_classes(labels, placement.labels.where, first, feeding.classes)
        feeds = dict[str, Array]()
        for spec in opened.inputs:
            one = placed[spec.name]
            feeds[spec.name] = (
                one.repeated(shared[spec.name], rows)
                if spec.name in shared
                else one.arranged(convert(run[spec.name], spec, normalize, one.column.where, first))
            )
        for name, value in fixed.items():
            axis = placement.layout.axes.get(name)
            feeds[name] = value if axis is None else np.ascontiguousarray(np.repeat(value, rows, axis))
        numbers = np.arange(first, first + rows)
        begins = (numbers % opened.length == 0) if opened.length else (numbers == 0) & (opened.resets or start == 0)
        yield Batch(
            feeds,
            None if labels is None else np.ascontiguousarray(labels),
            rows,
            start + numbers,
            placement.layout.axes,
            begins | ((numbers == 0) & (placement.count > 1)) if feeding.carried else None,
        )
        first += rows
