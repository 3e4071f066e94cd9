"""Ready-made scores for `--metric`: does the small model still decide what the original decides?

`--metric pcns_onnx.metrics:yolo` and its like need no labels. What the original finds, reads, ranks or marks is the
truth, and 100 is full agreement; so `--max-drop 2` allows two points. Where the original decides nothing at all on
these samples, there is nothing to agree on and the score is NaN, which no gate lets pass.

Each is an object with `update` and `compute` that evaluation copies before it uses it, so the figures are those of
all samples and not a mean over batches. With other settings: `metric=Yolo(threshold=0.5)` in Python, or
`mine = Yolo(threshold=0.5)` in a module of your own.
"""

from pcns_onnx.metrics.detectors import Ssd, Yolo
from pcns_onnx.metrics.embeddings import Retrieval
from pcns_onnx.metrics.positions import Mask, Tags
from pcns_onnx.metrics.texts import Ctc

yolo = Yolo()
"""F1 of the boxes of a YOLO."""
ssd = Ssd()
"""F1 of the boxes of a head with boxes and scores apart."""
ctc = Ctc()
"""100 less the edit distance of greedily read texts, in percent of their length."""
retrieval = Retrieval()
"""Rank correlation of the cosines between embeddings."""
neighbours = Retrieval(nearest=True)
"""How often the nearest other sample is the same."""
mask = Mask()
"""F1 of the positions that pass a threshold."""
tags = Tags()
"""How often the arg-max at a position is the same."""

__all__ = [
    "Ctc", "Mask", "Retrieval", "Ssd", "Tags", "Yolo", "ctc", "mask", "neighbours", "retrieval", "ssd", "tags", "yolo",
]  # fmt: skip
