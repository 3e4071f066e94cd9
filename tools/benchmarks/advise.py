"""Does `advise` say what a full run will do? It is run on networks, then what it predicted, and both are compared.

    python tools/benchmarks/advise.py [--only NAME] [--shared ../shared] [--cache DIR] --out advise.json
    python tools/benchmarks/advise.py --fit advise.json
    python tools/benchmarks/advise.py --confirm [--only NAME]

Networks are those of this repository, of `public.py` (out of packages) and, where there is one, of the folder
`shared`. Of each, `advise` is asked first, then `shrink` is run at the shares of its table with the same samples, and
judged on the same test samples. `--fit` reads what was measured, and prints the numbers of
`pcns_onnx/report/advice/prediction.py`, and how often the interval holds for a network that is left out of the fit
(leave one model out), for every kind of loss. `--confirm` runs the command of the recommended row instead.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

# A script sees its own folder only; what it shares with others is named from `tools`.
sys.path.insert(0, str(Path(__file__).parents[1]))

import msgspec
import numpy as np
import platformdirs
from msgspec import structs

from benchmarks.public_cases.cases import CASES
from benchmarks.public_cases.running import apart, prepared
from benchmarks.public_cases.tables import heads
from pcns_onnx.evaluation.agreement import Agreement
from pcns_onnx.report.advice.losses import Measure, MeasuredLoss, measured_loss
from pcns_onnx.report.advice.prediction import Correction, offset_of, predicted
from pcns_onnx.report.advice.record import Advice

ROOT = Path(__file__).parents[2]
MEASURES: tuple[Measure, ...] = ("score", "decisions", "error")
LEAST_SPREAD = 0.8
"""An interval reaches so far below what is expected, and as far above, at least."""
RAW = ("--normalize", "0", str(1 / 255))
"""Pixels from 0 to 255."""
NORMAL = ("--normalize", "0.485,0.456,0.406", "0.229,0.224,0.225")


@dataclass(frozen=True)
class Network:
    """A model with samples and words of the command line."""

    name: str
    model: Path
    words: tuple[str, ...]
    folder: Path = ROOT


def is_wanted(name: str, only: str) -> bool:
    """Whether a network's name contains `only`; of '=name', whether it is that."""
    return name == only[1:] if only.startswith("=") else only in name


def own() -> Iterator[Network]:
    """The networks of the repository."""
    folder = ROOT / "models"
    for name, samples in (
        ("digits_cnn", "images"), ("digits_mlp_tanh", "rows"), ("digits_mlp_leaky", "rows"),
        ("digits_gru", "images"), ("digits_lstm", "images"),
    ):  # fmt: skip
        data = ("--data", f"{folder}/digits_{samples}.npz", "--eval", f"{folder}/digits_{samples}_test.npz")
        yield Network(name, folder / f"{name}.onnx", data)


def shared(folder: Path) -> Iterator[Network]:
    """The networks of a folder that is not in the repository (docs/results.md)."""
    for name, data, words in (
        ("mnist_lenet300_relu", "mnist", ()), ("mnist_mlp1000_tanh", "mnist", ()),
        ("resnet8_mlperftiny", "cifar10", RAW), ("resnet20_cifar10", "cifar10", NORMAL),
        ("vgg16bn_cifar10", "cifar10", NORMAL),
    ):  # fmt: skip
        model = folder / "models" / f"{name}.onnx"
        samples = ("--samples", "1024", "--data", f"{folder}/data/{data}_calib.npz")
        if model.exists():
            yield Network(name, model, (*samples, "--eval", f"{folder}/data/{data}_test.npz", *words))


def public(cache: Path, scratch: Path, share: float, only: str) -> Iterator[Network]:
    """The networks out of packages."""
    for case in CASES:
        if not is_wanted(case.name, only):
            continue
        try:
            ready = apart(prepared, case, cache, (scratch / case.name).resolve(), share)
        except Exception as error:  # a package may be gone: the others go on
            print(f"{case.name}: {error}", file=sys.stderr)
            continue
        data = ("--data", ready.data["calibration"], "--eval", ready.data["test"], "--metric", case.metric)
        yield Network(case.name, ready.model, (*data, *case.words), ready.folder)


