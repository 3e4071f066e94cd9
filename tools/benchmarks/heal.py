"""What healing brings: the shrunk model before and after it has learnt from its original, on samples held back.

    python tools/benchmarks/heal.py ../shared [--only resnet20-1024 lenet-0.09 ...] [--seed 0] [--work FOLDER]

SHARED holds `models/` and `data/` (see its README). Every row shrinks a model (kept in FOLDER: it is done once),
heals it on unlabelled samples with the defaults and one thread, and judges both: top-1 on test images that neither has
seen, or, for the face detector, F1 of its boxes against the original's own on photographs kept aside
(`tools/benchmarks/detector.py`, threshold 0.5). No label is read but by the judge. `seen`: the pool are images that the
original was trained on; `unseen`: images that it never saw (half of the test set; the other half judges).

The last columns: samples shown, CPU seconds (of healing; where the solve's own samples are learnt from, of both), the
target of the issue.
"""

from __future__ import annotations

import argparse
import io
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A script sees its own folder only; what it shares with others is named from `tools`.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.detector import FOLDS, IN_REPORT, PIXELS, THRESHOLDS, added, mirrored, run, tallies, views
from pcns_onnx import Normalize, PcnsError, compare, heal, shrink

RESNET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
VGG = Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
HEADINGS = ("row", "original", "shrunk", "healed", "learnt from", "shown", "CPU s", "taken", "target")
ZOOMS = 4
"""How often the photographs are zoomed in at other places, for the detector's pool."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Row:
    """A classifier: `solve` and `learn` are how many samples the two steps get; `unseen`: from the test set.

    `inside`: both get the same ones (`shrink --heal`). `train`: learnt from are all images that the original was
    trained on (`data/*_train_jpeg.npz`; Pillow decodes them). `rounds`: beside one step, in so many (`inside`).
    """

    model: str
    data: str
    choices: Mapping[str, Any]
    target: str
    solve: int | None = None
    learn: int | None = None
    normalize: Normalize | None = None
    unseen: bool = False
    raw: bool = False
    inside: bool = False
    train: bool = False
    rounds: int | None = None
    updates: int = 0


INNER: Mapping[str, Any] = {"width": 0.5, "coupled": False}


def resnet20(target: str, choices: Mapping[str, Any] = INNER, **more: Any) -> Row:
    return Row("resnet20_cifar10", "cifar10", choices, target, more.pop("solve", 1024), normalize=RESNET, **more)


def in_rounds(name: str, row: Row, updates: int, budgets: Sequence[float]) -> dict[str, Row]:
    """One step, two and three of them, with as many samples shown in all."""
    return {
        f"{name}-{budget:g}-rounds-{count}": replace(
            row, choices={"budget": f"macs={budget:g}"}, rounds=count, updates=updates, inside=True
        )
        for budget in budgets
        for count in (1, 2, 3)
    }


LENET = Row("mnist_lenet300_relu", "mnist", {}, "", inside=True)
RESNET8 = Row("resnet8_mlperftiny", "cifar10", {}, "", raw=True)

ROWS: Mapping[str, Row] = {
    "resnet20-1024": resnet20("78.0", learn=1138),
    "resnet20-4096": resnet20("", learn=4096),
    "resnet20-unseen-2500": resnet20("78.4", unseen=True),
    "resnet20-0.5": resnet20("80.2 (50,000)", {"budget": "macs=0.5"}, learn=4096),
    "resnet20-0.35": resnet20("", {"budget": "macs=0.35"}, learn=4096),
    "resnet20-0.35-50000": resnet20("77.5", {"budget": "macs=0.35"}, solve=4096, train=True),
    "resnet8-0.5": replace(RESNET8, choices={"budget": "macs=0.5"}, target="72", solve=2048),
    "lenet-0.09": replace(LENET, choices={"budget": "macs=0.09"}, target="97.5"),
    "lenet-0.229": replace(LENET, choices={"budget": "macs=0.229"}, target="98.2"),
    "vgg16-0.345": Row("vgg16bn_cifar10", "cifar10", {"budget": ["macs=0.345", "params=0.129"]}, "84.4", 2048,
                       normalize=VGG),
    "vgg16-0.147": Row("vgg16bn_cifar10", "cifar10", {"budget": ["macs=0.147", "params=0.075"]}, "83.5", 2048,
                       normalize=VGG),
    **in_rounds("resnet20", resnet20(""), 24_500, (0.35, 0.25)),
    **in_rounds("resnet8", RESNET8, 80_700, (0.35, 0.25)),
    **in_rounds("lenet", LENET, 240_000, (0.09, 0.04)),
}  # fmt: skip


def loaded(shared: Path, name: str, row: Row) -> Arrays:
    with np.load(shared / "data" / f"{name}.npz") as archive:
        values = archive["input"]
        return {"input": values.astype(np.float32) if row.raw else values, "labels": archive["labels"]}


def trained_on(shared: Path, name: str) -> NDArray[np.uint8]:
    """All images that the original was trained on, (N, 3, height, width)."""
    from PIL import Image

    with np.load(shared / "data" / f"{name}_train_jpeg.npz") as archive:
        jpeg, offsets = archive["jpeg"].tobytes(), archive["offsets"]
    pieces = (jpeg[start:end] for start, end in itertools.pairwise(offsets))
    return np.stack([np.asarray(Image.open(io.BytesIO(piece))).transpose(2, 0, 1) for piece in pieces])


def classified(name: str, row: Row, shared: Path, work: Path, seed: int) -> list[str]:
    """One row of a classifier."""
    model, start = shared / "models" / f"{row.model}.onnx", work / f"{name.partition('-rounds')[0]}.onnx"
    calib, test = (loaded(shared, f"{row.data}_{part}", row) for part in ("calib", "test"))
    pool = {"input": calib["input"]}
    if row.unseen:
        half = len(test["input"]) // 2
        pool, test = {"input": test["input"][:half]}, {key: value[half:] for key, value in test.items()}
    if row.train:
        pool = {"input": trained_on(shared, row.data)}
    given: dict[str, Any] = {"threads": 1, "eval": test}
    if row.normalize is not None:
        given["normalize"] = row.normalize
    if not start.exists():
        solved: dict[str, Any] = {"samples": row.solve} if row.solve else {}
        shrink(model, {"input": calib["input"]}, start, **given, **solved, **row.choices)
    learnt: dict[str, Any] = {"samples": row.learn} if row.learn else {}
    started = time.process_time()
    if row.inside:
        rounds: dict[str, Any] = {} if row.rounds is None else {"rounds": row.rounds}
        choices = {**given, **row.choices, **rounds, "heal": row.updates}
        report = shrink(model, pool, work / f"{name}-healed.onnx", **choices, seed=seed).report
    else:
        report = heal(start, model, pool, work / f"{name}-healed.onnx", **given, **learnt, seed=seed).report
    healing, agreement = report.healing, report.agreement
    assert healing is not None
    before = judged(start, model, test, given)
    shown = f"{sum(item.healing.updates for item in report.rounds if item.healing) or healing.updates:,}"
    return [
        name, f"{agreement.score_a:.2f}", f"{before:.2f}", f"{agreement.score_b:.2f}",
        f"{healing.learnt:,} {'unseen' if row.unseen else 'seen'}", shown, f"{time.process_time() - started:.0f}",
        "yes" if healing.verdict.accepted else "no", row.target,
    ]  # fmt: skip


def judged(small: Path, model: Path, test: Arrays, given: Mapping[str, Any]) -> float:
    """Top-1 of a model."""
    choices = {key: value for key, value in given.items() if key != "eval"}
    score = compare(model, small, test, **choices).agreement.score_b
    assert score is not None, "the test samples have labels"
    return score


def detected(shared: Path, work: Path, seed: int, folds: int) -> list[str]:
    """The face detector, crossed: every quarter of the photographs is the test of a model made on the other three."""
    model = shared / "models" / "face_slim320.onnx"
    with np.load(shared / "data" / "photos_240x320.npz") as archive:
        photos = archive["input"]
    before, after, shown, learnt, taken = [], [], 0, 0, 0
    seconds = 0.0
    for fold in range(folds):
        tested = np.arange(len(photos)) % FOLDS == fold
        held = np.concatenate([photos[tested], mirrored(photos[tested])])
        original, start = run(model, held, 1), work / f"detector-{fold}.onnx"
        seen = [views(photos[~tested], np.random.default_rng([fold, n])) for n in range(ZOOMS)]
        same = 2 * int((~tested).sum())  # the photographs and their mirror images
        pool = {"input": np.concatenate([seen[0], *(some[same:] for some in seen[1:])])}
        given: dict[str, Any] = {"normalize": PIXELS, "threads": 1, "eval": {"input": held}}
        if not start.exists():
            shrink(
                model,
                {"input": views(photos[~tested], np.random.default_rng(fold))},
                start,
                budget="macs=0.62",
                **given,
            )
        started = time.process_time()
        healed = shrink(model, pool, budget="macs=0.62", **given, heal=0, seed=seed)
        seconds += time.process_time() - started
        healing = healed.report.healing
        assert healing is not None, healed.report.warnings
        before.append(tallies(original, run(start, held, 1)))
        after.append(tallies(original, run(healed.model, held, 1)))
        shown, learnt, taken = healing.updates, healing.learnt, taken + healing.verdict.accepted
    at = THRESHOLDS.index(IN_REPORT)
    scores = [added(one[at] for one in side).f1 for side in (before, after)]
    return [
        "detector-0.62", "1", f"{scores[0]:.3f}", f"{scores[1]:.3f}", f"{learnt:,} unseen", f"{shown:,}",
        f"{seconds / folds:.0f}", f"{taken} of {folds}", "0.85",
    ]  # fmt: skip


def main() -> None:
    """Run the rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--only", nargs="+", choices=[*ROWS, "detector-0.62"], default=[*ROWS, "detector-0.62"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folds", type=int, default=FOLDS, help="Of the detector, so many of the four.")
    parser.add_argument("--work", type=Path, default=Path("heal-benchmark"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    print("| " + " | ".join(HEADINGS) + " |\n" + "|---" * len(HEADINGS) + "|", flush=True)
    failed = False
    for name in args.only:
        try:
            cells = (
                classified(name, ROWS[name], args.shared, args.work, args.seed)
                if name in ROWS
                else detected(args.shared, args.work, args.seed, args.folds)
            )
            print("| " + " | ".join(cells) + " |", flush=True)
        except PcnsError as error:
            failed = True
            print(f"| {name} | {error} |", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
