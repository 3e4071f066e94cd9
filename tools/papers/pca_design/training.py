"""Training the nets that a design makes: ONNX to PyTorch, a few epochs, and back.

For the plain chains of `pcns-onnx design` only: Conv, BatchNormalization, Relu, pools, Flatten, Gemm.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

Augment = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) and labels to train on and to test on, and what is done to images in training."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    augment: Augment


def digits(folder: Path, device: str) -> Split:
    """The bundled digits of `models/`."""
    parts = [np.load(folder / f"digits_images{part}.npz") for part in ("", "_test")]
    train, test = ((_tensor(p["input"], device), _tensor(p["labels"], device)) for p in parts)
    return Split(train, test, _warped)


def cifar10(data: Path, mean: NDArray[np.float32], std: NDArray[np.float32], device: str, count: int = 50_000) -> Split:
    """CIFAR-10 of SHARED: training images from JPEG bytes, test images as stored, both standardised."""
    stored = np.load(data / "cifar10_test.npz")
    images, labels = cifar10_images(data, count), np.load(data / "cifar10_train_jpeg.npz")["labels"][:count]

    def standard(pixels: NDArray[np.uint8]) -> Tensor:
        return _tensor((pixels.astype(np.float32) / 255 - mean[:, None, None]) / std[:, None, None], device)

    train = standard(images), _tensor(labels.astype(np.int64), device)
    test = standard(stored["input"]), _tensor(stored["labels"].astype(np.int64), device)
    return Split(train, test, _shifted)


def cifar10_images(data: Path, count: int) -> NDArray[np.uint8]:
    """The first `count` training images, (count, 3, 32, 32)."""
    from PIL import Image

    stored = np.load(data / "cifar10_train_jpeg.npz")
    jpeg, ends = stored["jpeg"].tobytes(), stored["offsets"].tolist()
    pictures = [np.asarray(Image.open(io.BytesIO(jpeg[ends[i] : ends[i + 1]]))) for i in range(count)]
    return np.stack(pictures).transpose(0, 3, 1, 2)


def trained(model: onnx.ModelProto, data: Split, *, epochs: int, seed: int, device: str) -> tuple[nn.Sequential, float]:
    """`model` trained from the weights that it has, and the share of test images that it gets right."""
    torch.manual_seed(seed)
    net = as_module(model).to(device).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
    steps = epochs * (len(data.train[0]) // _batch(data))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(epochs):
        for images, labels in _epoch(data):
            optimiser.zero_grad()
            torch.autograd.backward(F.cross_entropy(net(data.augment(images)), labels))
            optimiser.step()
            schedule.step()
    return net, accuracy(net, data)


def accuracy(net: nn.Module, data: Split) -> float:
    """Share of the test images that the net gets right."""
    net.eval()
    with torch.inference_mode():
        right = [(net(x).argmax(1) == y).sum() for x, y in zip(*(torch.split(t, 500) for t in data.test), strict=True)]
    return float(sum(int(r) for r in right)) / len(data.test[1])


def as_module(model: onnx.ModelProto) -> nn.Sequential:
    """The chain as modules, with the weights that it has."""
    weights = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
    net = nn.Sequential(*(_module(node, weights) for node in model.graph.node))
    for part, node in zip(net, model.graph.node, strict=True):
        for own, name in zip(_tensors(part), list(node.input)[1:], strict=False):
            own.data.copy_(weights[name])
    return net


def with_weights(model: onnx.ModelProto, net: nn.Sequential) -> onnx.ModelProto:
    """A copy of `model` with the weights that `net`, made from it, has now."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    stored = {t.name: t for t in twin.graph.initializer}
    for part, node in zip(net, model.graph.node, strict=True):
        for own, name in zip(_tensors(part), list(node.input)[1:], strict=False):
            stored[name].CopyFrom(numpy_helper.from_array(own.detach().cpu().numpy(), name))
    return twin


def _module(node: onnx.NodeProto, weights: dict[str, Tensor]) -> nn.Module:
    said = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    shape = list(weights[node.input[1]].shape) if len(node.input) > 1 else []
    if node.op_type == "Conv":
        pads, bias = said.get("pads", [0] * 4), len(node.input) > 2
        assert pads[:2] == pads[2:] and said.get("group", 1) == 1, "designs are plain chains"
        (high, wide), (down, across) = shape[2:], said.get("strides", (1, 1))
        return nn.Conv2d(shape[1], shape[0], (high, wide), (down, across), (pads[0], pads[1]), bias=bias)
    if node.op_type == "Gemm":
        assert said.get("transB", 0), "exporters store one row per neuron"
        return nn.Linear(shape[1], shape[0])
    if node.op_type == "BatchNormalization":
        return nn.BatchNorm2d(shape[0], eps=said.get("epsilon", 1e-5))
    if node.op_type in ("MaxPool", "AveragePool"):
        kernel, strides = tuple(said["kernel_shape"]), tuple(said.get("strides", (1, 1)))
        return nn.MaxPool2d(kernel, strides) if node.op_type == "MaxPool" else nn.AvgPool2d(kernel, strides)
    plain: dict[str, Callable[[], nn.Module]] = {"Relu": nn.ReLU, "Flatten": nn.Flatten, "Identity": nn.Identity}
    return plain[node.op_type]()


def _tensors(part: nn.Module) -> list[Tensor]:
    """In the order of the ONNX operator's inputs."""
    named = ("weight", "bias", "running_mean", "running_var")
    return [t for name in named if isinstance(t := getattr(part, name, None), Tensor)]


def _epoch(data: Split) -> Iterator[tuple[Tensor, Tensor]]:
    images, labels = data.train
    order, size = torch.randperm(len(images)).to(images.device), _batch(data)
    for start in range(0, len(order) - size + 1, size):
        chosen = order[start : start + size]
        yield images[chosen], labels[chosen]


def _batch(data: Split) -> int:
    return 256 if len(data.train[0]) > 10_000 else 64


def _warped(images: Tensor) -> Tensor:
    """Each image under a small affine map of its own, with noise on every pixel."""
    warp = torch.eye(2, 3) + 0.1 * torch.randn(len(images), 2, 3)
    grid = F.affine_grid(warp.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False) + 0.05 * torch.randn_like(images)


def _shifted(images: Tensor) -> Tensor:
    """The batch shifted by up to four pixels, half of its images flipped."""
    padded = F.pad(images, (4, 4, 4, 4))
    top, left = (int(i) for i in torch.randint(0, 9, (2,)))
    moved = padded[:, :, top : top + images.shape[2], left : left + images.shape[3]]
    flip = (torch.rand(len(images), 1, 1, 1) < 0.5).to(images.device)
    return torch.where(flip, moved.flip(3), moved)


def _tensor(array: NDArray[np.generic], device: str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
