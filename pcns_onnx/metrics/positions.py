"""Decisions at every position: masks, marks in time, tags of tokens.

A mask is what passes a threshold (a region, a stroke of text, speech, the onset of a note). Its score is
F1 = 2 |A and B| / (|A| + |B|), the Dice coefficient, over all positions of all samples. A tag is the arg-max over the
classes at a position.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pcns_onnx.metrics.decisions import Array, DecisionMetric, Outputs, f1, is_share, sigmoid, unlike


@dataclass
class Mask(DecisionMetric):
    """F1 of what passes `threshold` in all outputs of floats, or in `output`; logits are known by their values.

    `column`: this class alone, counted from 0 along the last axis.
    """

    threshold: float = 0.5
    output: str | None = None
    column: int | None = None
    _logits: dict[str, bool] = field(default_factory=dict, init=False, repr=False)
    _counts: tuple[int, int, int] = field(default=(0, 0, 0), init=False, repr=False)

    def update(self, outputs: Outputs, labels: Array | None, *, reference: Outputs, size: int) -> None:
        """Count the marks of one batch."""
        if not self._logits:
            floats = {n: a for n, a in reference.items() if a.dtype.kind == "f" and self.output in (None, n)}
            if not floats:
                raise unlike("mask", reference, "scores")
            self._logits = {name: not is_share(array) for name, array in floats.items()}
        expected, marked, common = self._counts
        for name in self._logits:
            ours, theirs = self._marked(name, reference[name]), self._marked(name, outputs[name])
            expected, marked = expected + int(ours.sum()), marked + int(theirs.sum())
            common += int((ours & theirs).sum())
        self._counts = expected, marked, common

    def compute(self) -> float:
        """F1 in percent; NaN where neither model marks anything."""
        return f1(*self._counts)

    def reset(self) -> None:
        """Forget the marks."""
        self._logits, self._counts = {}, (0, 0, 0)

    def _marked(self, name: str, scores: Array) -> Array:
        scores = scores if self.column is None else scores[..., self.column]
        return (sigmoid(scores) if self._logits[name] else scores) > self.threshold


@dataclass
class Tags(DecisionMetric):
    """How often the arg-max over `axis` is the same, at all positions of the first output of floats, or of `output`."""

    axis: int = -1
    output: str | None = None
    _same: int = field(default=0, init=False, repr=False)
    _count: int = field(default=0, init=False, repr=False)

    def update(self, outputs: Outputs, labels: Array | None, *, reference: Outputs, size: int) -> None:
        """Count the positions of one batch."""
        name = next((n for n, a in reference.items() if self._fits(n, a)), None)
        if name is None:
            raise unlike("tags", reference, "scores of two or more classes")
        same = reference[name].argmax(axis=self.axis) == outputs[name].argmax(axis=self.axis)
        self._same += int(same.sum())
        self._count += same.size

    def compute(self) -> float:
        """The share of same positions in percent; NaN where there are none."""
        return 100 * self._same / self._count if self._count else float("nan")

    def reset(self) -> None:
        """Forget the positions."""
        self._same = self._count = 0

    def _fits(self, name: str, array: Array) -> bool:
        has_axis = -array.ndim <= self.axis < array.ndim
        return array.dtype.kind == "f" and self.output in (None, name) and has_axis and array.shape[self.axis] > 1
