"""Reruns the experiments of Graham's thesis on EigenRemove and WeakExpand; writes tables and figures.

    python tools/papers/eigen/eigen.py [--size 512] [--repetitions 10] [--out tools/results/paper_eigen]
    python tools/papers/eigen/eigen.py --train [--epochs 18] [--runs 5]
    python tools/papers/eigen/eigen.py --train --data TRAIN.npz TEST.npz --net vgg16 --epochs 50 --runs 5

Without --train: the isolation experiments (a network of three layers, `isolation`) and the timing. The thesis
has layers of 2048 (--size 2048: half an hour on one core), the default is 512 (a minute).

With --train: the application experiment (`training`) behind tables 4.1 to 4.4, on scikit-learn's digits and a
small VGG by default, on CIFAR-10 and VGG-16 by path (`.npz` with `input` uint8 and `labels`, or with `jpeg`, `offsets`
and `labels`). Needs the extra `train` (PyTorch, scikit-learn, matplotlib).
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats
from threadpoolctl import threadpool_limits

from pcns_onnx.files import write_atomic

# A script sees its own folder only; what it shares with others is named from `tools`.
sys.path.insert(0, str(Path(__file__).parents[2]))

from papers.eigen.figures import bars, curves, histograms, lines
from papers.eigen.isolation import RATIOS, Row, expansion, removal, timings

if TYPE_CHECKING:
    from papers.eigen.training import Images, Run

ALPHA = 0.05


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "results" / "paper_eigen")
    parser.add_argument("--size", type=int, default=512, help="neurons per layer, and inputs (thesis: 2048)")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--train", action="store_true", help="the experiment during training")
    parser.add_argument("--data", nargs=2, metavar=("TRAIN", "TEST"), help="--train: .npz files instead of digits")
    parser.add_argument("--net", choices=("small", "vgg16"), default="small")
    parser.add_argument("--epochs", type=int, default=18, help="--train: epochs of each training (thesis: 50)")
    parser.add_argument("--runs", type=int, default=5, help="--train: trainings per method and ratio (thesis: 5)")
    parser.add_argument("--rate", type=float, default=0.02, help="--train: learning rate")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with threadpool_limits(args.threads):
        text = application(args) if args.train else isolation(args)
    write_atomic(args.out / ("training.md" if args.train else "isolation.md"), text.encode())
    print(text)


# -- in isolation ----------------------------------------------------------------------------


def isolation(args: argparse.Namespace) -> str:
    """Figures 4.1 and 4.2 and the timing, as Markdown; figures and raw rows go beside it."""
    sizes = (args.size,) * 3
    removed = list(removal(sizes, args.size, args.repetitions, args.seed))
    added = list(expansion(sizes, args.size, args.repetitions, args.seed))
    seconds = timings(sizes, args.size, args.repetitions, args.seed)
    write_csv(args.out / "isolation.csv", (asdict(row) for row in (*removed, *added)))
    listing = ["random", "minimum weight", *(f"EigenRemove {label}" for label in RATIOS)]
    chosen = [
        "minimum weight",
        "by the mean (listing), full rank",
        *(f"algorithm 2 (own weights) {r}" for r in RATIOS if r != "1"),
    ]
    found = summed(removed)
    curves(args.out / "removal.png", {name: found[name] for name in listing}, {name: found[name] for name in chosen})
    lines(args.out / "expansion.png", summed(added))
    bars(args.out / "timing.png", seconds)
    parts = [
        f"{args.size}-{args.size}-{args.size}, tanh, {args.size} inputs, {args.repetitions} repetitions: squared "
        "Frobenius distance of the outputs as a share of their squared norm, mean (variance).",
        table_of(found, [*listing, *chosen[1:]]),
        "Expansion:",
        table_of(summed(added), ["WeakExpand", "zero-weight expansion"]),
        "EigenRemove 1 and minimum weight selection: largest difference of the two errors "
        f"{largest(removed, 'EigenRemove 1', 'minimum weight'):.3g}.",
        timing_table(seconds),
    ]
    return "\n\n".join(parts) + "\n"


def summed(rows: Iterable[Row]) -> dict[str, dict[float, tuple[float, float]]]:
    """Method -> change of width -> mean and variance of the relative squared distance."""
    found: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        share = 0.1 * row.step
        found.setdefault(row.method, {}).setdefault(share, []).append(row.distance / row.norm)
    return {
        name: {share: (float(np.mean(v)), float(np.var(v))) for share, v in steps.items()}
        for name, steps in found.items()
    }


def largest(rows: Sequence[Row], a: str, b: str) -> float:
    """The largest difference of two methods' relative distances at equal step and repetition."""
    at = {(row.method, row.step, row.repetition): row.distance / row.norm for row in rows}
    return max(abs(value - at[b, step, i]) for (name, step, i), value in at.items() if name == a)


