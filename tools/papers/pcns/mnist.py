"""The section that the PCNS drafts leave TODO: a network of two hidden LeakyReLU layers, shrunk and trained on.

    pip install ".[cpu,paper]"
    python tools/papers/pcns/mnist.py [--data mnist_calib.npz --test mnist_test.npz] [--widths 384 384] [--epochs 40]

Trains on scikit-learn's bundled digits (or on `.npz` files with `input` (R, side²) and `labels`), applies PCNS to
layer 1 and then to layer 2, shows what happens, and goes on training, once shrunk and repeatedly, beside the dense
network. Writes README.md and figures to --out. The variants:

    plain    the paper to the letter, in a few lines of NumPy: plain least squares, last layer first
    letter   `--method pcns --no-refit --order descending`: the same with least squares that mind the slope
    pcns     `--method pcns`: one pass per layer, and the reader re-fitted
    obs      the default of this tool, at the same widths
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional as F

from pcns_onnx import NothingToShrinkError, inspect, shrink
from pcns_onnx.calibration.eigenbasis import Basis
from pcns_onnx.interop.torch import to_torch
from pcns_onnx.methods.pcns.batch_size import Draw, probability
from pcns_onnx.report.schema import Report

# A script sees its own folder only; what it shares with others is named from `tools`.
sys.path.insert(0, str(Path(__file__).parents[2]))

from papers.pcns.figures import curves, eigenvector_errors, runs, spectra
from papers.pcns.training import Floats, Task, Training, digits, fresh, network, parameters_of, read, widths_of

VARIANTS: dict[str, dict[str, Any]] = {
    "letter": {"method": "pcns", "refit": False, "order": "descending"},
    "pcns": {"method": "pcns"},
    "obs": {"method": "obs"},
}
FACTORS = (1.05, 1.1, 1.25, 2.0)
SHARES = ("0.9", "0.99", "0.999", "0.9999")


@dataclass(frozen=True)
class Study:
    """The trained network and what is asked of it; `snapshots` are (model, seconds) by epoch."""

    task: Task
    calibration: Floats
    unseen: Floats
    dense: Training
    snapshots: dict[int, onnx.ModelProto]
    epochs: int
    slope: float
    out: Path

    def from_epoch(self, epoch: int) -> Training:
        """A run that goes on from a snapshot of the dense one."""
        past = [point for point in self.dense.curve if point[1] <= epoch]
        return Training(self.task, self.snapshots[epoch], epoch=epoch, seconds=past[-1][0], curve=past[:-1])


def trained(task: Task, args: argparse.Namespace) -> Study:
    """Section 4, first step: train the network, and keep it as it is at some epochs."""
    sizes = (task.rows.shape[1], *args.widths, int(task.labels.max()) + 1)
    dense = Training(task, fresh(sizes, args.slope, args.seed))
    at = sorted({0, 1, 4, args.epochs // 8, args.epochs // 4, 3 * args.epochs // 8, args.epochs // 2, args.epochs})
    snapshots = {epoch: dense.train(epoch).onnx() for epoch in at}
    rows = task.calibration(5 * max(sizes))
    unseen = task.calibration(2000, seed=2 * 10**6)
    return Study(task, rows, unseen, dense, snapshots, args.epochs, args.slope, args.out)


def table(head: str, *rows: tuple[object, ...]) -> str:
    names = [name.strip() for name in head.split("|")]
    lines = [names, ["---"] * len(names), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def redundancy(study: Study) -> str:
    """3.1: how many eigenvectors reach a share of the variance, epoch by epoch, before anything is changed."""
    found = {epoch: inspect(model, study.calibration, threads=1).pcns for epoch, model in study.snapshots.items()}
    spectra(study.out / "eigenvalues.png", {e: [layer.eigenvalues for layer in f] for e, f in found.items()})
    accuracy = {epoch: score for _, epoch, score in study.dense.curve}
    rows = [
        (epoch, f"{accuracy[epoch]:.1f}", *(layer.eigenvectors[s] for layer in layers for s in SHARES))
        for epoch, layers in found.items()
    ]
    head = "epoch | accuracy | " + " | ".join(f"fc{n}: {100 * float(s):g} %" for n in (1, 2) for s in SHARES)
    return table(head, *rows)


def at_widths(study: Study, model: onnx.ModelProto, variance: float, **more: Any) -> dict[str, tuple[Any, Report]]:
    """All variants at the widths that the letter's threshold gives: `obs` replays its plan, edited."""
    made: dict[str, tuple[Any, Report]] = {}
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.json"
        base: dict[str, Any] = {"holdout": 0.0, "threads": 1, "multiple": 1, **more}
        for name in ("letter", "pcns"):
            done = shrink(model, study.calibration, variance=variance, plan_out=plan, **VARIANTS[name], **base)
            made[name] = done.model, done.report
        plan.write_text(plan.read_text().replace('"pcns"', '"obs"'))
        done = shrink(model, study.calibration, plan=plan, **base)
        made["obs"] = done.model, done.report
    return made


