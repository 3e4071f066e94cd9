"""What Dask workers are worth here: throughput with none, 1, 2 and 4 of them, and what limits it.

    python tools/benchmarks/workers.py MODEL DATA [--samples 1024] [--width 0.5] [--normalize MEAN STD]

Every run is `pcns-onnx shrink --refine 0 --threads 1` in a process of its own, on the same samples; throughput is
samples by the seconds of a stage. Three things keep N workers from being N times as fast, and each has a column:

* processor seconds of all processes beyond those of the run without workers: every worker compiles
  its own sessions, and moments are copied, sent and merged;
* processors that were busy, on average: no more than the machine has, less where workers wait for
  transfers or for the one process that solves;
* seconds that no worker can take over (start, ranking, probing, solving, the check, latency).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

SHARED = ("capture", "re-fit")
"""The stages that workers take part in."""


@dataclass(frozen=True)
class Run:
    """What one run took, in seconds: by the wall, of all processors, by stage; and how many samples were solved on."""

    wall: float
    cpu: float
    stages: dict[str, float]
    samples: int

    @property
    def alone(self) -> float:
        """Seconds in which workers had nothing to do."""
        return self.wall - sum(self.stages.get(name, 0.0) for name in SHARED)


def measure(args: argparse.Namespace, workers: int) -> Run:
    """One run with so many workers; 0 for none."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = ["shrink", args.model, "--data", args.data, "--width", args.width, "--samples", args.samples]
        words += ["--refine", 0, "--threads", 1, "--holdout", 0, "--report", report, "-o", Path(folder) / "o.onnx"]
        words += ["--normalize", *args.normalize] if args.normalize else []
        words += ["--workers", workers] if workers else []
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "pcns_onnx", *map(str, words), "-q"], env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"the run with {workers} workers failed")
        stages = json.loads(report.read_text())["stages"]
    return Run(wall, usage.ru_utime + usage.ru_stime, {n: s["seconds"] for n, s in stages.items()}, args.samples)


def limits(runs: dict[int, Run], cores: int) -> list[str]:
    """What keeps the widest run from being faster, the heaviest first."""
    most = max(runs)
    run, alone = runs[most], runs[0]
    extra, idle = run.cpu - alone.cpu, cores - run.cpu / run.wall
    found = [
        (run.alone, f"{run.alone:.1f} s of {run.wall:.1f} are start, choice, check, latency: not shared"),
        (extra / cores, f"{extra:.1f} processor seconds more than without workers: libraries are imported, sessions "
         "compiled, moments copied and sent"),
        (idle * run.wall / cores, f"{idle:.2f} of {cores} processors idle (or busy with other work) on average"),
    ]  # fmt: skip
    lines = [text for seconds, text in sorted(found, reverse=True) if seconds > 0]
    return [f"{most} workers on {cores} processors: no more than {cores} can run at once", *lines]


def main() -> None:
    """Print the table and what limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--normalize", nargs=2, metavar=("MEAN", "STD"))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    args = parser.parse_args()
    runs = {count: measure(args, count) for count in (0, *args.workers)}
    cores = len(os.sched_getaffinity(0))
    table = Table("workers", "capture (samples/s)", "re-fit (samples/s)", "whole run (s)", "processor (s)", "busy")
    for count, run in runs.items():
        rates = [f"{run.samples / run.stages[name]:.0f}" for name in SHARED]
        table.add_row(str(count or "none"), *rates, f"{run.wall:.1f}", f"{run.cpu:.1f}", f"{run.cpu / run.wall:.2f}")
    console = Console(width=110, highlight=False)
    console.print(table)
    for line in limits(runs, cores):
        console.print(line)


if __name__ == "__main__":
    main()
