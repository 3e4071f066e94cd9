"""How long a command will take here, from what was timed just now.

A full run looks at the samples and probes (which `advise` has done, on the same samples), solves as the trial did on
more samples, refines, checks and times. Refinement takes the most, and as many steps whatever the samples are:

    seconds = looked + solved * REFINING + CHECKING

with the seconds that the trial's solve took (`solved`). The factors were set by hand, near what the runs of
`tools/benchmarks/advise.py` took; for recurrent layers, whose steps go through time, it is larger. On a busy machine
runs took up to four times as long (docs/advise.md): enough to tell a minute from an hour.
"""

from __future__ import annotations

REFINING, RECURRENT = 8.0, 35.0
CHECKING = 5.0
BACKWARDS = 1.0
"""Seconds of a step back and forth in PyTorch, as a multiple of what its multiply-adds take onnxruntime forwards."""


def shrink_seconds(looked: float, solved: float, *, recurrent: bool) -> float:
    """Seconds of `shrink`: `looked` and `solved` as timed; `recurrent`: whether such layers get narrower."""
    return looked + solved * (RECURRENT if recurrent else REFINING) + CHECKING


def heal_seconds(one: float, shown: int, share: float) -> float:
    """Seconds in which a model of this `share` of the multiply-adds is `shown` so many samples; `one` takes the
    original so long."""
    return shown * one * (1 + BACKWARDS * 3 * share)


def quantize_seconds(few: float, share: float) -> float:
    """Seconds of `quantize`, which took `few` seconds now, and has this `share` of samples for each of those."""
    return few * max(share, 1.0) + CHECKING
