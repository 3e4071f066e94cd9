"""The models that are taken from runtime to runtime: each original and shrunk, in float32 and in int8."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.advise import Network, own, public, shared
from pcns_onnx.graph import Graph

ROOT = Path(__file__).parents[3]
PRECISIONS = ("float32", "int8")
BUDGETS = {"nudenet": "macs=0.8", "mtcnn-decide": "macs=0.6", "ddddocr-reader": "macs=0.6", "minilm": "macs=0.6"}
"""What is left of a network out of a package; of all others half."""
OWN = ("digits_cnn", "digits_mlp_tanh", "digits_gru", "digits_lstm", "resnet20_cifar10", "vgg16bn_cifar10")


@dataclass(frozen=True)
class Pair:
    """An original and what was made of it, in one precision, with a sample of the test data; or `why` there is none."""

    name: str
    precision: str
    files: tuple[Path, Path]
    sample: dict[str, NDArray[Any]]
    outputs: tuple[str, ...] = ()
    why: str = ""

    @property
    def title(self) -> str:
        return f"{self.name}, {self.precision}"


def networks(folder: Path, cache: Path, place: Path | None, only: str) -> Iterator[Network]:
    """Those of the repository, of SHARED where it is given, and some out of packages."""
    known = [*own(), *(shared(place.resolve()) if place else ())]
    yield from (network for network in known if network.name in OWN and only in network.name)
    for name in BUDGETS:
        if only in name:
            yield from public(cache, folder / "samples", 0.25, f"={name}")


def pairs(network: Network, folder: Path) -> Iterator[Pair]:
    """Both precisions of one network; what is in `folder` already is not made again."""
    folder = folder / network.name
    folder.mkdir(parents=True, exist_ok=True)
    original = folder / "original.onnx"
    shutil.copy(network.model, original)  # some converters write over what they are given
    budget = BUDGETS.get(network.name, "macs=0.5")
    small, words = folder / "small.onnx", _without_eval(network.words)
    sample = _sample(network)
    outputs = tuple(spec.name for spec in Graph.load(network.model).outputs)
    why = _made(network, small, ["shrink", original, *words, "--budget", budget, "--effort", "low"])
    yield Pair(network.name, "float32", (original, small), sample, outputs, why)
    files = []
    for source, name in ((original, "original.int8.onnx"), (small, "small.int8.onnx")):
        why = why or _made(network, folder / name, ["quantize", source, *words, "--max-error", "9"])
        files.append(folder / name)
    yield Pair(network.name, "int8", (files[0], files[1]), sample, outputs, why)


def _made(network: Network, target: Path, words: Sequence[object]) -> str:
    """Why there is no `target`, or nothing."""
    if target.exists():
        return ""
    command = [sys.executable, "-m", "pcns_onnx", *map(str, words), "--threads", "1", "-q", "-o", str(target)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tools")])
    done = subprocess.run(
        command, cwd=network.folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    lines = done.stderr.strip().splitlines() or [""]
    return "" if target.exists() else f"{words[0]}: exit code {done.returncode}: {lines[-1]}"


def _without_eval(words: tuple[str, ...]) -> list[str]:
    """Checks and gates stay with the samples of the solve: nothing here asks how good the model is."""
    left, skipped = [], iter(words)
    for word in skipped:
        if word in ("--eval", "--metric"):
            next(skipped)
        else:
            left.append(word)
    return left


def _sample(network: Network) -> dict[str, NDArray[Any]]:
    """The first sample of the test data as the model takes it, a batch of one."""
    words = list(network.words)
    with np.load(words[words.index("--eval") + 1]) as data:
        sample = {spec.name: data[spec.name][:1] for spec in Graph.load(network.model).inputs}
    if "--normalize" in words:
        at = words.index("--normalize")
        mean, std = (
            np.array(text.split(","), dtype=np.float32).reshape(1, -1, 1, 1) for text in words[at + 1 : at + 3]
        )
        sample = {name: (value.astype(np.float32) / 255 - mean) / std for name, value in sample.items()}
    return {name: np.ascontiguousarray(value) for name, value in sample.items()}
