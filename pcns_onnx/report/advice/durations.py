"""How long a command will take here, from what was timed just now.

A full run looks at the samples and probes (which `advise` has done, on the same samples), solves as the trial did on
more samples, refines, checks and times. Refinement takes the most; it has as many steps whatever the samples are. So

    seconds = looked + n / n_trial * solved * PER_SAMPLE + solved * REFINING + CHECKING

with the seconds that the trial's solve took (`solved`). The factors are least squares over the runs of
`tools/benchmarks/advise.py`; the true time lay within a factor of two of it for most (docs/advise.md).
"""

from __future__ import annotations

PER_SAMPLE = 0.5
REFINING = 5.0
CHECKING = 5.0
BACKWARDS = 2.0
"""Seconds of a step back and forth in PyTorch, as a multiple of what its multiply-adds take onnxruntime forwards."""


def shrink_seconds(looked: float, solved: float, share: float) -> float:
    """Seconds of `shrink`: `looked` and `solved` as timed, `share` the samples there are for each of the trial's."""
    return looked + solved * (PER_SAMPLE * share + REFINING) + CHECKING


def heal_seconds(one: float, shown: int, share: float) -> float:
    """Seconds in which a model of this `share` of the multiply-adds is `shown` so many samples; `one` takes the
    original so long."""
    return shown * one * (1 + BACKWARDS * 3 * share)


def quantize_seconds(few: float, share: float) -> float:
    """Seconds of `quantize`, which took `few` seconds now, and has this `share` of samples for each of those."""
    return few * max(share, 1.0) + CHECKING
