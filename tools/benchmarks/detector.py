"""A deployed face detector, shrunk: do the detections of the small model agree with the original's?

    python tools/benchmarks/detector.py ../shared [--budget macs=0.8 macs=0.6] [--threads 2]

SHARED holds `models/` and `data/` (see its README). The photographs have no labels, so the small model is held
against the original: boxes whose score passes a threshold, after the original authors' suppression, matched one
to one where they overlap by half or more. Faces are few on these photographs (about one each), so the test is
crossed: every quarter of the photographs, with its mirror images, is the test of a model solved on the other
three quarters, and detections are counted over all four. More calibration images are made from these three
quarters without labels: mirrored, and zoomed in at other brightness.

As a yardstick, the first rows are the original on images 5 % darker against the original on the images as they
are. The last column is the mean over photographs of F1 per photograph (100 where neither model finds
anything) that the report of each run contains, as `score_b` of its `metric`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pcns_onnx import Normalize, PcnsError, shrink
from pcns_onnx.graph import Graph, ModelSource
from pcns_onnx.runtime.engine import Engine

PIXELS = Normalize((127 / 255,), (128 / 255,))
"""(x - 127) / 128."""
THRESHOLDS = (0.3, 0.5, 0.7)
IN_REPORT = 0.5
SUPPRESSED_FROM = 0.3
MATCHED_FROM = 0.5
FOLDS = 4
HEADINGS = (
    "model", "MACs", "latency", "threshold", "original finds", "small finds", "precision", "recall", "F1",
    "in the report",
)  # fmt: skip

Boxes = NDArray[np.float64]
"""(n, 4): left, top, right, bottom as shares of the image; best score first."""
Outputs = Mapping[str, NDArray[Any]]
Images = NDArray[np.uint8]


class Tally(NamedTuple):
    """How many detections there are in the reference, in the other model, and in both."""

    expected: int = 0
    found: int = 0
    matched: int = 0

    @property
    def precision(self) -> float:
        return self.matched / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        return self.matched / self.expected if self.expected else 1.0

    @property
    def f1(self) -> float:
        total = self.expected + self.found
        return 2 * self.matched / total if total else 1.0


def detections(outputs: Outputs, threshold: float) -> list[Boxes]:
    """Per image, the boxes with a score above `threshold`, without those that a better one overlaps."""
    return [
        _suppressed(boxes[scores[:, 1] > threshold].astype(np.float64), scores[scores[:, 1] > threshold, 1])
        for scores, boxes in zip(outputs["scores"], outputs["boxes"], strict=True)
    ]


def agreement(expected: Boxes, found: Boxes) -> Tally:
    """Match every box of `found`, best first, with the free box of `expected` that it overlaps most."""
    overlaps, matched = _overlaps(found, expected), 0
    for row in overlaps:
        best = int(row.argmax()) if row.size else 0
        if row.size and row[best] >= MATCHED_FROM:
            overlaps[:, best] = 0.0
            matched += 1
    return Tally(len(expected), len(found), matched)


def metric(expected: Sequence[Boxes]) -> Callable[[Outputs, NDArray[Any] | None], float]:
    """A `metric` for `shrink`: mean F1 (in percent) against `expected`; the labels say which image it is."""

    def score(outputs: Outputs, labels: NDArray[Any] | None) -> float:
        assert labels is not None, "the labels are the images' places in `expected`"
        found = detections(outputs, IN_REPORT)
        return float(np.mean([100 * agreement(expected[n], b).f1 for n, b in zip(labels, found, strict=True)]))

    return score


def _overlaps(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """Intersection over union of every box of `a` with every box of `b`."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    common = sides.clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    return np.asarray(common / (areas[0][:, None] + areas[1][None, :] - common).clip(1e-12))


def _suppressed(boxes: Boxes, scores: NDArray[Any]) -> Boxes:
    boxes = boxes[np.argsort(-scores, kind="stable")]
    kept = list[int]()
    overlaps = _overlaps(boxes, boxes)
    for index in range(len(boxes)):
        if not (overlaps[index, kept] >= SUPPRESSED_FROM).any():
            kept.append(index)
    return boxes[kept]


def views(photos: Images, rng: np.random.Generator) -> Images:
    """The photographs, their mirror images, and two zooms of each, brighter or darker."""
    zooms = [_zoomed(photo, rng) for photo in (*photos, *mirrored(photos))]
    return np.concatenate([photos, mirrored(photos), np.stack(zooms)])


