"""Boxes as detectors give them: suppression within a class, and matching of one model's with another's.

A box is (left, top, right, bottom) in any unit: intersection over union does not depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST = 300
"""Detections that are kept of one image, as in Ultralytics' code."""


@dataclass(frozen=True)
class Boxes:
    """Boxes (n, 4) of one image with their `scores` (n,) and `classes` (n,)."""

    corners: Floats
    scores: Floats
    classes: NDArray[np.int64]

    def picked(self, rows: NDArray[Any]) -> Boxes:
        """The boxes at these rows, or where this mask is true."""
        return Boxes(self.corners[rows], self.scores[rows], self.classes[rows])

    def ordered(self) -> Boxes:
        """Best score first; ties by class and place, so that the order of anchors plays no part."""
        return self.picked(np.lexsort((*self.corners.T, self.classes, -self.scores)))

    def suppressed(self, overlap: float) -> Boxes:
        """Without those that a better one of the same class overlaps by more than `overlap`; best score first."""
        boxes = self.ordered()
        rest, kept = np.arange(len(boxes.scores)), list[int]()
        while rest.size and len(kept) < MOST:
            best, rest = rest[0], rest[1:]
            kept.append(int(best))
            shared = overlaps(boxes.corners[best : best + 1], boxes.corners[rest])[0]
            rest = rest[~((shared > overlap) & (boxes.classes[rest] == boxes.classes[best]))]
        return boxes.picked(np.array(kept, dtype=np.int64))


def corners_of(centred: NDArray[Any]) -> Floats:
    """(middle x, middle y, width, height) along the last axis as corners."""
    middle, half = centred[..., :2].astype(np.float64), centred[..., 2:4].astype(np.float64) / 2
    return np.concatenate([middle - half, middle + half], axis=-1)


def overlaps(a: Floats, b: Floats) -> Floats:
    """Intersection over union of every box of `a` (n, 4) with every box of `b` (m, 4): (n, m)."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    common = sides.clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None, :] - common
    return np.asarray(common / np.where(union > 0, union, 1.0))


def matched(expected: Boxes, detected: Boxes, overlap: float) -> int:
    """How many of `detected`, best first, match a box of `expected` of their class that is free and overlaps enough."""
    same = detected.classes[:, None] == expected.classes[None, :]
    shared = np.where(same, overlaps(detected.corners, expected.corners), 0.0)
    count = 0
    for row in shared:
        best = int(row.argmax()) if row.size else 0
        if row.size and row[best] >= overlap:
            shared[:, best] = 0.0
            count += 1
    return count
