"""What a full run will lose, from a trial on a few samples: one formula, its numbers, and where they come from.

A trial solves the narrow model on at most 256 samples without refinement (`planning.trial`) and is judged on others.
The full run has all samples and refines, which wins some of the loss back. With s the share that the trial loses
(`losses`), the full run is expected to lose

    p = (s + d) * factor - d,    in 80 of 100 cases between (s + d) * low - d and (s + d) * high - d.

d (`offset_of`) stands for what so few samples cannot show; of what is counted, the ends are at least one sample away.
`factor` is the geometric mean of (full + d) / (trial + d) over the runs of `python tools/benchmarks/advise.py`, `low`
and `high` are its quantiles at 10 and 90 %, widened by the quantile's own error; docs/advise.md has the runs and how
often the interval held for models that were left out of the fit. int8 is not predicted: it is made and measured.
Healing wins back about half of what is lost: in the eight rows of docs/heal.md that say what was lost before and after,
0.25 to 0.70 of it stayed, 0.44 as a geometric mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter

import msgspec

from pcns_onnx.report.advice.losses import Measure, MeasuredLoss

OFFSET, COUNTED = 0.003, 1.0
"""d is `OFFSET`, and for what is counted one sample more."""


def offset_of(loss: MeasuredLoss) -> float:
    """d of a trial."""
    return OFFSET + (0.0 if loss.measure == "error" else COUNTED / max(loss.samples, 1))


@dataclass(frozen=True)
class Correction:
    """What a loss is multiplied by: as expected, and at both ends of the interval."""

    factor: float
    low: float
    high: float


REFINED: Mapping[Measure, Correction] = {
    "score": Correction(0.87, 0.53, 1.45),
    "decisions": Correction(0.97, 0.54, 1.47),
    "error": Correction(0.88, 0.61, 1.10),
}
"""From a trial to the full run, by what is lost."""
QUANTIZED = Correction(1.0, 0.6, 1.6)
"""From int8 made on a few samples to int8 made on all."""
HEALED = Correction(0.44, 0.25, 0.70)
"""From the full run to the healed model."""


class PredictedLoss(msgspec.Struct, frozen=True):
    """Shares that are expected to be lost: the likeliest, and the ends of an interval that holds in 80 of 100 cases.

    `trial` is what it was predicted from, None where nothing had to be predicted.
    """

    measure: Measure
    share: float
    low: float
    high: float
    score: float | None = None
    trial: MeasuredLoss | None = None

    def allowed_by(self, limit: float) -> bool:
        """Whether the upper end is within a limit."""
        return self.high <= limit


def predicted(trial: MeasuredLoss, *corrections: Correction) -> PredictedLoss:
    """The loss that `corrections`, one after the other, make of a trial's."""
    offset = offset_of(trial)
    base = max(trial.share, 0.0) + offset
    expected = math.prod(correction.factor for correction in corrections)
    # Spreads are independent: their logarithms add up as squares.
    below, above = (
        math.hypot(*(math.log(end(correction) / correction.factor) for correction in corrections))
        for end in (attrgetter("low"), attrgetter("high"))
    )
    low, high = expected * math.exp(-below), expected * math.exp(above)
    most = 1.0 if trial.measure != "error" else float("inf")
    share, lower, upper = (base * times - offset for times in (expected, low, high))
    one = 0.0 if trial.measure == "error" else 1.0 / max(trial.samples, 1)
    ends = (share, min(lower, share - one), max(upper, share + one))
    share, lower, upper = (min(max(end, 0.0), most) for end in ends)
    return PredictedLoss(trial.measure, share, lower, upper, trial.score, trial)


def no_loss(measure: Measure, score: float | None) -> PredictedLoss:
    """What the original loses."""
    return PredictedLoss(measure, 0.0, 0.0, 0.0, score)
