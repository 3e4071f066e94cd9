"""What held-out samples prove about new ones: exact, distribution-free bounds.

Samples that neither the solve nor a choice has seen are independent draws, so

* the share of all samples on which something happens is, with confidence c, at most the
  Clopper-Pearson bound: the p at which k or fewer of n would have probability 1 - c;
* at least a share s of all samples have a value no larger than the k-th smallest of n, for the
  least k with P(Binomial(n, s) < k) >= c (Wilks 1941).

One of n samples may differ by chance: n without a difference give 1 - 0.05^(1/n), which is 95 % for one sample and
14 % for 20. Fewer than `LEAST` say nothing that is worth a number.

Both hold after the fact ("a posteriori"), for any network and any method. They hold for one look:
whoever tries many models and takes the best on the same samples has to keep others for the proof
(`evaluation.unseen` counts those).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, betaincinv

CONFIDENCE = 0.95
SHARE = 0.95
LEAST = 20
"""Samples below which no bound is given."""
ENOUGH = 59
"""Samples from which on both bounds are given."""


def share_bound(count: int, of: int, confidence: float = CONFIDENCE) -> float:
    """The largest share of all samples that is likely where `count` of `of` held-out ones were hit."""
    return 1.0 if count >= of else float(betaincinv(count + 1, of - count, confidence))


def quantile_bound(values: NDArray[np.float64], share: float = SHARE, confidence: float = CONFIDENCE) -> float | None:
    """A value that at least `share` of all samples do not exceed; None where there are too few (under 59 at 95 %)."""
    ordered = np.sort(values)
    n = len(ordered)
    enough = np.flatnonzero(bdtr(np.arange(n), n, share) >= confidence) if n else np.zeros(0, dtype=np.int64)
    return float(ordered[enough[0]]) if len(enough) else None