def layer_by_layer(study: Study) -> str:
    """Section 4: PCNS on layer 1, then on layer 2 as well, at several thresholds (3.3)."""
    rows, points = list[tuple[object, ...]](), dict[str, list[tuple[float, float]]]()
    for variance in (0.9, 0.97, 0.99, 0.999):
        first = at_widths(study, study.dense.onnx(), variance, include="fc1")
        both = at_widths(study, study.dense.onnx(), variance)
        for name in VARIANTS:
            one, two = (Training(study.task, made[name][0]).accuracy() for made in (first, both))
            errors = [group.eigenvector_errors for group in both[name][1].groups]
            middle = ", ".join(f"{np.median(e):.0%}" for e in errors if e)
            share = parameters_of(both[name][0]) / parameters_of(study.dense.model)
            widths = " + ".join(map(str, widths_of(both[name][0])))
            rows.append((f"{100 * variance:g} %", name, widths, f"{share:.2f}", f"{one:.1f}", f"{two:.1f}", middle))
            if name == "letter":
                one, two = (_plain(study, made[name][0]) for made in (first, both))
                rows.append((f"{100 * variance:g} %", "plain", widths, f"{share:.2f}", f"{one:.1f}", f"{two:.1f}", ""))
            points.setdefault(f"{name}, layer 1", []).append((widths_of(first[name][0])[0], one))
            points.setdefault(f"{name}, both", []).append((widths_of(both[name][0])[0], two))
        if variance == 0.99:
            found = both["letter"][1].groups
            made = [(group.name, group.eigenvector_errors, group.plain_eigenvector_errors) for group in found]
            eigenvector_errors(study.out / "eigenvectors.png", sorted(made))
    curves(study.out / "threshold.png", points, "neurons left in layer 1", "test accuracy (%)")
    head = "variance | variant | widths | parameters | layer 1 only | both | eigenvectors: median L2 error, fc1, fc2"
    return table(head, *rows)


def _plain(study: Study, like: onnx.ModelProto) -> float:
    """Accuracy of the draft by hand at the widths of `like`; layers that kept theirs stay."""
    widths = list(zip(widths_of(like), widths_of(study.dense.model), strict=True))
    small, _ = by_hand(study, tuple(new if new < old else None for new, old in widths))
    return Training(study.task, small).accuracy()


def relative(small: onnx.ModelProto, model: onnx.ModelProto, rows: Floats) -> float:
    with torch.inference_mode():
        a, b = (to_torch(m)(torch.from_numpy(rows)) for m in (model, small))
        return float(torch.linalg.norm(a - b) / torch.linalg.norm(a))


def batch_sizes(study: Study, draws: int) -> str:
    """3.2: P(eps, B | eps0) for the whole network: PCNS on many batches, its error there and on new rows."""
    model, width = study.dense.onnx(), max(widths_of(study.dense.model))
    lines, points = list[tuple[object, ...]](), dict[str, list[tuple[float, float]]]()
    for size in (0.5, 1, 2, 5, 10):
        count, found = int(size * width), list[Draw]()
        for seed in range(draws):
            batch = study.task.calibration(count, seed=3 * 10**6 + 10**4 * seed)
            choices: dict[str, Any] = {**VARIANTS["letter"], "holdout": 0.0, "threads": 1, "multiple": 1}
            small = shrink(model, batch, width=0.25, **choices).model
            errors = (relative(small, model, rows) for rows in (batch, study.unseen))
            found.append(Draw(count, widths_of(small)[0], *errors))
        seen, new = (float(np.median([getattr(draw, name) for draw in found])) for name in ("seen", "new"))
        likely = (f"{probability(found, count, f * seen, seen) or 0:.2f}" for f in FACTORS)
        lines.append((f"{size:g} N = {count}", f"{seen:.1%}", f"{new:.1%}", *likely))
        points.setdefault("on the batch itself", []).append((size, 100 * seen))
        points.setdefault("on new rows", []).append((size, 100 * new))
    curves(study.out / "batch.png", points, "batch size B / layer size N", "relative error of the logits (%)")
    shares = " | ".join(f"P({factor:g} eps0, B, given eps0)" for factor in FACTORS)
    return table(f"B | median error on the batch, eps0 | on new rows | {shares}", *lines)


