"""Which samples of a check prove something about new ones.

A bound holds for samples that are independent draws and that nothing was chosen by. So a sample counts only if it is
none of those that the solve, a search or a plan has seen, and once only, however often it is there (samples are told
apart by `data.fingerprints`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.data.fingerprints import Hashes, SampleSummary
from pcns_onnx.numerics.confidence import LEAST

NO_BOUND = "nothing is said of new samples"


@dataclass(frozen=True)
class Unseen:
    """`proving` (n,): the samples of a check that count, in their order; `notes`: what became of the others."""

    proving: NDArray[np.bool_]
    notes: tuple[str, ...] = ()

    def without_bound(self, why: str | None) -> Unseen:
        """None of the samples counts, for this reason; as it is where there is none."""
        return self if why is None else Unseen(np.zeros_like(self.proving), (f"{why}: {NO_BOUND}",))


def unseen(
    checked: SampleSummary, used: Sequence[Hashes] = (), *, what: str = "the solve or a choice has seen"
) -> Unseen:
    """The samples that none of `used` holds, each once; `what` says who has seen those."""
    hashes = checked.hashes
    known = np.isin(hashes, np.concatenate(used)) if used else np.zeros(len(hashes), dtype=np.bool_)
    first = np.zeros(len(hashes), dtype=np.bool_)
    first[np.unique(hashes, return_index=True)[1]] = True
    proving = first & ~known
    used_count, count, total = int(known.sum()), int(proving.sum()), len(hashes)
    if used_count == total:
        return Unseen(
            proving, (f"all {total} samples of the check are among those that {what}: {NO_BOUND}; give others",)
        )
    repeated = total - used_count - count
    notes = []
    if used_count:
        notes.append(f"{used_count} of {total} samples of the check are among those that {what}: bounds leave them out")
    if repeated:
        notes.append(f"{repeated} of {total} samples of the check repeat others of it: bounds count each once")
    result = Unseen(proving, tuple(notes))
    return replace(result, notes=(*notes, few_checked(count))) if count < LEAST else result


def few_checked(count: int) -> str:
    """What a reader of a check on that few samples must know."""
    samples = f"{count} different sample{'' if count == 1 else 's'} that nothing has seen"
    return f"the check rests on {samples}, {LEAST} are the least that says something of new ones: give more"
