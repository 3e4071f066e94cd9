"""How long, in what steps, and at what rate.

Length is counted in samples shown, since that is what a run costs. By itself a run costs `EFFORT` multiply-adds, of
the student (forwards and backwards: three times its own) and of the original, within `LEAST` and `MOST` samples: 24,000
samples for a ResNet-20 of 20 million, 240,000 for a small perceptron; and each sample is shown `TURNS` times at most.
Steps count more than samples per step, so short runs take smaller steps. Models with attention go `EPOCHS` times
through their samples at least, up to `MOST_EPOCHS` samples: shorter runs end worse than they began (MiniLM-L6).

The rate of each tensor is `RATE` times its root mean square, at least `FLOOR` times the median of all tensors' (a bias
of zeros has to move, too): absolute rates that are right for one network destroy the next one whose folded norms leave
weights of other size. Over the steps it rises linearly (5 %), then falls as half a cosine to 0 (SGDR without restarts,
Loshchilov and Hutter 2017). Models with attention take `CALM` of that, and for no tensor more than for the median of
their matrices, since norms' gains are large beside these: that is 2e-4 for MiniLM-L6.

Where the loss on samples kept aside runs away, the best point is taken up again at a quarter of the rate. (1.5 times
the start's is no sign of that: good starts come to it at the peak rate, and end below.)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

EFFORT = 2.5e12
LEAST, MOST = 8_000, 240_000
TURNS = 100
"""How often each sample is shown at most, unless more is asked for: the largest that was of use was 67, by LeNet."""
EPOCHS, MOST_EPOCHS = 5, 40_000
UNKNOWN = 24_000
"""Samples shown where the multiply-adds are not known."""
BATCH = 64
_SMALLEST, _STEPS = 16, 200
"""The smallest batch that a short run comes down to, to have so many steps."""
RATE = 0.01
FLOOR = 0.02
CALM = 1 / 3
WARM_UP = 0.05
POINTS = 10
"""How often the samples kept aside are looked at."""
RUNAWAY = 2.0
"""Times the loss at the start, on samples kept aside, from which on a run is lost."""
LOUD = 0.05
"""So much of what saying the mean misses a lost run is worse by, besides: at the peak rate good starts lose more."""
RETRIES = 3
SLOWER = 0.25


def suitable(student: int, original: int, samples: int, *, unknown: bool, attends: bool = False) -> int:
    """How many samples to show where nobody says it: by the multiply-adds per sample of both models (`unknown`: these
    are not known), by how many there are, and by whether the model has attention."""
    cost, least = 3 * student + original, max(LEAST, min(EPOCHS * samples, MOST_EPOCHS) if attends else 0)
    updates = UNKNOWN if unknown or not cost else 100 * round(min(max(EFFORT / cost, least), MOST) / 100)
    return min(updates, TURNS * max(samples, 1))


@dataclass(frozen=True)
class Schedule:
    """`updates` samples shown, `batch` at a step."""

    updates: int
    batch: int

    @classmethod
    def of(cls, updates: int, batch: int | None) -> Schedule:
        """Steps of `batch` samples; of fewer than usual where a short run would have few, if None."""
        return cls(updates, batch or min(max(updates // _STEPS, _SMALLEST), BATCH))

    @property
    def steps(self) -> int:
        """Steps of the optimiser."""
        return max(1, -(-self.updates // self.batch))

    @property
    def points(self) -> list[int]:
        """After how many steps the samples kept aside are looked at."""
        return sorted({math.ceil(self.steps * (at + 1) / POINTS) for at in range(POINTS)})

    def factor(self, step: int, since: int = 0) -> float:
        """Of the peak rate, at a step from 0 on; `since` is the step at which a retry began, with a warm-up of its own.

        The sequence ends one step before 0.
        """
        warm = max(1, round(WARM_UP * self.steps))
        rising = min(1.0, (step - since + 1) / warm)
        return rising * 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / max(1, self.steps - warm)))


def is_lost(loss: float, start: float) -> bool:
    """Whether a run has run away: the loss on samples kept aside is no number, or far above that at the start."""
    return not loss <= max(RUNAWAY * start, start + LOUD)


def peak_rates(sizes: Mapping[str, float], matrices: Collection[str] = ()) -> dict[str, float]:
    """The peak rate of each tensor, from its root mean square; `matrices` are those of a model with attention."""
    typical = float(np.median([size for size in sizes.values() if size > 0] or [1.0]))
    rates = {name: RATE * max(size, FLOOR * typical) for name, size in sizes.items()}
    if not matrices:
        return rates
    most = float(np.median([rates[name] for name in matrices]))
    return {name: CALM * min(rate, most) for name, rate in rates.items()}
