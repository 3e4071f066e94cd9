"""Detectors that give boxes and scores apart, read as boxes.

    boxes (N, A, 4), scores (N, A, C)                    one score per class; class 0 is background where C > 1
    boxes (N, A, 4), scores (N, A), classes (N, A)       suppressed already, as TensorFlow's and torchvision's

Boxes are corners, or middles and sides, whichever the original's are. Offsets that still wait for their anchors
(sides below zero) cannot be placed without them. They are compared anchor by anchor then, each in its own frame:
middle 0.1 x, 0.1 y and sides exp(0.2 w), exp(0.2 h) (Liu et al. 2016, arXiv:1512.02325). Scores outside 0 to 1 are
logits: of a softmax with a background, of sigmoids without.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pcns_onnx.metrics.boxes import Boxes, Floats, corners_of
from pcns_onnx.metrics.decisions import Array, Outputs, class_shares, is_share, sigmoid, unlike

_WANTED = "boxes (N, anchors, 4) with scores (N, anchors, classes) beside them"
_BOX_NAMES = ("box", "loc", "coord")
_SCORE_NAMES = ("score", "conf", "prob", "cls")
_CLASS_NAMES = ("class", "label")
_FORMS = ("corners", "centred", "offsets")
"""Of what boxes may be, the form that least else has first."""
_NEARLY_ALL = 0.99
"""A few anchors of no size or outside the picture do not change what the four numbers are."""


@dataclass(frozen=True)
class SsdHead:
    """Names of the outputs, and what their values mean; `form`: 'corners', 'centred' or 'offsets'."""

    box_name: str
    score_name: str
    class_name: str | None
    form: str
    logits: bool
    background: bool

    @property
    def suppresses(self) -> bool:
        """Whether overlapping boxes must still be suppressed."""
        return self.class_name is None and self.form != "offsets"

    def boxes(self, outputs: Outputs, threshold: float) -> Iterator[Boxes]:
        """Per sample, the boxes with a score of `threshold` or more."""
        places, scores = _batched(outputs[self.box_name], 3), outputs[self.score_name]
        scores = _batched(scores, 3 if scores.ndim == outputs[self.box_name].ndim else 2)
        classes = None if self.class_name is None else _batched(outputs[self.class_name], 2)
        for sample, (place, score) in enumerate(zip(places, scores, strict=True)):
            labels = None if classes is None else classes[sample].astype(np.int64)
            yield self._read(place.astype(np.float64), score.astype(np.float64), labels, threshold)

    def _read(self, places: Floats, scores: Floats, labels: Array | None, threshold: float) -> Boxes:
        if scores.ndim == 2:
            if self.logits:
                scores = class_shares(scores) if self.background else sigmoid(scores)
            scores = scores[:, 1:] if self.background else scores
            labels = scores.argmax(axis=1)
            scores = scores[np.arange(len(scores)), labels]
        elif self.logits:
            scores = sigmoid(scores)
        labels = np.zeros(len(scores), dtype=np.int64) if labels is None else labels
        kept = scores >= threshold
        if self.form == "offsets":
            # An anchor's box meets no box but that of the same anchor: the anchor is part of its class.
            labels = labels * len(scores) + np.arange(len(scores))
            places = np.concatenate([0.1 * places[:, :2], np.exp((0.2 * places[:, 2:]).clip(max=30))], axis=1)
        corners = places[kept] if self.form == "corners" else corners_of(places[kept])
        return Boxes(corners, scores[kept], labels[kept])


def recognise_ssd(outputs: Outputs, *, background: bool) -> SsdHead:
    """Which output is which; raises `InputError` where no two fit."""
    floats = {name: array for name, array in outputs.items() if array.dtype.kind == "f"}
    boxes = [name for name, array in floats.items() if array.ndim in (2, 3) and array.shape[-1] == 4]
    # Scores of four classes have four columns, too.
    boxes.sort(key=lambda n: (_sums_to_one(floats[n]), not _named(n, _BOX_NAMES), _FORMS.index(_form(floats[n]))))
    for box_name in boxes:
        anchors = floats[box_name].shape[:-1]
        beside = {n: a for n, a in outputs.items() if n != box_name and a.shape[: len(anchors)] == anchors}
        class_name = next((name for name, array in beside.items() if _holds_classes(name, array, anchors)), None)
        most = len(anchors) if class_name else len(anchors) + 1
        scores = [n for n, a in beside.items() if n in floats and n != class_name and a.ndim <= most]
        if not scores:
            continue
        # Landmarks may lie beside them: scores are named so, or between 0 and 1, or else the narrowest.
        score_name = min(
            scores, key=lambda n: (not _named(n, _SCORE_NAMES), not is_share(floats[n]), floats[n].size, n)
        )
        values = floats[score_name]
        columns = values.shape[-1] if values.ndim > len(anchors) else 1
        form = _form(floats[box_name]) if class_name is None else "corners"
        return SsdHead(box_name, score_name, class_name, form, not is_share(values), background and columns > 1)
    raise unlike("ssd", outputs, _WANTED)


def _named(name: str, words: tuple[str, ...]) -> bool:
    return any(word in name.lower() for word in words)


def _batched(array: Array, axes: int) -> Array:
    """With an axis for samples; torchvision's exports have none, and one image."""
    return array if array.ndim == axes else array[None]


def _holds_classes(name: str, array: Array, anchors: tuple[int, ...]) -> bool:
    if array.shape != anchors or not _named(name, _CLASS_NAMES):
        return False
    return array.dtype.kind in "iu" or bool((array == np.round(array)).all())


def _sums_to_one(values: Array) -> bool:
    return is_share(values) and bool(np.allclose(values.sum(axis=-1), 1, atol=1e-2))


def _form(places: Array) -> str:
    if (places[..., 2:] >= places[..., :2]).mean() > _NEARLY_ALL:
        return "corners"
    return "centred" if (places[..., 2:] >= 0).mean() > _NEARLY_ALL else "offsets"
