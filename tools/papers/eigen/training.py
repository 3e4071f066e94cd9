"""Graham's application experiment: a VGG that loses or gains neurons while it is being trained.

Layer after layer, in a fixed random order, is cut to a share of its width (EigenRemove at a rank ratio of 1/8 or
minimum weight selection) or widened by a share (WeakExpand or zero-weight expansion), one every few epochs. Recorded
are the final accuracy on the test set, by what factor the loss grew, and the seconds of operations and epochs.

"The factor by which the total training loss increased" is measured twice: on the same samples right before and right
after the operation (`now`), and as the mean training loss of the epoch behind it over that of the epoch before it
(`epoch`), which alone can fall below one as the thesis's factors do. The optimiser (SGD with momentum) starts anew
behind each operation. New channels of zero-weight expansion get a fresh BatchNorm (scale 1, shift 0).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pcns_onnx.methods.data_free.low_rank_weights import by_norm, truncated
from pcns_onnx.rewrite.channels import layout

RANK_RATIO = 1 / 8
RATIOS = {"1/4": 1 / 4, "1/3": 1 / 3, "1/2": 1 / 2, "2/3": 2 / 3, "3/4": 3 / 4}
METHODS = ("EigenRemove", "minimum weight", "WeakExpand", "zero-weight expansion")
SMALL: tuple[tuple[int | str, ...], tuple[int, ...]] = ((8, 8, "M", 16, 16, "M", 32, 32), (64, 32))
"""Widths of Convs ('M': max pooling) and of hidden fully connected layers, for digits of 8 x 8 pixels."""
VGG16: tuple[tuple[int | str, ...], tuple[int, ...]] = (
    (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512),
    (1024, 512, 256),
)
"""Eleven Convs and four fully connected layers from 2048 inputs, as the thesis counts them."""
VGG16_ORDER = ("c10", "c7", "c2", "f2", "c9", "c5", "c6", "c4", "c3", "f1")
BATCH = 64
_FRESH = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


@dataclass(frozen=True)
class Images:
    """Training and test images (N, C, H, W) float32 with labels."""

    x: Any
    y: Any
    x_test: Any
    y_test: Any


@dataclass
class Run:
    """One training: what was done, and what came of it."""

    method: str
    ratio: str
    seed: int
    accuracy: float = 0.0
    now: list[float] = field(default_factory=list)
    epoch: list[float] = field(default_factory=list)
    operation_seconds: list[float] = field(default_factory=list)
    epoch_seconds: list[float] = field(default_factory=list)
    forward_seconds: list[float] = field(default_factory=list)
    apart: float = 0.0
    alive: float = 0.0


class Vgg:
    """Conv or Linear, BatchNorm and ReLU per layer; `layers` holds them in order, the last without norm."""

    def __init__(self, convs: Sequence[int | str], hidden: Sequence[int], shape: Sequence[int], classes: int) -> None:
        self.names: list[str] = []
        self.pooled: list[bool] = []
        layers: list[Any] = []
        norms: list[Any] = []
        into, side = shape[0], shape[1]
        for at, width in enumerate(convs):
            if isinstance(width, str):
                continue
            pooled = at + 1 < len(convs) and convs[at + 1] == "M"
            layers.append(nn.Conv2d(into, width, 3, padding=1))
            norms.append(nn.BatchNorm2d(width))
            self.names.append(f"c{len(layers)}")
            self.pooled.append(pooled)
            into, side = width, side // 2 if pooled else side
        into *= side * side
        for number, width in enumerate(hidden, start=1):
            layers.append(nn.Linear(into, width))
            norms.append(nn.BatchNorm1d(width))
            self.names.append(f"f{number}")
            self.pooled.append(False)
            into = width
        layers.append(nn.Linear(into, classes))
        self.layers: Any = nn.ModuleList(layers)
        self.norms: Any = nn.ModuleList(norms)

    def __call__(self, x: Any) -> Any:
        """Log-probabilities."""
        for at, norm in enumerate(self.norms):
            layer = self.layers[at]
            if isinstance(layer, nn.Linear) and x.ndim == 4:
                x = x.flatten(1)
            x = torch.relu(norm(layer(x)))
            if self.pooled[at]:
                x = nn.functional.max_pool2d(x, 2)
        return torch.log_softmax(self.layers[-1](x), dim=1)

    def parameters(self) -> list[Any]:
        """What is trained."""
        return [*self.layers.parameters(), *self.norms.parameters()]

    def train(self, mode: bool) -> None:
        """Norms by the batch, or by what they have seen."""
        self.norms.train(mode)


def change(net: Vgg, at: int, method: str, width: int) -> None:
    """Give layer `at` this width, in place."""
    writer, reader, norm = net.layers[at], net.layers[at + 1], net.norms[at]
    old = writer.weight.shape[0]
    blocks = reader.weight.shape[1] // old if isinstance(reader, nn.Linear) else 1
    removes = method in ("EigenRemove", "minimum weight")
    if method == "EigenRemove":
        for layer in (writer, reader):
            _assign(layer.weight, low_rank(layer.weight.detach().numpy(), RANK_RATIO))
    outgoing = reader.weight.detach().numpy().reshape(reader.weight.shape[0], old, -1).astype(np.float64)
    if removes:
        size = (outgoing**2).sum(axis=(0, 2))
        index = np.sort(by_norm(size, size, np.zeros(old)).order[:width])
        number = np.zeros(len(index), dtype=np.int64)
    else:
        copies, strongest = np.full(old, width // old), np.argsort(-outgoing.mean(axis=(0, 2)), kind="stable")
        copies[strongest[: width % old]] += 1
        index, number = layout(np.arange(old), copies)
    new = torch.from_numpy(number > 0)
    into = torch.ones(len(index))
    if method == "WeakExpand":
        into = torch.from_numpy(1.0 / copies[index]).float()
    elif method == "zero-weight expansion":
        into = (~new).float()
    places = torch.from_numpy(index)
    weight, bias = writer.weight.detach()[places], writer.bias.detach()[places]
    if method == "zero-weight expansion":
        weight[new], bias[new] = 0.0, 0.0
    writer.weight, writer.bias = nn.Parameter(weight), nn.Parameter(bias)
    for name, fresh in _FRESH.items():
        value = getattr(norm, name).detach()[places]
        if method == "zero-weight expansion":
            value[new] = fresh
        setattr(norm, name, nn.Parameter(value) if name in ("weight", "bias") else value)
    norm.num_features = len(index)
    columns = reader.weight.detach()
    columns = columns.reshape(columns.shape[0], old, blocks, *columns.shape[2:])[:, places]
    columns = columns * into.reshape(1, -1, *(1,) * (columns.ndim - 2))
    reader.weight = nn.Parameter(columns.reshape(columns.shape[0], -1, *columns.shape[3:]).contiguous())


def low_rank(weight: NDArray[np.float32], ratio: float) -> NDArray[np.float32]:
    """The HOSVD estimate of a Linear's (K, C) or a Conv's (K, C, k, k) weight, in the channel modes."""
    moved = np.moveaxis(weight, 1, -1).astype(np.float64)
    taps = int(np.prod(weight.shape[2:]))
    estimate = truncated(moved.reshape(len(weight), -1), taps, ratio).reshape(moved.shape)
    return np.ascontiguousarray(np.moveaxis(estimate, -1, 1), dtype=np.float32)


def _assign(parameter: Any, value: NDArray[np.float32]) -> None:
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(value))


def train(
    images: Images,
    shape: tuple[Sequence[int | str], Sequence[int]],
    order: Sequence[str],
    run: Run,
    epochs: int,
    rate: float,
) -> Run:
    """One training with an operation every epochs // (layers + 1) epochs; fills `run`."""
    torch.manual_seed(run.seed)
    net = Vgg(*shape, tuple(images.x.shape[1:]), int(images.y.max()) + 1)
    full = {name: layer.weight.shape[0] for name, layer in zip(net.names, net.layers, strict=False)}
    generator = torch.Generator().manual_seed(run.seed)
    every, pending = max(epochs // (len(order) + 1), 1), list(order)
    optimiser = _optimiser(net, rate)
    before, waiting, sure = 0.0, False, slice(0, 512)
    for epoch in range(epochs):
        start = time.perf_counter()
        loss = _epoch(net, images, optimiser, generator)
        run.epoch_seconds.append(time.perf_counter() - start)
        if waiting:
            run.epoch.append(loss / max(before, 1e-9))
        waiting = bool(pending) and (epoch + 1) % every == 0 and epoch + 1 < epochs
        if waiting:
            name, before = pending.pop(0), loss
            share = RATIOS[run.ratio]
            factor = share if run.method in METHODS[:2] else 1 + share
            then = _loss(net, images.x[sure], images.y[sure], run)
            start = time.perf_counter()
            change(net, net.names.index(name), run.method, max(2, round(factor * full[name])))
            run.operation_seconds.append(time.perf_counter() - start)
            run.now.append(_loss(net, images.x[sure], images.y[sure], run) / max(then, 1e-9))
            optimiser = _optimiser(net, rate)
    net.train(False)
    with torch.no_grad():
        hits = [
            (net(x).argmax(1) == y).sum()
            for x, y in zip(images.x_test.split(512), images.y_test.split(512), strict=True)
        ]
    run.accuracy = 100.0 * float(sum(int(hit) for hit in hits)) / len(images.y_test)
    run.apart, run.alive = _copies(net, run.method, full, order)
    return run


def _optimiser(net: Vgg, rate: float) -> Any:
    return torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)