def mirrored(photos: Images) -> Images:
    return photos[..., ::-1]


def _zoomed(photo: Images, rng: np.random.Generator) -> Images:
    share, light = rng.uniform(0.5, 0.9), rng.uniform(0.7, 1.3)
    whole = photo.shape[1:]
    height, width = (round(share * size) for size in whole)
    top, left = (int(rng.integers(0, size - part + 1)) for size, part in zip(whole, (height, width), strict=True))
    part = photo[:, top : top + height, left : left + width].astype(np.float64)
    zoomed = np.asarray(ndimage.zoom(part, (1.0, whole[0] / height, whole[1] / width), order=1))
    return (zoomed * light).clip(0, 255).astype(np.uint8)


def run(model: ModelSource, images: Images, threads: int) -> Outputs:
    """Outputs for all images, one by one as the model wants them."""
    session = Engine("cpu", threads).session(Graph.load(model).program())
    found = [session.run({"input": PIXELS(image[None], np.dtype(np.float32))}) for image in images]
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def tallies(expected: Outputs, found: Outputs) -> list[Tally]:
    """The agreement over all images, by threshold."""
    return [
        added(map(agreement, detections(expected, threshold), detections(found, threshold))) for threshold in THRESHOLDS
    ]


def added(counts: Iterable[Tally]) -> Tally:
    """The sum of tallies."""
    return Tally(*map(sum, zip(*counts, strict=True)))


@dataclass(frozen=True)
class Trial:
    """One model solved on a part of the photographs: its ratios and its agreement on the others."""

    macs: float
    latency: float
    reported: float
    tallies: list[Tally]


def trials(model: Path, photos: Images, budget: str, threads: int) -> Iterator[Trial]:
    """One trial per fold."""
    for fold in range(FOLDS):
        tested = np.arange(len(photos)) % FOLDS == fold
        unseen = np.concatenate([photos[tested], mirrored(photos[tested])])
        original = run(model, unseen, threads)
        result = shrink(
            model,
            {"input": views(photos[~tested], np.random.default_rng(fold))},
            eval={"input": unseen, "labels": np.arange(len(unseen))},
            metric=metric(detections(original, IN_REPORT)),
            normalize=PIXELS,
            budget=budget,
            threads=threads,
        )
        report = result.report
        assert report.agreement.score_b is not None, "a metric was given"
        yield Trial(
            report.after.macs / report.before.macs,
            report.latency.ratio,
            report.agreement.score_b,
            tallies(original, run(result.model, unseen, threads)),
        )


def show(title: str, counts: Sequence[Tally], macs: str = "", latency: str = "", reported: str = "") -> None:
    """One row per threshold."""
    for threshold, tally in zip(THRESHOLDS, counts, strict=True):
        shares = [f"{share:.3f}" for share in (tally.precision, tally.recall, tally.f1)]
        cells = [title, macs, latency, f"{threshold}", f"{tally.expected}", f"{tally.found}", *shares]
        cells.append(reported if threshold == IN_REPORT else "")
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Run all budgets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--budget", nargs="+", default=["macs=0.8"])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    model = args.shared / "models" / "face_slim320.onnx"
    with np.load(args.shared / "data" / "photos_240x320.npz") as archive:
        photos = archive["input"]
    print("| " + " | ".join(HEADINGS) + " |\n" + "|---" * len(HEADINGS) + "|", flush=True)
    images = np.concatenate([photos, mirrored(photos)])
    darker = (0.95 * images).astype(np.uint8)
    show("original, 5 % darker", tallies(run(model, images, args.threads), run(model, darker, args.threads)))
    failed = False
    for budget in args.budget:
        try:
            found = list(trials(model, photos, budget, args.threads))
        except PcnsError as error:
            failed = True
            print(f"| `--budget {budget}` | {error} |" + " |" * (len(HEADINGS) - 2), flush=True)
            continue
        macs, latency, reported = (np.mean([getattr(t, key) for t in found]) for key in ("macs", "latency", "reported"))
        totals = [added(counts) for counts in zip(*(trial.tallies for trial in found), strict=True)]
        show(f"`--budget {budget}`", totals, f"{macs:.3f}", f"{latency:.2f}", f"{reported:.1f}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