def measure(network: Network, shares: Sequence[float], threads: int, patience: float) -> Iterator[dict[str, Any]]:
    """A record per share: what was predicted, and what a full run did."""
    words = [*network.words, "--threads", str(threads)]
    start = time.perf_counter()
    advice = json.loads(_run(network, ["advise", str(network.model), *words, "--json"], patience))
    spent = time.perf_counter() - start
    for row in advice["rows"]:
        if row["budget"] not in shares or not row["name"].endswith(f"{row['budget']:g}") or row["loss"] is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            report, start = Path(folder) / "report.json", time.perf_counter()
            small = ["-o", f"{folder}/small.onnx", "--report", str(report), "-q"]
            budget = ["--budget", f"macs={row['budget']:g}", "--batch-latency", "1"]
            _run(network, ["shrink", str(network.model), *words, *budget, *small], patience)
            seconds, full = time.perf_counter() - start, json.loads(report.read_text())
        yield {
            "name": network.name, "share": row["budget"], "trial": row["loss"]["trial"], "advised": row,
            "full": msgspec.to_builtins(measured_loss(msgspec.convert(full["agreement"], Agreement))),
            "latency": full["latency"]["ratio"], "seconds": seconds, "advice_seconds": spent,
            "stages": full["stages"], "recommended": advice["recommended"], "allowed": advice["allowed"],
        }  # fmt: skip


CONFIRMED = (
    "network", "recommended", "lost, predicted", "full run", "allowed", "latency, candidate", "full run",
    "KB, candidate", "full run", "advice, CPU s", "full run, CPU s",
)  # fmt: skip


def confirmed(network: Network, threads: int, patience: float) -> str:
    """A row: what is recommended, and what its own command makes of it."""
    words, spent = [*network.words, "--threads", str(threads)], [_cpu_seconds()]
    advice = msgspec.json.decode(_run(network, ["advise", str(network.model), *words, "--json"], patience), type=Advice)
    spent.append(_cpu_seconds())
    best = advice.row(advice.recommended)
    assert best.loss is not None, "it is recommended"
    cells = [network.name, best.name]
    if best.command:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.json"
            _, *command = shlex.split(best.command)
            command[command.index("-o") + 1] = f"{folder}/small.onnx"
            _run(network, [*command, "--report", str(report), "-q"], patience)
            full = json.loads(report.read_text())
        result = full["precisions"][0] if full["precisions"] else full | {"bytes": full["after"]["bytes"]}
        lost = measured_loss(msgspec.convert(result["agreement"], Agreement))
        spent.append(_cpu_seconds())
        cells += [f"{best.loss.low:.4f} to {best.loss.high:.4f}", f"{lost.share:.4f}", f"{advice.allowed or 0:.4f}"]
        cells += [f"{best.latency:.2f}", f"{result['latency']['ratio']:.2f}", f"{(best.bytes or 0) / 1e3:.0f}"]
        cells += [f"{result['bytes'] / 1e3:.0f}", *(f"{b - a:.0f}" for a, b in itertools.pairwise(spent))]
    return "| " + " | ".join(cells) + " |" + " |" * (len(CONFIRMED) - len(cells))


