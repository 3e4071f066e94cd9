"""Table 2 of Garg, Panda and Roy as arithmetic: what its configurations cost, beside what it says that they save.

    python tools/papers/pca_design/table2.py

Costs are counted as the paper's profiler does: multiply-adds of convolutions and fully connected layers; weights,
biases, and two numbers per channel of a batch norm. `network` builds a configuration as an ONNX model, with which the
tests check the arithmetic against what `pcns-onnx inspect` counts.

All ratios come out as stated (some are rounded there, some cut off) but for one, CIFAR-100/VGG-19's parameters, which
are 9.4 times fewer, not 9.1. Two rows are misprinted: MobileNet's initial configuration lacks one of five blocks of
512, and its ungrouped net has as many filters in the first layer of a block as that layer has inputs (8.5X operations;
with as many as the second layer it would be 9.7X).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node

M = "M"
Item = int | str


@dataclass(frozen=True)
class Conv:
    """A convolution as the nets of the paper have it, zero-padded."""

    width: int
    kernel: int = 3
    stride: int = 1
    depthwise: bool = False
    pad: int | None = None


Stage = Conv | str
"""A Conv, or 'M' for a maxpool by two."""


@dataclass(frozen=True)
class Net:
    """Stages between an image of `size` x `size` pixels and `heads`, the widths of the fully connected layers."""

    stages: tuple[Stage, ...]
    heads: tuple[int, ...]
    size: int = 32
    norms: bool = True
    biases: bool = True
    pooled: bool = False

    @property
    def cost(self) -> tuple[int, int]:
        """(multiply-adds per image, parameters)."""
        macs = parameters = 0
        channels, size = 3, self.size
        for stage in self.stages:
            if isinstance(stage, str):
                size //= 2
                continue
            pad = stage.kernel // 2 if stage.pad is None else stage.pad
            size = (size + 2 * pad - stage.kernel) // stage.stride + 1
            weights = stage.kernel**2 * stage.width * (1 if stage.depthwise else channels)
            macs += weights * size * size
            parameters += weights + stage.width * (self.biases + 2 * self.norms)
            channels = stage.width
        features = channels if self.pooled else channels * size * size
        for width in self.heads:
            macs += features * width
            parameters += (features + 1) * width
            features = width
        return macs, parameters


@dataclass(frozen=True)
class Row:
    """A row of the table: the net and how many times fewer operations and parameters it is said to have."""

    dataset: str
    name: str
    net: Net
    stated: tuple[float, float]


def vgg(vector: Sequence[Item], *heads: int, size: int = 32) -> Net:
    """A batch-normalised VGG: 3 x 3 convolutions of these widths."""
    return Net(tuple(Conv(item) if isinstance(item, int) else item for item in vector), heads, size)


def alexnet(vector: Sequence[int]) -> Net:
    """AlexNet for CIFAR: 11 x 11 at stride 4, 5 x 5, then 3 x 3; one fully connected layer, no norms."""
    first, second, *rest = vector
    front = (Conv(first, 11, 4, pad=5), M, Conv(second, 5), M)
    return Net((*front, *(Conv(width) for width in rest), M), (100,), norms=False)


def mobilenet(first: int, stages: Sequence[Conv]) -> Net:
    """MobileNet for CIFAR: convolutions without biases, pooled to one position."""
    return Net((Conv(first), *stages), (10,), biases=False, pooled=True)


def blocks(triples: Sequence[tuple[int, int, int]]) -> list[Conv]:
    """(filters of the first layer, of the second, stride), without groups; the second is 1 x 1.

    The paper writes 'the stride of the second convolutional layer'; MobileNet has it in the 3 x 3 one.
    """
    return [conv for a, b, stride in triples for conv in (Conv(a, 3, stride), Conv(b, 1))]


V16: list[Item] = [64, 64, M, 128, 128, M, 256, 256, 256, M, 512, 512, 512, M, 512, 512, 512]
V16_SIGNIFICANT: list[Item] = [11, 42, M, 103, 118, M, 238, 249, 249, M, 424, 271, 160, M, 36, 38, 42]
V16_FINAL: list[Item] = [11, 42, M, 103, 118, M, 238, 249, M, 424, M]
V19: list[Item] = [64, 64, M, 128, 128, M, *[256] * 4, M, *[512] * 4, M, *[512] * 4, M]
V19_SIGNIFICANT: list[Item] = [11, 45, M, 97, 114, M, 231, 241, 245, 242, M, 473, 388, 146, 92, M, 31, 39, 42, 212, M]
V19_FINAL: list[Item] = [11, 45, M, 97, 114, M, 231, 245, M, 473, M]
V19_IMAGENET: list[Item] = [
    6, 30, M, 49, 100, M, 169, 189, 205, 210, M, 400, 455, 480, 490, M, 492, 492, 492, 492, M,
]  # fmt: skip
MOBILENET = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
MOBILENET_SIGNIFICANT = [
    (24, 21, 1), (46, 40, 2), (103, 79, 1), (104, 85, 2), (219, 167, 1), (199, 109, 2), (235, 99, 1), (89, 10, 1),
    (10, 2, 1), (10, 2, 1), (10, 2, 1), (4, 4, 2), (24, 16, 1),
]  # fmt: skip
MOBILENET_FINAL = [(24, 1), (46, 2), (103, 1), (104, 2), (219, 2), (235, 2)]
ALEXNET = ([64, 192, 384, 256, 256], [44, 119, 304, 251, 230], [44, 119, 304, 251])


def _mobilenets() -> tuple[Net, Net]:
    """The original, and the same without groups."""
    inputs = [32, *(width for width, _ in MOBILENET)]
    grouped = [
        conv
        for channels, (width, stride) in zip(inputs, MOBILENET, strict=False)
        for conv in (Conv(channels, 3, stride, depthwise=True), Conv(width, 1))
    ]
    return mobilenet(32, grouped), mobilenet(32, [replace(conv, depthwise=False) for conv in grouped])


GROUPED, UNGROUPED = _mobilenets()
_CIFAR10, _CIFAR100, _IMAGENET = (10,), (100,), (4096, 4096, 1000)
_NARROW = mobilenet(10, blocks(MOBILENET_SIGNIFICANT))
_SHALLOW = mobilenet(10, [Conv(width, 3, stride) for width, stride in MOBILENET_FINAL])
TABLE: tuple[tuple[Net, tuple[Row, ...]], ...] = (
    (
        vgg(V16, *_CIFAR10),
        (
            Row("CIFAR-10, VGG-16_BN", "significant", vgg(V16_SIGNIFICANT, *_CIFAR10), (1.9, 3.7)),
            Row("CIFAR-10, VGG-16_BN", "final", vgg(V16_FINAL, *_CIFAR10), (2.9, 7.7)),
        ),
    ),
    (
        vgg(V19, *_CIFAR100),
        (
            Row("CIFAR-100, VGG-19_BN", "significant", vgg(V19_SIGNIFICANT, *_CIFAR100), (1.9, 3.7)),
            Row("CIFAR-100, VGG-19_BN", "final", vgg(V19_FINAL, *_CIFAR100), (3.8, 9.1)),
        ),
    ),
    (
        GROUPED,
        (
            Row("CIFAR-10, MobileNet", "significant", _NARROW, (1.0, 3.1)),
            Row("CIFAR-10, MobileNet", "final", _SHALLOW, (1.7, 3.9)),
        ),
    ),
    (
        UNGROUPED,
        (
            Row("CIFAR-10, MobileNet w/o grouping", "significant", _NARROW, (8.5, 28.1)),
            Row("CIFAR-10, MobileNet w/o grouping", "final", _SHALLOW, (14.4, 34.4)),
        ),
    ),
    (
        alexnet(ALEXNET[0]),
        (
            Row("CIFAR-100, AlexNet", "significant", alexnet(ALEXNET[1]), (1.6, 1.5)),
            Row("CIFAR-100, AlexNet", "final", alexnet(ALEXNET[2]), (2.1, 2.1)),
        ),
    ),
    (
        vgg(V19, *_IMAGENET, size=224),
        (Row("ImageNet, VGG-19_BN", "significant", vgg(V19_IMAGENET, *_IMAGENET, size=224), (1.7, 1.1)),),
    ),
)
"""The original of each pair of rows, and the rows."""


def ratios(original: Net, smaller: Net) -> tuple[float, float]:
    """How many times fewer operations and parameters."""
    (macs, parameters), (fewer, less) = original.cost, smaller.cost
    return macs / fewer, parameters / less


def table() -> list[str]:
    """Table 2's ratios as stated and as computed from its widths, in Markdown."""
    lines = ["| dataset, network | row | #ops stated | computed | #params stated | computed |", "|" + "---|" * 6]
    for original, rows in TABLE:
        for row in rows:
            ops, params = ratios(original, row.net)
            said = f"{row.stated[0]}X | {ops:.2f}X | {row.stated[1]}X | {params:.2f}X"
            lines.append(f"| {row.dataset} | {row.name} | {said} |")
    return lines


