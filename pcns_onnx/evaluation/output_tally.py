"""How close one output of two models is: what is counted over the batches, and what is said of it.

Errors are shares of how much each channel varies in the original (`calibration.output_scale`); of texts, indices and
truth values they are how often the two differ.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.output_scale import OutputScale
from pcns_onnx.data.padding import Live, PositionAxes
from pcns_onnx.errors import InputError
from pcns_onnx.evaluation.batch_axis import by_sample, with_samples_first
from pcns_onnx.evaluation.counts import Counts, CountTally
from pcns_onnx.evaluation.decisions import DecisionRule, DecisionTally, Kind
from pcns_onnx.numerics.arrays import has_unit_rows, without_common_infinities
from pcns_onnx.numerics.confidence import LEAST, quantile_bound, share_bound

Values = NDArray[Any]
_WORST = 8
"""How many of the samples with the largest errors are named."""
_CHANNELS = 3
"""How many of the channels with the largest errors are named."""


class WorstSample(msgspec.Struct, frozen=True):
    """A sample, counted from 0 in the order of the check, and the relative error of one output there.

    None where the original is zero and the other is not.
    """

    sample: int
    error: float | None


class WorstChannel(msgspec.Struct, frozen=True):
    """A channel, counted from 0 along the output's feature axis: its error as a share of how much it varies."""

    channel: int
    error: float


class ChannelPart(msgspec.Struct, frozen=True):
    """Channels of like scale: how many there are, the first of them, and the largest spread of one."""

    first: int
    count: int
    spread: float


class OutputAgreement(msgspec.Struct, frozen=True):
    """How close one output of B is to the same output of A.

    `relative_error`: each channel in its own scale. With 95 % confidence the arg-max differs on at most a share
    `argmax_bound` of all samples (so that no accuracy can drop by more), and 95 % of all samples have a relative error
    of at most `error_bound`; see `confidence`. `worst`, `channels`: the samples and the channels that it errs on most,
    the worst first. `parts`: its channels by scale where these differ much. `decision`: what the output decides, and
    `flips` the share of its decisions that differ; `unusual_flips` of those that are not the most common one in both.
    With 95 % confidence a share of at most `flip_bound` of all samples is decided otherwise (one decision per sample,
    other than arg-max). `feeds`: how many there were, where its values cannot be told apart by sample. `counts`: where
    both find different numbers of rows, in place of errors; tensors in front of the output are compared instead, with
    the name of the output that each `stands_for`. `weight`: how much it counts by the user's word.

    None is what is not known: the relative error where the original is zero, the cosine of single numbers.
    """

    name: str
    relative_error: float | None
    cosine: float | None
    argmax_agreement: float | None
    argmax_bound: float | None = None
    error_bound: float | None = None
    worst: list[WorstSample] = []
    decision: Kind | None = None
    flips: float | None = None
    unusual_flips: float | None = None
    flip_bound: float | None = None
    feeds: int | None = None
    counts: Counts | None = None
    stands_for: str | None = None
    weight: float = 1.0
    channels: list[WorstChannel] = []
    parts: list[ChannelPart] = []