def orders(study: Study) -> str:
    """5.2.5 and 9.1: everything from one forward pass, last layer first, or one pass per layer."""
    rows = []
    for width in (0.5, 0.25):
        cells = list[object]()
        for order in ("descending", "ascending"):
            for refit in (False, True):
                run = study.dense.branch()
                run.shrink(study.calibration, method="pcns", order=order, refit=refit, width=width)
                cells.append(f"{run.accuracy():.1f}")
        rows.append((f"{width:g}", *cells))
    return table("width | descending (letter) | descending, re-fit | ascending | ascending, re-fit (pcns)", *rows)


def bounds(study: Study) -> str:
    """Abstract d: what 500 rows that nothing was solved on prove, and what the test rows then say."""
    fresh_rows = {"input": study.unseen[:500]}
    rows = []
    for width in (0.5, 0.25):
        for name, choices in VARIANTS.items():
            asked: dict[str, Any] = {"eval": fresh_rows, "width": width, "threads": 1, "multiple": 1}
            done = shrink(study.dense.onnx(), study.calibration, **asked, **choices)
            (output,) = done.report.agreement.outputs
            run = Training(study.task, done.model)
            with torch.inference_mode():
                test = torch.from_numpy(study.task.test_rows)
                differs = (run.module(test).argmax(1) != study.dense.module(test).argmax(1)).float().mean()
            drop = study.dense.accuracy() - run.accuracy()
            assert output.argmax_bound is not None
            proved, error = f"{output.argmax_bound:.1%}", f"{output.error_bound:.2f}"
            rows.append((f"{width:g}", name, proved, f"{float(differs):.1%}", f"{drop:.1f}", error))
    return table(
        "width | variant | proved: arg-max differs on at most | test rows: differs on | points lost | 95 % err at most",
        *rows,
    )