def network(net: Net, channels: int = 3) -> onnx.ModelProto:
    """The net as ONNX, all weights zero: Conv, BatchNormalization where it has norms, Relu; then Gemms."""
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []
    numbers = count()

    def stored(stem: str, *shape: int, value: float = 0.0) -> str:
        tensors.append(numpy_helper.from_array(np.full(shape, value, np.float32), f"{stem}{next(numbers)}"))
        return str(tensors[-1].name)

    def put(op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}{next(numbers)}"
        nodes.append(make_node(op, inputs, [name], name=name, **attributes))
        return name

    x, width, size = "input", channels, net.size
    for stage in net.stages:
        if isinstance(stage, str):
            x, size = put("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), size // 2
            continue
        pad = stage.kernel // 2 if stage.pad is None else stage.pad
        size = (size + 2 * pad - stage.kernel) // stage.stride + 1
        weight = stored("W", stage.width, 1 if stage.depthwise else width, stage.kernel, stage.kernel)
        bias = [stored("b", stage.width)] if net.biases else []
        groups = width if stage.depthwise else 1
        x = put("Conv", x, weight, *bias, group=groups, pads=[pad] * 4, strides=[stage.stride] * 2)
        width = stage.width
        if net.norms:
            x = put("BatchNormalization", x, *(stored("n", width, value=v) for v in (1.0, 0.0, 0.0, 1.0)))
        x = put("Relu", x)
    x = put("GlobalAveragePool", x) if net.pooled else x
    x, width = put("Flatten", x), width if net.pooled else width * size * size
    for at, head in enumerate(net.heads):
        x = put("Gemm", x, stored("W", head, width), stored("b", head), transB=1)
        x, width = put("Relu", x) if at < len(net.heads) - 1 else x, head
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", channels, net.size, net.size])
    made = helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", net.heads[-1]])
    graph = helper.make_graph(nodes, "net", [given], [made], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("\n".join(table()))
