"""Who competes: a row per contender, which says what commands turn a model and samples into a smaller model.

Where a peer has settings that a user would choose from, each is run, and the best by *test* accuracy is what
tables and pictures show: a favour to the peers that pcns-onnx, with one setting per row, does without.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pcns_onnx
from benchmarks.frontier_cases.cases import Case, Point

HERE = Path(__file__).parent
STEPS = "400"
Command = list[str]


class LackingError(Exception):
    """A contender cannot be run at all; the text says why."""


@dataclass(frozen=True)
class Task:
    """What is to be done: everything a contender may know."""

    model: Path
    data: Path
    point: Point
    setting: str
    threads: int
    peers: Path
    out: Path


@dataclass(frozen=True)
class Contender:
    """`settings` and `residual`: what is tried on plain models and on those with residual streams."""

    name: str
    commands: Callable[[Task], list[Command]]
    package: str
    settings: tuple[str, ...] = ("",)
    residual: tuple[str, ...] = ()
    whole: bool = False
    """Whether it leaves all MACs, so that it is run once per model."""

    def settings_for(self, case: Case) -> tuple[str, ...]:
        chosen = self.residual if case.residual and self.residual else self.settings
        return tuple(setting for setting in chosen if not (case.inner and "stream" in setting))


def contenders() -> list[Contender]:
    """All, in the order of the tables."""
    both, chained = ("uniform", "global"), ("uniform", "global", "uniform-stream")
    light, wanda = ("uniform-light", "global-light"), "wanda-ridge"
    torch = "torch-pruning"
    streams = ("uniform-inner", "global-inner", "uniform-stream", "global-stream")
    methods = ("auto", "obs", "interpolative", "pcns")
    return [
        *(Contender(f"pcns-onnx {name}", _ours(name), "pcns-onnx") for name in methods),
        Contender("pcns-onnx auto, refined", _ours("auto", refined=True), "pcns-onnx"),
        Contender("onnxsim l2", _peer("onnxsim", "l2"), "onnxsim", both, chained),
        Contender("onnxsim wanda", _peer("onnxsim", "wanda"), "onnxsim", both, chained),
        Contender(f"onnxsim {wanda}", _peer("onnxsim", wanda), "onnxsim", (*both, *light), (*chained, *light)),
        Contender(torch, _peer("torch_pruning", "plain"), torch, both, streams),
        Contender(f"{torch}, norms again", _peer("torch_pruning", "norms"), torch, both, streams),
        Contender(f"{torch}, norms again, by 8", _peer("torch_pruning", "norms", "-by8"), torch, both, streams),
        Contender("interpolative paper", _peer("channels", "interpolative"), "own", both),
        Contender("interpolative paper, norms again", _peer("channels", "interpolative", "-norms"), "own", both),
        Contender("magnitude", _peer("channels", "magnitude"), "own", both),
        Contender("int8", _int8, "onnxruntime", whole=True),
        Contender("pcns-onnx auto + int8", _ours_int8, "pcns-onnx"),
    ]  # fmt: skip


def _ours(method: str, refined: bool = False) -> Callable[[Task], list[Command]]:
    def commands(task: Task) -> list[Command]:
        if refined and not _refines():
            raise LackingError("this pcns-onnx has no --refine")
        command = [sys.executable, "-m", "pcns_onnx", "shrink", str(task.model), "--data", str(task.data)]
        command += [*task.point.said, "--method", method, "--holdout", "0", "--threads", str(task.threads)]
        command += ["--refine", STEPS if refined else "0"] if _refines() else []
        return [[*command, "-o", str(task.out)]]

    return commands


def _peer(module: str, method: str, extra: str = "") -> Callable[[Task], list[Command]]:
    def commands(task: Task) -> list[Command]:
        command = [str(task.peers), "-W", "ignore", "-m", f"benchmarks.frontier_cases.peer_{module}"]
        command += [str(task.model), str(task.data), str(task.out), "--macs", f"{task.point.macs:g}"]
        return [[*command, "--method", method, "--setting", task.setting + extra]]

    return commands


def _quantise(source: Path, task: Task) -> Command:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.frontier_cases.int8"]
    return [*command, str(source), str(task.data), str(task.out)]


def _int8(task: Task) -> list[Command]:
    return [_quantise(task.model, task)]


def _ours_int8(task: Task) -> list[Command]:
    between = task.out.with_suffix(".float.onnx")
    first = _ours("auto", refined=_refines())(Task(**{**vars(task), "out": between}))
    return [*first, _quantise(between, task)]


@cache
def _refines() -> bool:
    answer = subprocess.run([sys.executable, "-m", "pcns_onnx", "shrink", "--help"], capture_output=True, text=True)
    return "--refine" in answer.stdout


def versions_of(peers: Mapping[str, str]) -> dict[str, str]:
    """The version of each contender's package; code of this repository is known by its contents."""
    ours = sorted(Path(pcns_onnx.__file__).parent.rglob("*.py"))
    own = [HERE / f"{name}.py" for name in ("chains", "interpolative", "matching", "peer_channels", "plain", "rebuild")]
    return {
        **peers,
        "onnxruntime": version("onnxruntime"),
        "pcns-onnx": f"{version('pcns-onnx')}+{_digest(ours)}",
        "own": _digest(own),
    }


def _digest(files: Sequence[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]