def table_of(found: Mapping[str, Mapping[float, tuple[float, float]]], names: Sequence[str]) -> str:
    """One row per method, one column per step."""
    shares = list(found[names[0]])
    lines_ = [["method", *(f"{share:.0%}" for share in shares)]]
    for name in names:
        lines_.append([name, *(f"{m:.3g} ({v:.1e})" for m, v in found[name].values())])
    return markdown(lines_)


def timing_table(seconds: Mapping[str, Sequence[float]]) -> str:
    """Medians, and the interruptibility index I = time(algorithm) / time(change) against passes and an epoch."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    algorithms = [name for name in median if name.startswith(("forward", "epoch"))]
    rows = [["operation", "ms", *(f"I against {name} ({1e3 * median[name]:.3g} ms)" for name in algorithms)]]
    for name in median:
        if name not in algorithms:
            rows.append([name, f"{1e3 * median[name]:.3g}", *(f"{median[a] / median[name]:.3g}" for a in algorithms)])
    return markdown(rows)


# -- during training -------------------------------------------------------------------------


def application(args: argparse.Namespace) -> str:
    """Tables 4.1 to 4.4, the tests and the histograms, as Markdown; figures and raw rows go beside it."""
    import torch

    from papers.eigen.training import METHODS, SMALL, VGG16, VGG16_ORDER, Run, train
    from papers.eigen.training import RATIOS as SHARES

    torch.set_num_threads(args.threads)
    images = loaded(args.data) if args.data else digits()
    shape = VGG16 if args.net == "vgg16" else SMALL
    convs = [f"c{i + 1}" for i, _ in enumerate(w for w in shape[0] if w != "M")]
    names = [*convs, *(f"f{i + 1}" for i in range(len(shape[1])))]
    drawn = np.random.default_rng(args.seed).permutation(names)
    order = VGG16_ORDER if args.net == "vgg16" else tuple(str(name) for name in drawn)
    runs = [
        train(images, shape, order, Run(method, ratio, args.seed + i), args.epochs, args.rate)
        for method in METHODS
        for ratio in SHARES
        for i in range(args.runs)
    ]
    write_csv(args.out / "training.csv", (
        {"method": run.method, "ratio": run.ratio, "seed": run.seed, "accuracy": run.accuracy, "factor_now": factor,
         "factor_epoch": later, "operation_seconds": spent}
        for run in runs
        for factor, later, spent in zip(run.now, run.epoch, run.operation_seconds, strict=False)
    ))  # fmt: skip
    pairs = (METHODS[:2], METHODS[2:])
    values = {
        kind: {m: {r: of(runs, kind, m, r) for r in SHARES} for m in METHODS} for kind in ("accuracy", "now", "epoch")
    }
    named = "digits" if not args.data else Path(args.data[0]).stem
    parts = [
        f"{args.net} net {shape[0]} and {shape[1]}, {named}, {args.epochs} epochs, "
        f"{args.runs} trainings each, order {', '.join(order)}."
    ]
    for title, kind, reduce in (
        ("Final test accuracy, mean % (tables 4.1 and 4.3)", "accuracy", statistics.mean),
        (
            "Factor of the training loss, epoch behind over epoch before, median (tables 4.2 and 4.4)",
            "epoch",
            statistics.median,
        ),
        ("Factor of the loss right behind over right before, median", "now", statistics.median),
    ):
        rows = [["method", *SHARES]]
        rows += [[m, *(f"{reduce(values[kind][m][r]):.4g}" for r in SHARES)] for m in METHODS]
        parts += [title + ":", markdown(rows)]
    parts += ["Tests (all ratios together, threshold 0.05):", tests(runs, pairs)]
    weak, zero = ([run for run in runs if run.method == m] for m in pairs[1])
    parts.append(
        f"At the end of training copies are at most {max(r.apart for r in weak):.2g} of a neuron's norm apart "
        f"(WeakExpand), and {max(r.alive for r in zero):.0%} of the neurons added with zero weights have come to life."
    )
    parts.append(training_times(runs))
    lines(args.out / "training.png", {m: spread(values["accuracy"][m]) for m in METHODS}, "final accuracy (%)", "ratio")
    lines(args.out / "loss.png", {m: spread(values["epoch"][m]) for m in METHODS}, "loss factor (epochs)", "ratio")
    panels = [(pair, kind) for pair in pairs for kind in ("accuracy", "epoch")]
    titles = [f"{what}: {kind}" for what in ("removal", "expansion") for kind in ("final accuracy (%)", "loss factor")]
    histograms(args.out / "histograms.png", [{m: of(runs, kind, m) for m in pair} for pair, kind in panels], titles)
    return "\n\n".join(parts) + "\n"


def of(runs: Sequence[Run], kind: str, method: str, ratio: str | None = None) -> list[float]:
    """All values of a kind: one accuracy per training, one factor per operation."""
    mine = [run for run in runs if run.method == method and ratio in (None, run.ratio)]
    return [run.accuracy for run in mine] if kind == "accuracy" else [v for run in mine for v in getattr(run, kind)]


def spread(values: Mapping[str, Sequence[float]]) -> dict[float, tuple[float, float]]:
    """Ratio -> mean and variance."""
    return {ratio_of(name): (float(np.mean(v)), float(np.var(v))) for name, v in values.items()}


def ratio_of(name: str) -> float:
    """'1/4' -> 0.25."""
    top, _, bottom = name.partition("/")
    return int(top) / int(bottom)


def tests(runs: Sequence[Run], pairs: Sequence[Sequence[str]]) -> str:
    """Shapiro-Wilk on both samples, Student's t where both pass and Mann-Whitney's U; which of them counts."""
    rows = [["samples", "normal? (p, p)", "t-test p", "Mann-Whitney p", "counts", "different?"]]
    for pair in pairs:
        for kind in ("accuracy", "epoch", "now"):
            a, b = (of(runs, kind, method) for method in pair)
            normal = [float(stats.shapiro(v).pvalue) if np.ptp(v) > 0 else 0.0 for v in (a, b)]
            is_normal = min(normal) > ALPHA
            t, u = float(stats.ttest_ind(a, b).pvalue), float(stats.mannwhitneyu(a, b).pvalue)
            said = "yes" if (t if is_normal else u) < ALPHA else "no"
            rows.append([f"{pair[0]} / {pair[1]}, {kind}", f"{normal[0]:.2g}, {normal[1]:.2g}", f"{t:.2g}", f"{u:.2g}",
                         "t" if is_normal else "U", said])  # fmt: skip
    return markdown(rows)


def training_times(runs: Sequence[Run]) -> str:
    """Medians of operations, and the interruptibility index against a forward pass and an epoch."""
    forward = statistics.median(v for run in runs for v in run.forward_seconds)
    epoch = statistics.median(v for run in runs for v in run.epoch_seconds)
    rows = [
        [
            "operation",
            "ms",
            f"I against a forward pass ({1e3 * forward:.3g} ms)",
            f"I against an epoch ({1e3 * epoch:.4g} ms)",
        ]
    ]
    for method in dict.fromkeys(run.method for run in runs):
        spent = statistics.median(v for run in runs if run.method == method for v in run.operation_seconds)
        rows.append([method, f"{1e3 * spent:.3g}", f"{forward / spent:.3g}", f"{epoch / spent:.3g}"])
    return markdown(rows)


# -- data and files --------------------------------------------------------------------------


def digits() -> Images:
    """scikit-learn's 1,797 images of 8 x 8 pixels, 500 of them to test on."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found: Any = load_digits()
    x = (found.images[:, None] / 16.0).astype(np.float32)
    parts = train_test_split(x, found.target.astype(np.int64), test_size=500, random_state=0, stratify=found.target)
    return _images(parts[0], parts[2], parts[1], parts[3])


def loaded(paths: Sequence[str]) -> Images:
    """Images from two `.npz` files, scaled to mean 0 and deviation 1 per channel of the first."""
    from PIL import Image

    parts: list[Any] = []
    for path in paths:
        held = np.load(path)
        if "jpeg" in held.files:
            data, ends = held["jpeg"].tobytes(), held["offsets"]
            files = (data[a:b] for a, b in itertools.pairwise(ends))
            pixels = np.stack([np.asarray(Image.open(io.BytesIO(file))).transpose(2, 0, 1) for file in files])
        else:
            pixels = held["input"]
        parts += [pixels.astype(np.float32) / 255, held["labels"].astype(np.int64)]
    mean, deviation = (f(parts[0], axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.std))
    return _images((parts[0] - mean) / deviation, parts[1], (parts[2] - mean) / deviation, parts[3])


def _images(x: Any, y: Any, x_test: Any, y_test: Any) -> Images:
    import torch

    from papers.eigen.training import Images

    return Images(*(torch.from_numpy(np.ascontiguousarray(part)) for part in (x, y, x_test, y_test)))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """All rows, the keys of the first as head."""
    held = [{k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(held[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(held)
    write_atomic(path, text.getvalue().encode())


if __name__ == "__main__":
    main()