def costs(study: Study) -> str:
    """5.1.2: seconds of shrinking, in epochs of training."""
    steps = [b[0] - a[0] for a, b in pairwise(study.dense.curve)]
    epoch = float(np.median(steps))
    rows = [("one epoch", f"{epoch:.2f}", "1")]
    for name, choices in VARIANTS.items():
        run = study.dense.branch()
        run.shrink(study.calibration, width=0.25, **choices)
        taken = run.seconds - study.dense.seconds
        rows.append((f"{name}, both layers to a quarter", f"{taken:.2f}", f"{taken / epoch:.0f}"))
    _, seconds = by_hand(study, [width // 4 for width in widths_of(study.dense.model)])
    what = "the draft's arithmetic alone (eigenvectors, one plain least squares)"
    rows.append((what, f"{seconds:.2f}", f"{seconds / epoch:.1f}"))
    small = study.dense.branch()
    small.shrink(study.calibration, width=0.5, method="obs")
    small.train(small.epoch + 3)
    after = float(np.median(np.diff([point[0] for point in small.curve[-4:]])))
    rows.append(("one epoch at half width", f"{after:.2f}", f"{after / epoch:.2f}"))
    return table("what | seconds | in epochs", *rows)


def by_hand(study: Study, neurons: Sequence[int | None]) -> tuple[onnx.ModelProto, float]:
    """The draft's three steps in NumPy and nothing more: plain least squares to sigma^-1 of the eigenvectors.

    Both layers from the original's activations, a layer of None as it is. Returns the network, and the seconds that
    the arithmetic took.
    """
    model = to_torch(study.dense.onnx())
    stored = {name: value.detach().double().numpy() for name, value in model.named_parameters()}
    layers = [(stored[f"fc{n}_weight"], stored[f"fc{n}_bias"]) for n in (1, 2, 3)]
    made, projection, x, taken = list[tuple[Any, Any]](), np.eye(study.task.rows.shape[1]), study.calibration, 0.0
    for (weight, bias), width in zip(layers, neurons, strict=False):
        s = x @ weight.T + bias
        t = np.where(s > 0, s, study.slope * s)
        if width is None:
            made.append((weight @ projection, bias))
            projection, x = np.eye(len(bias)), t
            continue
        start = time.process_time()
        basis = Basis.of(t.mean(0), np.cov(t.T, bias=True))
        count = width - 1
        scale = np.sqrt(basis.values[:count])
        mean = t.mean(1, keepdims=True)
        wanted = np.hstack([(t - mean) @ basis.vectors[:, :count] / scale, mean])
        wanted = np.where(wanted > 0, wanted, wanted / study.slope)
        solved, *_ = np.linalg.lstsq(np.hstack([x, np.ones((len(x), 1))]), wanted, rcond=None)
        taken += time.process_time() - start
        made.append((solved[:-1].T @ projection, solved[-1]))
        projection, x = np.hstack([basis.vectors[:, :count] * scale, np.ones((t.shape[1], 1))]), t
    weight, bias = layers[2]
    return network([*made, (weight @ projection, bias)], study.slope), taken


def when(study: Study) -> str:
    """5.2.1: the same cut before, during and after training, then on to the last epoch."""
    dense = f"{study.dense.accuracy():.1f}"
    rows: list[tuple[object, ...]] = [("never", "dense", "", "", dense, f"{study.dense.seconds:.1f}")]
    for epoch in [e for e in study.snapshots if e <= study.epochs // 2]:
        for name, choices in VARIANTS.items():
            run = study.from_epoch(epoch)
            before = run.accuracy()
            run.shrink(study.calibration, width=0.25, **choices)
            after = run.accuracy()
            run.train(study.epochs)
            rows.append((epoch, name, f"{before:.1f}", f"{after:.1f}", f"{run.accuracy():.1f}", f"{run.seconds:.1f}"))
    scratch = from_scratch(study, widths_of(run.model))
    rows.append(("small from scratch", "", "", "", f"{scratch.accuracy():.1f}", f"{scratch.seconds:.1f}"))
    return table("shrunk at epoch | variant | before | just after | at the last epoch | seconds in all", *rows)


def from_scratch(study: Study, widths: tuple[int, ...]) -> Training:
    """The control that any shrinking during training has to beat: a network that was small all along."""
    sizes = (study.task.rows.shape[1], *widths, int(study.task.labels.max()) + 1)
    return Training(study.task, fresh(sizes, study.slope, 1)).train(study.epochs)


def resumed(study: Study) -> str:
    """Section 4, last step, and abstract b: accuracy against training time, shrunk never, once, repeatedly."""
    quarter, eighth = study.epochs // 4, study.epochs // 8
    plans = {"once": [quarter], "three times": [eighth, quarter, 3 * eighth]}
    found: dict[str, Training] = {"dense": study.dense}
    for name, choices in VARIANTS.items():
        for label, moments in plans.items():
            run = study.from_epoch(moments[0])
            for moment in moments:
                run.train(moment).shrink(study.calibration, width=0.5, **choices)
            found[f"{name}, {label}"] = run.train(study.epochs)
    found["small from scratch"] = from_scratch(study, widths_of(found["obs, three times"].model))
    runs(study.out / "resume.png", {name: run.curve for name, run in found.items()})
    rows = []
    for name, run in found.items():
        shrunk = [(b[0] - a[0], b[2]) for a, b in pairwise(run.curve) if a[1] == b[1]]
        shrinking, worst = sum(took for took, _ in shrunk), min((score for _, score in shrunk), default=None)
        widths = " + ".join(map(str, widths_of(run.model)))
        dip = "" if worst is None else f"{worst:.1f}"
        rows.append((name, widths, f"{run.seconds:.1f}", f"{shrinking:.1f}", dip, f"{run.accuracy():.1f}"))
    return table("run | widths at the end | seconds in all | of these shrinking | worst just after | accuracy", *rows)


def shifted(study: Study) -> str:
    """5.2.2: how much of the last activations an earlier epoch's eigenvectors still hold, without BN and with it."""
    rows = []
    for norm in (False, True):
        torch.manual_seed(0)
        inputs, widths = study.task.rows.shape[1], widths_of(study.dense.model)
        blocks = list[nn.Module]()
        for width in widths:
            blocks += [nn.Linear(inputs, width), *([nn.BatchNorm1d(width)] if norm else []), nn.LeakyReLU(study.slope)]
            inputs = width
        net = nn.Sequential(*blocks, nn.Linear(inputs, int(study.task.labels.max()) + 1))
        kept = dict(_activations(net, study))
        for epoch in [e for e in kept if e < study.epochs]:
            pairs = zip(kept[epoch], kept[study.epochs], strict=True)
            cells = [f"{_held(early, late):.1%} (own: {_held(late, late):.1%})" for early, late in pairs]
            rows.append(("with BN" if norm else "without", epoch, *cells))
    return table("network | N/10 eigenvectors of epoch | hold of fc1's variance at the end | of fc2's", *rows)


def _held(early: Any, late: Any) -> float:
    """The share of the variance of outputs `late` (R, N) that the first N/10 eigenvectors of `early` hold."""
    basis = Basis.of(early.mean(0), np.cov(early.T, bias=True))
    centred = late - late.mean(1, keepdims=True)
    return float(((centred @ basis.vectors[:, : early.shape[1] // 10]) ** 2).sum() / (centred**2).sum())


def _activations(net: nn.Sequential, study: Study) -> Iterator[tuple[int, list[Any]]]:
    """(epoch, outputs of both hidden layers on the calibration rows) while the network trains."""
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    for epoch in range(study.epochs + 1):
        if epoch in study.snapshots:
            outputs, x = [], torch.from_numpy(study.calibration)
            net.eval()
            with torch.inference_mode():
                for block in net:
                    x = block(x)
                    if isinstance(block, nn.LeakyReLU):
                        outputs.append(x.numpy().astype(np.float64))
            net.train()
            yield epoch, outputs
        for images, labels in study.task.drawn(epoch, 64):
            optimiser.zero_grad()
            torch.autograd.backward(F.cross_entropy(net(images), labels))
            optimiser.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=".npz with input and labels; scikit-learn's digits without it")
    parser.add_argument("--test", type=Path, help="the same, not trained on")
    parser.add_argument("--widths", type=int, nargs=2, default=[384, 384])
    parser.add_argument("--slope", type=float, default=0.1, help="of LeakyReLU below 0")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--draws", type=int, default=8, help="batches of each size in 3.2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "results" / "paper_pcns")
    args = parser.parse_args()
    if (args.data is None) != (args.test is None):
        parser.error("--data and --test go together")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    args.out.mkdir(parents=True, exist_ok=True)
    study = trained(digits(args.seed) if args.data is None else read(args.data, args.test), args)
    sections = {
        "Redundancy as training goes on (3.1, 5.2.1)": (redundancy, "eigenvalues"),
        "PCNS on layer 1, then on layer 2 (4, 3.3, 3.4)": (layer_by_layer, "threshold eigenvectors"),
        "Batch size (3.2)": (lambda s: batch_sizes(s, args.draws), "batch"),
        "Order of the layers (5.2.5, 9.1)": (orders, ""),
        "A bound on the performance, a posteriori (abstract d, 6)": (bounds, ""),
        "Cost (5.1.2)": (costs, ""),
        "When to shrink (5.2.1)": (when, ""),
        "Training goes on (4, abstract b)": (resumed, "resume"),
        "Covariate shift (5.2.2)": (shifted, ""),
    }
    sizes = "-".join(map(str, (study.task.rows.shape[1], *args.widths, int(study.task.labels.max()) + 1)))
    text = [f"# PCNS on a toy network\n\n`python tools/papers/pcns/mnist.py`: {sizes}, LeakyReLU({args.slope:g}), "
            f"{args.epochs} epochs on {len(study.task.rows):,} images, tested on {len(study.task.test_rows):,}; "
            f"PCNS on {len(study.calibration):,} rows drawn as in training. One thread; seconds are the processor's."
            "\n"]  # fmt: skip
    for title, (section, figures) in sections.items():
        try:
            found = section(study)
        except NothingToShrinkError as error:
            found = f"{error}\n"
        text.append(f"## {title}\n\n{found}")
        text += [f"![{name}]({name}.png)\n" for name in figures.split()]
        print(text[-1 - len(figures.split())], flush=True)
    text.append(f"{time.process_time():.0f} seconds of the processor in all.\n")
    (args.out / "README.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
