"""Readers: 100 less the edit distance between what both models read, in percent of its length.

Texts are read greedily from the scores of a CTC head (Graves et al. 2006, ICML): the best class at every step,
repetitions merged, blanks dropped. With the Levenshtein distance d, the score is
100 (1 - sum d(a, b) / sum max(|a|, |b|)), summed over all samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pcns_onnx.metrics.decisions import Array, DecisionMetric, Outputs, unlike

_WANTED = "a CTC head's: scores (N, steps, classes) or (steps, N, classes), or classes (N, steps)"


@dataclass
class Ctc(DecisionMetric):
    """Agreement of the texts of a CTC head.

    `blank`: the class that means nothing; by default the first or the last one, whichever the original gives more
    often. The axis of the samples is the one whose length is their number, the first if both are.
    """

    blank: int | None = None
    _head: tuple[str, int] | None = field(default=None, init=False, repr=False)
    _edits: int = field(default=0, init=False, repr=False)
    _length: int = field(default=0, init=False, repr=False)

    def update(self, outputs: Outputs, labels: Array | None, *, reference: Outputs, size: int) -> None:
        """Count the edits of one batch."""
        if self._head is None:
            name = _output(reference)
            self._head = name, self._blank(reference[name], size)
        name, blank = self._head
        for a, b in zip(_texts(reference[name], blank, size), _texts(outputs[name], blank, size), strict=True):
            self._edits += edit_distance(a, b)
            self._length += max(len(a), len(b))

    def compute(self) -> float:
        """The share of symbols that are the same, in percent; NaN where neither model reads anything."""
        return 100 * (1 - self._edits / self._length) if self._length else float("nan")

    def reset(self) -> None:
        """Forget what was read."""
        self._head, self._edits, self._length = None, 0, 0

    def _blank(self, scores: Array, size: int) -> int:
        if self.blank is not None:
            return self.blank
        best = _best(scores, size)
        last = int(best.max(initial=0)) if scores.dtype.kind != "f" else scores.shape[-1] - 1
        return last if int((best == last).sum()) > int((best == 0).sum()) else 0


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """The fewest insertions, deletions and substitutions that make `b` of `a` (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, symbol in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (symbol != other))
    return row[-1]


def _output(outputs: Outputs) -> str:
    for name, array in outputs.items():
        if (array.dtype.kind == "f" and _squeezed(array).ndim == 3) or (array.dtype.kind in "iu" and array.ndim == 2):
            return name
    raise unlike("ctc", outputs, _WANTED)


def _squeezed(scores: Array) -> Array:
    """Without the axes of length 1 between the first and the last: a height that is used up."""
    gone = tuple(axis for axis in range(1, scores.ndim - 1) if scores.shape[axis] == 1)
    return scores.squeeze(gone[: scores.ndim - 3])


def _best(scores: Array, size: int) -> Array:
    """The best class at every step, (N, steps)."""
    if scores.dtype.kind != "f":
        return scores
    best = np.asarray(_squeezed(scores).argmax(axis=-1))
    return best.T if best.shape[0] != size and best.shape[1] == size else best


def _texts(scores: Array, blank: int, size: int) -> list[list[int]]:
    texts = []
    for steps in _best(scores, size):
        changes = np.append(True, steps[1:] != steps[:-1])
        texts.append([int(symbol) for symbol in steps[changes] if symbol != blank])
    return texts
