"""Runs in a runtime's own environment: opens files, writes what they compute, and times them in turns.

    python worker.py JOB.json

JOB names the runtime, the files, the sample and the outputs; `outcome.json` beside it says what came of them.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

# A script sees its own folder only.
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.runtime_cases.runtimes import RUNTIMES, Run

LEAST = 0.004
"""Seconds that one reading takes at least: so many runs are read together."""


def main() -> None:
    """Opens, runs and times what the job names."""
    place = Path(sys.argv[1])
    job = json.loads(place.read_text())
    (opener,) = (runtime.opener for runtime in RUNTIMES if runtime.name == job["runtime"])
    assert opener is not None
    sample = {spec["name"]: np.fromfile(spec["file"], spec["dtype"]).reshape(spec["shape"]) for spec in job["inputs"]}
    found: list[dict[str, Any]] = []
    runs: list[Run] = []
    for number, file in enumerate(job["files"]):
        stage = "open"
        try:
            run = opener(Path(file), sample, job["outputs"], place.parent)
            stage = "run"
            made = [np.asarray(value) for value in run()]
        except Exception as error:
            found.append({"stage": stage, "why": f"{type(error).__name__}: {error}"})
            continue
        runs.append(run)
        found.append({"outputs": []})
        for index, value in enumerate(made):
            kept = place.parent / f"output-{number}-{index}.bin"
            np.ascontiguousarray(value).tofile(kept)
            found[-1]["outputs"].append({"file": str(kept), "dtype": str(value.dtype), "shape": value.shape})
        place.with_name("outcome.json").write_text(json.dumps({"files": found}))
    timed = compared(runs, job["seconds"]) if len(runs) == len(job["files"]) else {}
    place.with_name("outcome.json").write_text(json.dumps({"files": found} | timed))


def compared(runs: list[Run], seconds: float) -> dict[str, Any]:
    """Milliseconds of each and, of two, the median of the ratios of neighbours."""
    quickest = min(min(_seconds(run, 1) for _ in range(8)) for run in runs)
    count = max(1, round(LEAST / max(quickest, 1e-7)))  # the same for both, or a busy machine weighs one down
    read: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(read) < 5 or time.perf_counter() < end:
        read.append([_seconds(run, count) for run in runs])
    times = [statistics.median(each) * 1e3 for each in zip(*read, strict=True)]
    least = [min(each) * 1e3 for each in zip(*read, strict=True)]
    return {
        "ms": times,
        "least": least,
        "ratio": statistics.median(row[-1] / row[0] for row in read),
        "readings": len(read),
    }


def _seconds(run: Run, count: int) -> float:
    """Of one run, over so many."""
    start = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    main()