class OutputTally:
    """One output of two models over all batches.

    `axis` counts samples (None where none does), `rule` is what the output decides, `scale` what errors are measured
    by. `is_counted`: the output's size may differ. `stands_for`: the output that this tensor is compared instead of.
    `place`: where it has positions that may be padding.
    """

    def __init__(
        self,
        name: str,
        axis: int | None,
        rule: DecisionRule | None,
        scale: OutputScale,
        *,
        is_counted: bool = False,
        stands_for: str | None = None,
        place: PositionAxes | None = None,
    ) -> None:
        self.name, self.axis, self.scale, self.stands_for, self.place = name, axis, scale, stands_for, place
        self.counted = CountTally() if is_counted else None
        self.decisions = None if rule is None else DecisionTally(rule)
        self.cosine = 0.0
        self.angles = self.rows = self.same = 0
        self.classes = self.by_feed = False
        self.missed = np.zeros(len(scale.scale))
        self.errors: list[NDArray[np.float64]] = []
        self.differs: list[NDArray[np.bool_]] = []
        self.proving: list[NDArray[np.bool_]] = []
        self.numbers: list[NDArray[np.int64]] = []

    def update(
        self,
        a: NDArray[Any],
        b: NDArray[Any],
        proving: NDArray[np.bool_],
        numbers: NDArray[np.int64] | None = None,
        live: Live | None = None,
    ) -> None:
        """Add a batch; `proving` (samples,) says which of its samples count for bounds.

        `numbers` (samples,) are theirs in the order of the data, where they do not come in that; `live` which of their
        positions count.
        """
        if self.counted is not None:
            self.counted.update(a.shape, b.shape)
        if a.shape != b.shape:
            if self.counted is not None:
                return
            raise InputError(f"output '{self.name}' has shape {a.shape} in one model and {b.shape} in the other")
        if not a.size:
            return
        (first, second), (a, b) = self._counting(a, b, live)
        flips = None if self.decisions is None else self.decisions.update(first, second)
        missed = self._missed(a, b, len(proving))
        self._number(len(missed), numbers)
        self.by_feed |= len(missed) != len(proving)
        proving = proving if len(missed) == len(proving) else np.array([proving.all()])
        self.missed += missed.sum(axis=0)
        self.errors.append(np.sqrt(self.scale.per_sample(missed)))
        self._add_cosines(a, b, len(proving))
        by_row = self.axis == 0 or len(proving) == 1
        is_scores = a.ndim == 2 and a.shape[1] > 1 and a.dtype.kind == "f" and not has_unit_rows(a)
        self.classes = by_row and is_scores  # the largest of an embedding is no class
        if self.classes:
            if self.place is not None and self.place.positions is None:
                a, b = first, second  # a row of classes for every position
            same = a.argmax(axis=1) == b.argmax(axis=1)
            self.rows, self.same = self.rows + len(same), self.same + int(same.sum())
            flips = ~same
        if flips is not None and len(flips) == len(missed):
            self.differs.append(flips)
        self.proving.append(proving)

    def _counting(self, a: Values, b: Values, live: Live | None) -> tuple[tuple[Values, Values], tuple[Values, Values]]:
        """Both outputs with what counts alone, and with zeros where nothing does."""
        place = self.place
        if place is None or live is None or not place.fits(a.shape, live):
            return (a, b), (a, b)
        return (place.only(a, live), place.only(b, live)), (place.filled(a, live), place.filled(b, live))

    def _number(self, rows: int, numbers: NDArray[np.int64] | None) -> None:
        done = sum(map(len, self.numbers))
        fits = numbers is not None and len(numbers) == rows
        self.numbers.append(numbers if numbers is not None and fits else np.arange(done, done + rows))

    def _missed(self, a: NDArray[Any], b: NDArray[Any], size: int) -> NDArray[np.float64]:
        """(samples, channels); one row where the samples cannot be told apart."""
        missed = self.scale.missed(with_samples_first(a, self.axis), with_samples_first(b, self.axis))
        if len(missed) == size:
            return missed
        rows = missed.reshape(size if len(missed) % size == 0 else 1, -1, missed.shape[1])
        return np.asarray(rows.sum(axis=1), dtype=np.float64)

    def _add_cosines(self, a: NDArray[Any], b: NDArray[Any], size: int) -> None:
        """A single number has a sign and no direction, and nothing has none."""
        if a.dtype.kind in "OSU":
            a, b = np.ones(a.shape, dtype=np.int64), np.asarray(a == b, dtype=np.int64)
        x, y = without_common_infinities(*(by_sample(values, self.axis, size) for values in (a, b)))
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        directed = (np.abs(x).max(axis=1, initial=0) > 0) | (np.abs(y).max(axis=1, initial=0) > 0)
        if x.shape[1] > 1:
            self.cosine += float(((x * y).sum(axis=1) / np.maximum(norms, 1e-300))[directed].sum())
            self.angles += int(directed.sum())

    def result(self) -> OutputAgreement:
        """What is said of the output."""
        counts = None if self.counted is None else self.counted.result()
        if counts is not None:
            return OutputAgreement(self.name, None, None, None, counts=counts, stands_for=self.stands_for)
        decided = self.decisions if self.decisions is not None and self.decisions.count else None
        share, error = self._bounds()
        errors = np.concatenate(self.errors) if self.errors else np.zeros(1)
        whole = float(np.mean(errors**2) ** 0.5)
        return OutputAgreement(
            self.name,
            whole if np.isfinite(whole) else None,
            self.cosine / self.angles if self.angles else None,
            self.same / self.rows if self.classes and self.rows else None,
            share if self.classes else None,
            error,
            self._worst(),
            None if decided is None else decided.rule.kind,
            None if decided is None else decided.share,
            None if decided is None else decided.share_of_unusual,
            None if self.classes else share,
            sum(map(len, self.proving)) if self.by_feed else None,
            stands_for=self.stands_for,
            weight=self.scale.importance,
            channels=self._worst_channels(),
            parts=self._parts(),
        )

    def _bounds(self) -> tuple[float | None, float | None]:
        """For new samples: the share that is decided otherwise, and what 95 % of them err by at most."""
        proving = np.concatenate(self.proving) if self.proving else np.zeros(0, dtype=np.bool_)
        if proving.sum() < LEAST:
            return None, None
        differs = np.concatenate(self.differs) if self.differs else np.zeros(0, dtype=np.bool_)
        share = None
        if len(differs) == len(proving):
            share = share_bound(int(differs[proving].sum()), int(proving.sum()))
        error = quantile_bound(np.concatenate(self.errors)[proving])
        return share, error if error is not None and np.isfinite(error) else None

    def _worst(self) -> list[WorstSample]:
        if not self.errors:
            return []
        errors, numbers = np.concatenate(self.errors), np.concatenate(self.numbers)
        worst = np.lexsort((numbers, -errors))[:_WORST]
        return [WorstSample(int(numbers[i]), float(errors[i]) if np.isfinite(errors[i]) else None) for i in worst]

    def _worst_channels(self) -> list[WorstChannel]:
        if len(self.missed) < 2 or not self.scale.whole:
            return []
        errors, places = self.scale.by_channel(self.missed), self.scale.first_places()
        worst = np.argsort(-errors, kind="stable")[:_CHANNELS]
        return [WorstChannel(int(places[i]), float(errors[i])) for i in worst if errors[i] > 0]

    def _parts(self) -> list[ChannelPart]:
        parts, places, extents = self.scale.parts(), self.scale.first_places(), self.scale.extents()
        if len(parts) < 2:
            return []
        return [
            ChannelPart(int(places[part].min()), int(extents[part].sum()), float(self.scale.spread[part].max()))
            for part in parts
        ]