def _epoch(net: Vgg, images: Images, optimiser: Any, generator: Any) -> float:
    net.train(True)
    total = 0.0
    shuffled: Any = torch.randperm(len(images.y), generator=generator)
    for rows in shuffled.split(BATCH):
        if len(rows) < 2:
            continue
        optimiser.zero_grad()
        loss: Any = nn.functional.nll_loss(net(images.x[rows]), images.y[rows])
        loss.backward()
        optimiser.step()
        total += float(loss.detach()) * len(rows)
    return total / len(images.y)


def _loss(net: Vgg, x: Any, y: Any, run: Run) -> float:
    net.train(False)
    with torch.no_grad():
        start = time.perf_counter()
        predicted = net(x)
        run.forward_seconds.append(time.perf_counter() - start)
        return float(nn.functional.nll_loss(predicted, y))


def _copies(net: Vgg, method: str, full: dict[str, int], order: Sequence[str]) -> tuple[float, float]:
    """How far copies have moved apart (share of the neuron's norm), and which share of zero neurons came to life."""
    apart, alive = [0.0], [0.0]
    for name in order:
        layer = net.layers[net.names.index(name)]
        rows = layer.weight.detach().reshape(layer.weight.shape[0], -1)
        if method == "WeakExpand":
            near = torch.cdist(rows, rows) + 1e9 * torch.eye(len(rows))
            size = rows.norm(dim=1).clamp_min(1e-12)
            closest = (near.min(dim=1).values / size).sort().values
            apart.append(float(closest[2 * (len(rows) - full[name]) - 1]))  # the last of those that have a twin
        elif method == "zero-weight expansion":
            dead = int((rows.abs().amax(dim=1) == 0).sum())
            alive.append(1.0 - dead / max(len(rows) - full[name], 1))
    return max(apart), max(alive)
