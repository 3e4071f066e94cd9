"""Match a contender to a number of MACs: bisection over how much it prunes.

All contenders get the same target and return the widest model that does not exceed it, so that none
wins by being larger. The search is no part of the work that is timed: a user knows the ratio they want.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Scores = Sequence[npt.NDArray[np.float64]]
"""Per layer, what each channel is worth; larger stays."""


class UnreachableError(Exception):
    """Not even the most that can be pruned is enough."""


def least_pruned(macs: Callable[[float], float], target: float, most: float = 1.0, steps: int = 8) -> float:
    """The smallest amount in (0, `most`] with `macs(amount)` at most `target`, to `most` / 8 / 2^steps.

    Some peers leave a layer whole when they would have to remove all of it, so that MACs do not fall all the
    way: the first eighth that is small enough is looked for, then bisected.
    """
    eighths = [most * part / 8 for part in range(1, 9)]
    left = []
    for high in eighths:
        left.append(macs(high))
        if left[-1] <= target:
            break
    else:
        raise UnreachableError(f"{min(left):,.0f} MACs are left at the most that it prunes, {target:,.0f} were wanted")
    low = high - most / 8
    for _ in range(steps):
        middle = (low + high) / 2
        if macs(middle) > target:
            low = middle
        else:
            high = middle
    return high


def keep(scores: Scores, amount: float, everywhere: bool) -> list[npt.NDArray[np.intp]]:
    """Which channels stay when the fraction `amount` goes: of every layer, or of all layers together by one threshold.

    At least one channel of every layer stays. Indices are ascending.
    """
    if everywhere:
        pool = np.sort(np.concatenate(list(scores)))
        bar = pool[min(int(amount * len(pool)), len(pool) - 1)]
        counts = [max(1, int((score >= bar).sum())) for score in scores]
    else:
        counts = [max(1, len(score) - int(amount * len(score))) for score in scores]
    order = [np.argsort(-score, kind="stable") for score in scores]
    return [np.sort(best[:count]) for best, count in zip(order, counts, strict=True)]
