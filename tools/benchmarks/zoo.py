"""The model zoo's classics, shrunk: what is reached, what it takes, and that the results are sound.

    python tools/benchmarks/zoo.py [--only resnet50] [--threads 2] [--budget macs=0.5] [--keep FOLDER]

The architectures come with the onnx package and have no weights, so they get random ones (`fresh_weights.py`):
the error is for information only, trained networks lose far less. Eight random inputs are the calibration
data, two others are checked on. Every run is the command line in a process of its own, so that peak memory is
its own; models are made and checked in others, since a process counts what the one that starts it holds. A
failure is a row that says why, and the exit code is then 1. FOLDER keeps models, data and reports.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pcns_onnx  # noqa: F401  # isort: skip  # before onnxruntime, whose telemetry it switches off
import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto

from pcns_onnx import inspect

# A script sees its own folder only; what it shares with others is named from `tools`.
sys.path.insert(0, str(Path(__file__).parents[1]))

from fixtures.fresh_weights import light_models, random_feeds, write_light

P = ParamSpec("P")
T = TypeVar("T")
SAMPLES = 8
CHECKED = 2
HEADINGS = (
    "model", "layers", "shrinkable MACs", "MACs", "params", "latency", "relative error", "seconds", "peak MiB",
)  # fmt: skip


class FailedError(Exception):
    """What went wrong with one model, in a line."""


@dataclass(frozen=True)
class Case:
    """One model with fresh weights, and the data for it."""

    name: str
    model: Path
    calibration: Path
    checked: Path

    @classmethod
    def made(cls, name: str, source: Path, folder: Path) -> Case:
        model = write_light(name, source, folder)
        bare = onnx.load(source)
        files = [_written(bare, folder / f"{name}_{n}.npz", n, seed) for seed, n in ((1, SAMPLES), (2, CHECKED))]
        return cls(name, model, files[0], files[1])


def _written(model: ModelProto, path: Path, count: int, seed: int) -> Path:
    feeds = list(random_feeds(model, count, seed))
    arrays: dict[str, Any] = {name: np.concatenate([sample[name] for sample in feeds]) for name in feeds[0]}
    np.savez(path, **arrays)
    return path


def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The function's result, from a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def shrinkable(model: Path) -> tuple[int, float]:
    """How many layers the model has, and the share of its MACs that can shrink."""
    found = inspect(model)
    return len(found.layers), found.shrinkable_macs or 0.0


def row(name: str, source: Path, folder: Path, budget: str, threads: int) -> str:
    """The model's row of the table; raises `FailedError`."""
    case = apart(Case.made, name, source, folder)
    layers, share = apart(shrinkable, case.model)
    small, log = (case.model.with_name(case.name + suffix) for suffix in ("_small.onnx", "_report.json"))
    command: list[object] = [sys.executable, "-m", "pcns_onnx", "shrink", case.model, "-o", small, "--report", log]
    command += ["--data", case.calibration, "--eval", case.checked, "--budget", budget, "--threads", threads]
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        said.seek(0)
        if process.returncode:
            lines = said.read().strip().splitlines() or ["it said nothing"]
            raise FailedError(f"exit code {process.returncode} after {seconds:.0f} s: {lines[-1]}")
    apart(check, small, case)
    report = json.loads(log.read_text())
    before, after = report["before"], report["after"]
    error = max(math.inf if (e := output["relative_error"]) is None else e for output in report["agreement"]["outputs"])
    cells = [case.name, layers, f"{share:.3f}"]
    cells += [f"{after[key] / before[key]:.3f}" for key in ("macs", "parameters")]
    cells += [f"{report['latency']['ratio']:.2f}", f"{error:.3f}", f"{seconds:.0f}", f"{usage.ru_maxrss / 1024:.0f}"]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def check(small: Path, case: Case) -> None:
    """Full check of the file, and a run in plain onnxruntime; raises `FailedError`."""
    onnx.checker.check_model(small, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    sessions = [onnxruntime.InferenceSession(path, options) for path in (case.model, small)]
    with np.load(case.checked) as data:
        feeds = {name: data[name][:1] for name in data.files}
    for spec, a, b in zip(sessions[0].get_outputs(), *(s.run(None, feeds) for s in sessions), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype or not np.isfinite(b).all():
            raise FailedError(f"output '{spec.name}' is {b.dtype} {b.shape}, was {a.dtype} {a.shape}, or not finite")


def main() -> None:
    """Run all models and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", default="macs=0.5")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write the files here and leave them")
    args = parser.parse_args()
    if args.keep is not None:
        args.keep.mkdir(parents=True, exist_ok=True)
    failed = False
    print("| " + " | ".join(HEADINGS) + " |\n" + "|---" * len(HEADINGS) + "|", flush=True)
    for name, source in light_models(args.only).items():
        with nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory() as folder:
            try:
                print(row(name, source, Path(folder), args.budget, args.threads), flush=True)
            except Exception as error:  # whatever it is, the other models are run
                failed = True
                why = " ".join(f"{type(error).__name__}: {error}".split()).replace("|", "/")
                print(f"| {name} | {why.removeprefix('FailedError: ')} |" + " |" * (len(HEADINGS) - 2), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
