"""What `shrink` costs, beside another build: processor seconds, peak memory, accuracy, paired in one run.

    python tools/benchmarks/speed.py ../shared --baseline 525af7a [--only resnet20] [--times 5] [--threads 1]

SHARED holds `models/` and `data/` (see its README). The other build is a commit of this repository, checked out into a
temporary folder. Every run is a process of its own; the builds take turns, so that whatever else the machine does
meets both. Processor seconds are those of the whole process, of all its threads; ratios are of medians. Accuracy is on
the test files, which the solve never sees.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HEADINGS = ("model", "choices", "CPU s before", "after", "ratio", "peak MiB before", "after", "ratio",
            "accuracy before", "after", "passes after")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One row: a model, its data, and how it is shrunk."""

    model: str
    data: str
    choices: Mapping[str, Any]
    normalize: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def title(self) -> str:
        """The choices as a command line would say them."""
        flags = [f"--{key} {value}" for key, value in self.choices.items() if key != "samples"]
        return " ".join(flags).replace("--coupled False", "--no-coupled")


IMAGES = {"samples": 1024}
CASES = (
    Case("mnist_lenet300_relu", "mnist", {"width": 0.25}),
    Case("mnist_lenet300_relu", "mnist", {"width": 0.1}),
    Case("resnet20_cifar10", "cifar10", {"width": 0.5, "coupled": False, **IMAGES}, IMAGENET),
    Case("resnet20_cifar10", "cifar10", {"budget": "macs=0.5", **IMAGES}, IMAGENET),
    Case("vgg16bn_cifar10", "cifar10", {"budget": "macs=0.526", **IMAGES}, CIFAR),
    Case("vgg16bn_cifar10", "cifar10", {"budget": "macs=0.147", **IMAGES}, CIFAR),
)

RUN = """
import json, resource, sys
task = json.loads(sys.argv[1])
from pcns_onnx import Normalize, shrink
normalize = None if task["normalize"] is None else Normalize(*map(tuple, task["normalize"]))
report = shrink(task["model"], task["data"], eval=task["test"], normalize=normalize, threads=task["threads"],
                **task["choices"]).report
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "seconds": usage.ru_utime + usage.ru_stime,
    "peak": usage.ru_maxrss / 1024,
    "accuracy": report.agreement.score_b,
    "passes": sum(stage.passes for name, stage in report.stages.items() if name != "total"),
}))
"""
"""What every run executes: it has to be understood by both builds."""


@dataclass(frozen=True)
class Ran:
    """Processor seconds, the most memory held (MiB), accuracy in percent, passes of the original."""

    seconds: float
    peak: float
    accuracy: float
    passes: float


def run(tree: Path, case: Case, shared: Path, threads: int) -> Ran:
    """One run of one build."""
    task = {
        "model": str(shared / "models" / f"{case.model}.onnx"),
        "data": str(shared / "data" / f"{case.data}_calib.npz"),
        "test": str(shared / "data" / f"{case.data}_test.npz"),
        "normalize": case.normalize,
        "choices": dict(case.choices),
        "threads": threads,
    }
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(task)], cwd=tree, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{tree.name}, {case.model} {case.title}: {done.stderr.strip().splitlines()[-1]}")
    return Ran(**json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The files of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        yield Path(folder)


def row(case: Case, before: list[Ran], after: list[Ran]) -> str:
    """A line of the table: medians, and their ratio."""
    cells = [case.model, f"`{case.title}`"]
    for key in ("seconds", "peak"):
        old, new = (median(getattr(ran, key) for ran in side) for side in (before, after))
        cells += [f"{old:.1f}", f"{new:.1f}", f"{new / old:.2f}"]
    cells += [f"{median(ran.accuracy for ran in side):.2f}" for side in (before, after)]
    cells.append(f"{median(ran.passes for ran in after):.0f}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Run all cases with both builds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--baseline", default="525af7a", metavar="COMMIT")
    parser.add_argument("--only", default="", help="cases whose model or choices contain this")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    print("| " + " | ".join(HEADINGS) + " |\n" + "|---" * len(HEADINGS) + "|", flush=True)
    with checked_out(args.baseline) as older:
        for case in CASES:
            if args.only in f"{case.model} {case.title}":
                before, after = list[Ran](), list[Ran]()
                for _ in range(args.times):
                    before.append(run(older, case, args.shared.resolve(), args.threads))
                    after.append(run(ROOT, case, args.shared.resolve(), args.threads))
                print(row(case, before, after), flush=True)


if __name__ == "__main__":
    main()