def _cpu_seconds() -> float:
    """Of all that was run so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _run(network: Network, words: list[str], patience: float) -> str:
    paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"}
    done = subprocess.run(
        [sys.executable, "-m", "pcns_onnx", *words], cwd=network.folder, env=os.environ | paths, timeout=patience,
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{words[0]}: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    return done.stdout


# -- the fit -----------------------------------------------------------------------------------


Pair: TypeAlias = tuple[str, MeasuredLoss, float]
"""A network, what the trial lost, and the share that the full run lost."""


def pairs(records: Sequence[dict[str, Any]], measure: Measure) -> list[Pair]:
    """Of every record of which this is known."""
    field = {"score": "share", "decisions": "decisions", "error": "error"}[measure]
    known = []
    for record in records:
        trial, full = (msgspec.convert(record[side], MeasuredLoss) for side in ("trial", "full"))
        before, after = getattr(trial, field), getattr(full, field)
        if (
            before is not None
            and after is not None
            and (measure != "score" or trial.measure == full.measure == "score")
        ):
            loss = structs.replace(trial, measure=measure, share=max(before, 0.0))
            known.append((record["name"], loss, max(after, 0.0)))
    return known


def fitted(measured: Sequence[Pair]) -> Correction:
    """The mean of the logarithms, every network counting the same, and their quantiles, as conformal prediction has
    them: of n values the one in place ceil(0.9 (n + 1)) from below, and from above. Runs in which neither lost
    anything say nothing of what is won back, and would make the interval narrow."""
    by_network: dict[str, list[float]] = {}
    for name, trial, full in measured:
        if not (trial.share or full):
            continue
        offset = offset_of(trial)
        by_network.setdefault(name, []).append(math.log((full + offset) / (trial.share + offset)))
    factor = math.exp(float(np.mean([np.mean(values) for values in by_network.values()])))
    ordered = np.sort([value for values in by_network.values() for value in values])
    place = min(math.ceil(0.9 * (len(ordered) + 1)), len(ordered))
    low, high = math.exp(ordered[-place]), math.exp(ordered[place - 1])
    return Correction(factor, min(low, LEAST_SPREAD * factor), max(high, factor / LEAST_SPREAD))


def inside(measured: Sequence[Pair]) -> list[bool]:
    """Of each, whether the full run lies in the interval that the other networks give."""
    kept = []
    for name, trial, full in measured:
        loss = predicted(trial, fitted([item for item in measured if item[0] != name]))
        kept.append(loss.low - 1e-9 <= full <= loss.high + 1e-9)
    return kept


def calibration(records: Sequence[dict[str, Any]]) -> str:
    """The numbers for `prediction`, and how often the interval held, as tables."""
    lines = [
        heads(
            (
                "what is lost",
                "networks",
                "predictions",
                "in the interval",
                "of those that lose something",
                "factor",
                "low",
                "high",
            )
        )
    ]
    for measure in MEASURES:
        measured = pairs(records, measure)
        kept, correction = inside(measured), fitted(measured)
        numbers = " | ".join(f"{value:.2f}" for value in (correction.factor, correction.low, correction.high))
        networks = len({name for name, *_ in measured})
        losing = [is_inside for is_inside, (_, trial, full) in zip(kept, measured, strict=True) if trial.share or full]
        counts = f"{len(measured)} | {sum(kept)} | {sum(losing)} of {len(losing)}"
        lines.append(f"| {measure} | {networks} | {counts} | {numbers} |")
    columns = ("network", "MACs asked for", "lost by the trial", "predicted", "lost by the full run", "trial's error")
    lines += ["", heads((*columns, "full run's error", "latency: candidate", "full run", "seconds: said", "taken"))]
    for record in records:
        measure, row = record["trial"]["measure"], record["advised"]
        others = [item for item in pairs(records, measure) if item[0] != record["name"]]
        trial, full = (msgspec.convert(record[side], MeasuredLoss) for side in ("trial", "full"))
        loss = predicted(trial, fitted(others))
        cells = [record["name"], f"{record['share']:g}", f"{trial.share:.4f}", f"{loss.low:.4f} to {loss.high:.4f}"]
        cells += [
            f"{full.share:.4f}",
            *(f"{side.error or math.nan:.3f}" for side in (trial, full)),
            f"{row['latency']:.2f}",
        ]
        cells += [f"{record['latency']:.2f}", f"{row['seconds']:.0f}", f"{record['seconds']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, or fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="networks whose name contains this, or is that (=NAME)")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--cache", type=Path, default=platformdirs.user_cache_path("pcns-onnx") / "public")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.9, 0.8, 0.65, 0.5])
    parser.add_argument("--quick", action="store_true", help="half of the packages' samples")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--patience", type=float, default=900, metavar="SECONDS")
    parser.add_argument("--out", type=Path, help="where records are added to")
    parser.add_argument("--fit", type=Path, nargs="+", metavar="FILE", help="fit what was measured")
    parser.add_argument("--confirm", action="store_true", help="run what is recommended, and compare")
    args = parser.parse_args()
    if args.fit:
        print(calibration([record for path in args.fit for record in json.loads(path.read_text())]))
        return
    records: list[dict[str, Any]] = []
    print(heads(CONFIRMED) if args.confirm else "", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        networks = [*own(), *shared(args.shared)]
        for network in [*networks, *public(args.cache.resolve(), Path(scratch), 0.5 if args.quick else 1.0, args.only)]:
            if not is_wanted(network.name, args.only):
                continue
            try:
                if args.confirm:
                    print(confirmed(network, args.threads, args.patience), flush=True)
                    continue
                for record in measure(network, args.shares, args.threads, args.patience):
                    records.append(record)
                    trial, full = record["trial"], record["full"]
                    lost = f"trial {trial['share']:.4f}, full {full['share']:.4f}"
                    print(f"{network.name} {record['share']:g}: {lost}; {record['seconds']:.0f} s", flush=True)
                    if args.out is not None:
                        args.out.write_text(json.dumps(records, indent=1))
            except Exception as error:  # the others go on
                print(f"{network.name}: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
