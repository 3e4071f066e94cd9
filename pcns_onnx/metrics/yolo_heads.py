"""The outputs of YOLO models, read as boxes.

    (N, A, 5 + C)   x, y, w, h, objectness, scores      versions 3 to 7, and YOLOX
    (N, 4 + C, A)   x, y, w, h, scores                  version 8 and later
    (N, K, 6)       left, top, right, bottom, score, class   suppressed already (version 10)

A is the longer axis. YOLOX as its authors export it leaves boxes on the grid: for a cell (i, j) of stride s, the middle
is s (x + i), s (y + j) and the sides are s exp(w), s exp(h) (Ge et al. 2021, arXiv:2107.08430). It is known by sides
below zero and of no more than a few e-folds. Its grid is worked out from A = 21 a b cells for an input of 32 a by 32 b
pixels, a and b as near to each other as they can be. Scores outside 0 to 1 are logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt

import numpy as np

from pcns_onnx.metrics.boxes import Boxes, Floats, corners_of
from pcns_onnx.metrics.decisions import Array, Outputs, is_share, sigmoid, unlike

_STRIDES = (8, 16, 32)
_LOG_SIDE = 16.0
"""Logarithms of sides, in cells, are below this; sides in pixels are above it somewhere."""
_WANTED = "a YOLO's: (N, anchors, 5 + classes), (N, 4 + classes, anchors) or (N, boxes, 6)"


@dataclass(frozen=True)
class YoloHead:
    """Where the boxes are and what the columns mean; `grid` holds x, y and stride of every anchor (A, 3)."""

    name: str
    transposed: bool
    objectness: bool
    classes: int
    logits: bool
    grid: Floats | None = None
    suppresses: bool = True

    def boxes(self, outputs: Outputs, threshold: float) -> Iterator[Boxes]:
        """Per sample, the boxes with a score of `threshold` or more."""
        for rows in outputs[self.name].astype(np.float64):
            columns = rows.T if self.transposed else rows
            yield self._read(columns, threshold) if self.suppresses else _suppressed(columns, threshold)

    def _read(self, columns: Floats, threshold: float) -> Boxes:
        first = 5 if self.objectness else 4
        scores = columns[:, 4 : first + self.classes]
        scores = sigmoid(scores) if self.logits else scores
        of_class = scores[:, 1:] * scores[:, :1] if self.objectness else scores
        classes = of_class.argmax(axis=1)
        best = of_class[np.arange(len(of_class)), classes]
        kept = best >= threshold
        places = columns[:, :4] if self.grid is None else _placed(columns[:, :4], self.grid)
        return Boxes(corners_of(places[kept]), best[kept], classes[kept])


def recognise_yolo(outputs: Outputs, classes: int | None) -> YoloHead:
    """The layout of the first output that fits; raises `InputError` where none does."""
    masks = {array.shape[1] for array in outputs.values() if array.ndim == 4}
    for name, array in outputs.items():
        if array.ndim != 3 or array.dtype.kind != "f" or not array.size:
            continue
        if array.shape[2] == 6 and _is_suppressed(array):
            return YoloHead(name, False, False, 0, False, suppresses=False)
        transposed = array.shape[1] < array.shape[2]
        columns = (array.transpose(0, 2, 1) if transposed else array).astype(np.float64)
        first = 4 if transposed else 5
        count = columns.shape[2] - first if classes is None else classes
        if classes is None:
            count -= max((mask for mask in masks if mask < count), default=0)
        if count < 1 or first + count > columns.shape[2]:
            continue
        logits = not is_share(columns[..., 4 : first + count])
        raw = bool(columns[..., 2:4].min() < 0 and columns[..., 2:4].max() < _LOG_SIDE)
        grid = _grid(columns.shape[1]) if raw else None
        if raw and grid is None:
            continue
        return YoloHead(name, transposed, not transposed, count, logits, grid)
    raise unlike("yolo", outputs, _WANTED)


def _is_suppressed(array: Array) -> bool:
    """Corners in order, a score, and a class in whole numbers."""
    classes = array[..., 5]
    ordered = bool((array[..., 2:4] >= array[..., :2]).all())
    return ordered and is_share(array[..., 4]) and bool((classes == np.round(classes)).all() and classes.min() >= 0)


def _suppressed(columns: Floats, threshold: float) -> Boxes:
    kept = columns[columns[:, 4] >= threshold]
    return Boxes(kept[:, :4], kept[:, 4], kept[:, 5].astype(np.int64))


def _grid(anchors: int) -> Floats | None:
    """x, y and stride of every cell, finest first; None where there is no such grid."""
    area, rest = divmod(anchors, 21)
    if rest or not area:
        return None
    height = next(side for side in range(isqrt(area), 0, -1) if area % side == 0)
    cells = []
    for stride in _STRIDES:
        high, wide = 32 * height // stride, 32 * (area // height) // stride
        y, x = np.mgrid[:high, :wide]
        cells.append(np.stack([x.ravel(), y.ravel(), np.full(x.size, stride)], axis=1))
    return np.concatenate(cells).astype(np.float64)


def _placed(raw: Floats, grid: Floats) -> Floats:
    """Boxes on the grid in pixels."""
    stride = grid[:, 2:]
    return np.concatenate([(raw[:, :2] + grid[:, :2]) * stride, np.exp(raw[:, 2:].clip(max=30)) * stride], axis=1)
