"""Samples to learn from, in an order that the seed decides.

What fits in `room` is kept and drawn from in a fresh permutation every time round. A larger pool is read block by
block, each as large as the room, and shuffled inside the block: memory does not grow with the pool, and the order is
the same in every run.

Where padding may be cut off, a step is cut to its longest sample; so that this takes much away, steps have samples of
like length (bucketing): of every few steps in the order drawn, samples are sorted by length and dealt out anew, and
these steps come in a drawn order, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.data.batch import Batch, joined
from pcns_onnx.data.padding import Padding
from pcns_onnx.errors import InputError
from pcns_onnx.runtime.samples import Samples

Numbers = NDArray[np.int64]

_BUCKETS = 16
"""Steps that samples of like length are gathered from, at most a quarter of those of a block."""


@dataclass(frozen=True)
class Shown:
    """Samples that are run at once: `rows` of the group `group` in a block."""

    batch: Batch
    group: int
    rows: Numbers


@dataclass(frozen=True)
class Block:
    """Samples in memory: groups that can be run at once, drawn in units of `unit` samples.

    `single`: no two units are run at once. What is `padding` in all samples of a run is cut off, if it may be.
    """

    groups: Sequence[Batch]
    unit: int = 1
    single: bool = False
    padding: Padding | None = None
    starts: Numbers = field(init=False)
    lengths: Numbers | None = field(init=False)
    """(units,): what is left of each if padding is cut off; None where nothing is."""

    def __post_init__(self) -> None:
        sizes = [group.size // self.unit for group in self.groups]
        object.__setattr__(self, "starts", np.concatenate([[0], np.cumsum(sizes)]))
        object.__setattr__(self, "lengths", self._lengths())

    @property
    def units(self) -> int:
        """How many draws there are in it."""
        return int(self.starts[-1])

    def take(self, units: Numbers) -> list[Shown]:
        """These units, as they can be run."""
        pieces = []
        for group, batch in enumerate(self.groups):
            chosen = units[(units >= self.starts[group]) & (units < self.starts[group + 1])] - self.starts[group]
            parts = chosen.reshape(-1, 1) if self.single else chosen[None] if len(chosen) else ()
            for part in parts:
                rows = (part[:, None] * self.unit + np.arange(self.unit)).reshape(-1)
                pieces.append(Shown(self._cut(batch.rows(rows)), group, rows))
        return pieces

    def _lengths(self) -> Numbers | None:
        if self.padding is None or not self.padding.cuts or not self.padding.axes:
            return None
        lengths = list[Numbers]()
        for group in self.groups:
            first, last = self.padding.extents(group)
            whole = group.size // self.unit * self.unit
            lengths.append((last - first)[:whole].reshape(-1, self.unit).max(axis=1))
        return np.concatenate(lengths)

    def _cut(self, batch: Batch) -> Batch:
        return batch if self.padding is None else self.padding.cut(batch)

    def chunks(self, size: int) -> Iterator[tuple[int, Batch]]:
        """All samples in runs of about `size`, in order, each with the number of its group."""
        step = self.unit if self.single else max(size, 1)
        for number, group in enumerate(self.groups):
            for start in range(0, group.size, step):
                yield number, self._cut(group.rows(slice(start, start + step)))


class Pool:
    """The samples of a run, drawn over and over."""

    def __init__(self, samples: Samples, room: int, seed: int) -> None:
        self._samples, self._room, self._seed = samples, room, seed
        self.unit = samples.batch if samples.fixed else 1
        self._blocks = list(itertools.islice(self._read(), 2))
        if not self._blocks:
            raise InputError("there is no sample to learn from: give more data")
        self.whole = self._blocks[0] if len(self._blocks) == 1 else None
        if self.whole is None:
            self._blocks = []

    def _read(self) -> Iterator[Block]:
        """The samples in blocks of at most the room."""
        pieces, size = list[list[Batch]](), 0
        for batch in self._samples:
            bytes_of = sum(array.nbytes for array in batch.feeds.values())
            if pieces and size + bytes_of > self._room:
                yield self._block(pieces)
                pieces, size = [], 0
            if pieces and pieces[-1][0].goes_with(batch):
                pieces[-1].append(batch)
            else:
                pieces.append([batch])
            size += bytes_of
        if pieces:
            yield self._block(pieces)

    def _block(self, pieces: list[list[Batch]]) -> Block:
        single = self._samples.fixed or self._samples.data.is_single
        return Block([joined(group) for group in pieces], self.unit, single, self._samples.data.padding)

    def step(self, batch: int) -> int:
        """Samples of a step that asks for `batch`: whole units, and no more than there are."""
        size = max(1, batch // self.unit)
        return self.unit * (size if self.whole is None else min(size, self.whole.units))

    def draws(self, batch: int) -> Iterator[tuple[Block, Numbers]]:
        """Without end, the units of every step: `batch` samples, fewer only where a block has no more."""
        for turn in itertools.count():
            for number, block in enumerate(self._blocks or self._read()):
                generator = np.random.default_rng([self._seed, 2, turn, number])
                order, size = generator.permutation(block.units), max(1, batch // self.unit)
                if (lengths := block.lengths) is not None:
                    order = _bucketed(order, lengths, size, generator)
                for start in range(0, max(len(order) - size, 0) + 1, size):
                    yield block, order[start : start + size]


def _bucketed(order: Numbers, lengths: Numbers, size: int, generator: np.random.Generator) -> Numbers:
    """The same units in steps of `size` whose samples are of like length; what fills no step stays at the end."""
    steps = len(order) // size
    span, dealt = size * min(_BUCKETS, max(1, steps // 4)), list[Numbers]()
    for start in range(0, steps * size, span):
        drawn = order[start : min(start + span, steps * size)]
        alike = drawn[np.argsort(lengths[drawn], kind="stable")].reshape(-1, size)
        dealt.append(generator.permutation(alike).reshape(-1))
    return np.concatenate([*dealt, order[steps * size :]])
