"""Detectors: F1 of the small model's boxes against the original's own.

A box counts from a score of `threshold`, and after suppression within its class. Boxes of both models are matched one
to one, best score first, where they are of one class and overlap by `overlap` (intersection over union) or more.
F1 = 2 matched / (expected + detected), over all samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from pcns_onnx.metrics.boxes import Boxes, matched
from pcns_onnx.metrics.decisions import Array, DecisionMetric, Outputs, f1
from pcns_onnx.metrics.ssd_heads import SsdHead, recognise_ssd
from pcns_onnx.metrics.yolo_heads import YoloHead, recognise_yolo


class _Head(Protocol):
    @property
    def suppresses(self) -> bool: ...

    def boxes(self, outputs: Outputs, threshold: float) -> Iterator[Boxes]: ...


@dataclass
class _Detector(DecisionMetric):
    threshold: float = 0.25
    overlap: float = 0.5
    suppressed_from: float = 0.45
    _head: _Head | None = field(default=None, init=False, repr=False)
    _counts: tuple[int, int, int] = field(default=(0, 0, 0), init=False, repr=False)

    def recognised(self, reference: Outputs) -> _Head:
        """How to read the outputs."""
        raise NotImplementedError

    def update(self, outputs: Outputs, labels: Array | None, *, reference: Outputs, size: int) -> None:
        """Count the boxes of one batch."""
        if self._head is None:
            self._head = self.recognised(reference)
        expected, detected, common = self._counts
        for ours, theirs in zip(self._found(reference), self._found(outputs), strict=True):
            expected += len(ours.scores)
            detected += len(theirs.scores)
            common += matched(ours, theirs, self.overlap)
        self._counts = expected, detected, common

    def compute(self) -> float:
        """F1 in percent; NaN where neither model finds anything."""
        return f1(*self._counts)

    def reset(self) -> None:
        """Forget the boxes, and the layout with them."""
        self._head, self._counts = None, (0, 0, 0)

    def _found(self, outputs: Outputs) -> Iterator[Boxes]:
        head = self._head
        assert head is not None, "the layout is recognised first"
        for boxes in head.boxes(outputs, self.threshold):
            yield boxes.suppressed(self.suppressed_from) if head.suppresses else boxes.ordered()


@dataclass
class Yolo(_Detector):
    """YOLO from version 3 on, YOLOX, and heads that have suppressed already (version 10).

    `classes`: how many there are, where more columns follow them than the shapes can tell (the key points of a pose
    model); masks are recognised by their prototypes.
    """

    classes: int | None = None

    def recognised(self, reference: Outputs) -> YoloHead:
        """The layout, from shapes and values of the original's outputs; raises `InputError`."""
        return recognise_yolo(reference, self.classes)


@dataclass
class Ssd(_Detector):
    """Boxes and scores in outputs of their own, in either order; with more than one column, class 0 is background."""

    background: bool = True

    def recognised(self, reference: Outputs) -> SsdHead:
        """Which output is which, and the form of the boxes; raises `InputError`."""
        return recognise_ssd(reference, background=self.background)
