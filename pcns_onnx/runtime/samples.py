"""Samples as one model takes them: in batches of one size, and at sampled positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.data.batch import Batch
from pcns_onnx.data.dataset import Dataset
from pcns_onnx.data.fingerprints import SampleSummary, summarize
from pcns_onnx.data.padding import arranged
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph

KEPT = 1 << 25
"""Bytes of batches that are kept from one pass to the next; larger data is read anew."""


Form = Literal["given", "cut", "sorted"]
"""How padded samples come: as they are, without what is padding in a whole batch, or also sorted by length."""


@dataclass(frozen=True)
class Samples:
    """A dataset as one model takes it: in batches of `batch`, whole ones only if `fixed`; `form` of what is padded."""

    data: Dataset
    batch: int
    fixed: bool = False
    form: Form = "given"
    _kept: list[Batch] = field(default_factory=list, repr=False, compare=False)

    def __iter__(self) -> Iterator[Batch]:
        if self._kept:
            yield from self._kept
            return
        kept: list[Batch] = []
        size = 0
        for batch in self._batches():
            size += sum(array.nbytes for array in batch.feeds.values())
            if size <= KEPT:
                kept.append(batch)
            yield batch
        if size <= KEPT and not self._kept:
            self._kept.extend(kept)

    def _batches(self) -> Iterator[Batch]:
        whole = (batch for batch in self.data.batches(self.batch) if not self.fixed or batch.size == self.batch)
        padding = self.data.padding
        if padding is None or not padding.cuts or self.form == "given":
            return whole
        return map(padding.cut, whole) if self.form == "cut" else arranged(whole, padding, self.batch)

    def formed(self, form: Form) -> Samples:
        """The same samples in this form."""
        return self if form == self.form else replace(self, form=form, _kept=[])

    @property
    def batches(self) -> int:
        """Number of batches in one pass, for progress."""
        return -(-self.count // self.batch)

    @property
    def count(self) -> int:
        """Samples that are used; reads the data once where its length is not known."""
        if self.data.count is None:
            return sum(batch.size for batch in self)
        return self.data.count - (self.data.count % self.batch if self.fixed else 0)

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """How many positions of each sample count, None where that is not known; reads the data once."""
        padding = self.data.padding
        if padding is not None and self.data.lengths is None:
            self.data.lengths = np.concatenate([padding.live(batch.feeds).sum(axis=1) for batch in self])
        return self.data.lengths

    @property
    def summary(self) -> SampleSummary:
        """What tells these samples apart; reads the data once."""
        whole = self.batch if self.fixed else None
        if whole not in self.data.summaries:
            self.data.summaries[whole] = summarize(self.formed("given"), self.data.settings, self.data.padding)
        return self.data.summaries[whole]


class Positions:
    """Which output positions of a layer are sampled in each batch: seeded, the same for any run.

    As many per sample are drawn anew for every batch, out of those that its samples have. Where `lengths` (samples,)
    say how many of these count, `of_live` are drawn of them, which comes to as many rows in all.
    """

    def __init__(
        self, wanted_rows: int, samples: int, seed: tuple[int, ...], lengths: NDArray[np.int64] | None = None
    ) -> None:
        self._per_sample = self.of_live = max(1, -(-wanted_rows // max(samples, 1)))
        if lengths is not None:
            self.of_live = _filling(wanted_rows, lengths)
        self.samples = samples
        self._seed = seed

    def draw(self, batch: int, available: int) -> NDArray[np.int64] | None:
        """Sorted positions out of `available` for one batch; None means all of them."""
        if self._per_sample >= available:
            return None
        return self.choose(batch, np.arange(available, dtype=np.int64), self._per_sample)

    def choose(self, batch: int, places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """Sorted `count` of the places for one batch; all of them where there are no more."""
        if count >= len(places):
            return places
        generator = np.random.default_rng([*self._seed, batch])
        return np.sort(generator.choice(places, count, replace=False)).astype(np.int64)


def _filling(wanted: int, lengths: NDArray[np.int64]) -> int:
    """The fewest positions of every sample, as far as it has them, that come to `wanted` rows; else all."""
    counts = np.bincount(np.asarray(lengths, dtype=np.int64))
    longer = np.cumsum(counts[::-1])[::-1][1:]  # how many samples have a first, a second, ... position
    enough = int(np.searchsorted(np.cumsum(longer), wanted)) + 1
    return min(enough, max(len(longer), 1))


def fixed_batch(*graphs: Graph) -> int | None:
    """The batch that the first of these models with a fixed one takes."""
    return next((graph.layout.fixed for graph in graphs if graph.layout.fixed is not None), None)


def samples_of(dataset: Dataset, batch: int, *graphs: Graph) -> Samples:
    """Batches as the models take them: a model with a fixed batch is fed in that."""
    fixed = fixed_batch(*graphs)
    samples = Samples(dataset, fixed or (1 if dataset.is_single else batch), fixed is not None)
    if samples.count == 0:
        raise InputError(f"the model takes batches of exactly {fixed} samples and the data holds fewer: give more")
    return samples


def at_latency_batch(samples: Samples, wanted: int | None) -> Samples:
    """The same samples in the batches that latency is measured at: of `wanted`, or as they are."""
    batch = samples.batch if samples.fixed or samples.data.is_single else wanted or samples.batch
    return replace(samples, batch=batch, form="given", _kept=[])
