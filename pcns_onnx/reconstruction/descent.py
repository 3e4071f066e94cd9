"""Adam with a cosine schedule that samples kept aside watch over: the loop of every refinement.

Weights are moved in whitened coordinates (`whitening`), at rates relative to their size there (Kingma and Ba 2015 for
the steps). Steps that worsen what is seen on samples kept aside are taken back at a quarter of the rate, and its best
point is the answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from pcns_onnx.numerics.adam import Adam
from pcns_onnx.numerics.arrays import Array
from pcns_onnx.reconstruction.whitening import Coordinates

RATE = 0.1
"""First step of a weight, relative to the root mean square of its matrix, per root of the error's share: the
closer the start, the smaller the steps."""
CHECKS = 20
"""How often the samples kept aside are looked at."""
PATIENCE = 8
"""So many looks without a better point end the descent: what samples kept aside do not gain from is learnt by heart."""
_TRIES = 4


class _Rows(Protocol):
    """Samples that a gradient is made of."""

    @property
    def rows(self) -> int:
        """How many rows of the target they have."""


P = TypeVar("P", bound=_Rows)


@dataclass(frozen=True)
class Descended:
    """The best weights, their error on samples kept aside, and how many steps were made."""

    weights: Sequence[Array]
    error: float
    steps: int


def descend(
    start: Sequence[Array],
    first: float,
    gradient: Callable[[Sequence[Array], P], Sequence[Array]],
    error: Callable[[Sequence[Array]], float],
    coordinates: Coordinates,
    sizes_of: Callable[[Sequence[Array]], Sequence[float]],
    train: Sequence[P],
    rows: int,
    steps: int,
    seed: tuple[int, ...],
) -> Descended:
    """At most `steps` steps from `start`, each on pieces of `train` that have `rows` rows or more together.

    `first` is the start's `error`, a share of the variance; `gradient` is half the derivative of a piece's sum of
    squares by each array. What is moved are the arrays in their `coordinates`; of these `sizes_of` says how far a step
    of one moves each.
    """
    best = moved = coordinates.into(start)
    sizes = sizes_of(moved)
    least, adam, rate, order = first, Adam(), RATE * min(first, 1.0) ** 0.5, list[int]()
    generator = np.random.default_rng(seed)
    every, failed, stale, done = max(1, steps // CHECKS), 0, 0, 0
    for step in range(steps):
        count, total = 0, list[Array]()
        while count < rows:
            order = order or [int(i) for i in generator.permutation(len(train))]
            piece = train[order.pop()]
            count += piece.rows
            slopes = coordinates.slopes(gradient(coordinates.back(moved), piece))
            total = [a + b for a, b in zip(total, slopes, strict=True)] if total else list(slopes)
            if not order:
                break
        pace = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        directions = adam.directions([slope / count for slope in total])
        moved = [now - (pace * size) * direction for now, size, direction in zip(moved, sizes, directions, strict=True)]
        if (step + 1) % every == 0 or step + 1 == steps:
            now_missed, done, stale = error(coordinates.back(moved)), step + 1, stale + 1
            if now_missed < least:
                best, least, failed, stale = moved, now_missed, 0, 0
            elif not now_missed < 1.05 * least:
                moved, adam, rate, failed = best, Adam(), rate / 4, failed + 1
            if failed == _TRIES or stale == PATIENCE:
                break
    return Descended(coordinates.back(best) if least < first else start, least, done)
