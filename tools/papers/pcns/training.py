"""What the paper experiments train: small LeakyReLU networks held as ONNX and trained in PyTorch through the interop.

A `Training` is one run: it counts the processor's seconds of its optimiser's steps (and of what shrinking took),
whatever else the machine does, and its test accuracy after every epoch. Epochs are seeded by their number, so that all
runs see the same batches.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F

from pcns_onnx import shrink
from pcns_onnx.interop.torch import to_onnx, to_torch
from pcns_onnx.report.schema import Report

CHECKS = ("verify", "latency", "total")
"""Stages of a run of `shrink` that the experiments do not count: its check, and its timing of both models."""
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


class Task(NamedTuple):
    """Rows of pixels (R, d), their digits, and rows that no network is trained or shrunk on."""

    rows: Floats
    labels: npt.NDArray[np.int64]
    test_rows: Floats
    test_labels: npt.NDArray[np.int64]

    def drawn(self, epoch: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of one epoch, every image under a small affine map of its own; an incomplete last one is left."""
        draw = torch.Generator().manual_seed(epoch)
        order = torch.randperm(len(self.rows), generator=draw)
        for start in range(0, len(order) - batch + 1, batch):
            chosen = order[start : start + batch]
            yield self._moved(torch.from_numpy(self.rows)[chosen], draw), torch.from_numpy(self.labels)[chosen]

    def _moved(self, rows: Tensor, draw: torch.Generator) -> Tensor:
        side = round(rows.shape[1] ** 0.5)
        warp = torch.eye(2, 3) + 0.1 * torch.randn(len(rows), 2, 3, generator=draw)
        grid = F.affine_grid(warp, [len(rows), 1, side, side], align_corners=False)
        moved = F.grid_sample(rows.reshape(-1, 1, side, side), grid, align_corners=False)
        return (moved + 0.05 * torch.randn(moved.shape, generator=draw)).flatten(1)

    def calibration(self, rows: int, seed: int = 10**6) -> Floats:
        """So many rows, drawn like those of training: what PCNS calls its batch."""
        found: list[Tensor] = []
        while sum(map(len, found)) < rows:
            found += [x for x, _ in self.drawn(seed + len(found), min(64, len(self.rows)))]
        return np.asarray(torch.cat(found)[:rows].numpy())


def digits(seed: int) -> Task:
    """scikit-learn's bundled 8x8 digits, 500 of 1,797 for testing."""
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        (pixels / 16).astype(np.float32), labels.astype(np.int64), test_size=500, stratify=labels, random_state=seed
    )
    return Task(parts[0], parts[2], parts[1], parts[3])


def read(train: Path, test: Path) -> Task:
    """Two `.npz` files with `input` (R, side²) in [0, 1] and `labels`."""
    with np.load(train) as a, np.load(test) as b:
        return Task(a["input"], a["labels"].astype(np.int64), b["input"], b["labels"].astype(np.int64))


def fresh(sizes: Sequence[int], slope: float, seed: int) -> onnx.ModelProto:
    """A LeakyReLU network of these sizes (inputs, hidden widths, classes) with He's initialisation."""
    rng = np.random.default_rng(seed)
    pairs = list(pairwise(sizes))
    return network([(rng.standard_normal((k, n)) * (2 / n) ** 0.5, np.zeros(k)) for n, k in pairs], slope)


def network(layers: Sequence[tuple[Doubles, Doubles]], slope: float) -> onnx.ModelProto:
    """The LeakyReLU network with these (weights (K, n), biases (K,)), from input to logits."""
    nodes, weights, source = list[onnx.NodeProto](), list[TensorProto](), "input"
    for number, pair in enumerate(layers, start=1):
        last = number == len(layers)
        names = [f"fc{number}.weight", f"fc{number}.bias"]
        made = "logits" if last else f"s{number}"
        weights += [numpy_helper.from_array(a.astype(np.float32), n) for a, n in zip(pair, names, strict=True)]
        nodes.append(helper.make_node("Gemm", [source, *names], [made], name=f"fc{number}", transB=1))
        if not last:
            nodes.append(helper.make_node("LeakyRelu", [made], [f"x{number}"], alpha=slope))
        source = f"x{number}"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
        for name, size in (("input", layers[0][0].shape[1]), ("logits", len(layers[-1][1])))
    ]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def widths_of(model: onnx.ModelProto) -> tuple[int, ...]:
    """The hidden widths."""
    found = {t.name: t.dims for t in model.graph.initializer}
    return tuple(int(found[f"fc{number}.bias"][0]) for number in range(1, len(found) // 2))


def parameters_of(model: onnx.ModelProto) -> int:
    return sum(int(np.prod(t.dims)) for t in model.graph.initializer)


@dataclass
class Training:
    """One run from `model` on; `curve` has (seconds, epoch, accuracy in percent) after every epoch and every shrink."""

    task: Task
    model: onnx.ModelProto
    batch: int = 64
    rate: float = 1e-3
    epoch: int = 0
    seconds: float = 0.0
    curve: list[tuple[float, int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._begin(self.model)
        self.curve = [*self.curve, (self.seconds, self.epoch, self.accuracy())]

    def _begin(self, model: onnx.ModelProto) -> None:
        """Adam's memory of gradients is of neurons that may be gone: it starts anew."""
        self.model, self.module = model, to_torch(model)
        self._optimiser = torch.optim.Adam(self.module.parameters(), lr=self.rate)

    def train(self, until: int) -> Training:
        """Go on until so many epochs are done; drawing the batches is not counted."""
        while self.epoch < until:
            batches = list(self.task.drawn(self.epoch, self.batch))
            start = time.process_time()
            for rows, labels in batches:
                self._optimiser.zero_grad()
                F.cross_entropy(self.module(rows), labels).backward()  # type: ignore[no-untyped-call, unused-ignore]
                self._optimiser.step()
            self.seconds += time.process_time() - start
            self.epoch += 1
            self.curve.append((self.seconds, self.epoch, self.accuracy()))
        return self

    def accuracy(self) -> float:
        with torch.inference_mode():
            found = self.module(torch.from_numpy(self.task.test_rows)).argmax(1).numpy()
        return float(100 * np.mean(found == self.task.test_labels))

    def onnx(self) -> onnx.ModelProto:
        return to_onnx(self.module, self.model)

    def branch(self) -> Training:
        """Another run from here."""
        return Training(self.task, self.onnx(), self.batch, self.rate, self.epoch, self.seconds, self.curve[:-1])

    def shrink(self, calibration: Floats, **choices: Any) -> Report:
        """Shrink, and count what that took of the processor: the share of the stages that are not its own check."""
        start = time.process_time()
        done = shrink(self.onnx(), calibration, multiple=1, holdout=0.0, threads=1, **choices)
        stages = {name: stage.seconds for name, stage in done.report.stages.items()}
        counted = sum(spent for name, spent in stages.items() if name not in CHECKS)
        self.seconds += counted / (stages["total"] + stages["latency"]) * (time.process_time() - start)
        self._begin(done.model)
        self.curve.append((self.seconds, self.epoch, self.accuracy()))
        return done.report
