"""Channels that a Reshape spreads over channels and positions go as the operator further on counts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest

from builders.chains import ints, node, random
from builders.contract import holds, nothing_lost, surveyed
from builders.models import Array, build

C = 8
"""Channels behind the Reshape, each of which is there twice."""


def twice(*shape: int, axis: int = 0) -> Array:
    """Weights of `shape` whose second half along an axis repeats the first."""
    half = [size // 2 if at == axis else size for at, size in enumerate(shape)]
    return np.concatenate([random(*half)] * 2, axis=axis)


@dataclass(frozen=True)
class Unfolded:
    """x -> a first layer -> `nodes` -> a layer that has the channels on axis 1, or reads the last axis."""

    nodes: Sequence[onnx.NodeProto]
    first: Array
    reader: str = "Conv"
    weights: Mapping[str, Array] = field(default_factory=dict)
    rank: int = 2
    input: tuple[int, ...] = (10,)

    def build(self) -> onnx.ModelProto:
        is_image = len(self.input) > 1
        pads = [1] * (2 * (len(self.input) - 1))
        front = node("Conv", "x W0", "a", pads=pads) if is_image else node("Gemm", "x W0", "a", transB=1)
        taps = (3,) * self.rank
        shape = {"Conv": (4, C, *taps), "ConvTranspose": (C, 4, *taps), "MatMul": (C, 4)}[self.reader]
        back = [node("Relu", "m", "r"), node(self.reader, "r W1", "y")]
        weights = {"W0": self.first, "W1": random(*shape), **self.weights}
        return build([front, *self.nodes, *back], weights, ("N", *self.input))


def dense(order: str, **sizes: int) -> Array:
    """A first layer (outputs, 10) whose outputs are in this order of axes, of which c is the channels'."""
    shape = [sizes.get(axis, C) for axis in order]
    value = twice(*shape, 10, axis=order.index("c"))
    return value.reshape(-1, 10)


def stem(order: str, spatial: int = 2, **sizes: int) -> Array:
    """The same for a Conv that reads 3 channels."""
    shape = [sizes.get(axis, C) for axis in order]
    return twice(*shape, 3, *[3] * spatial, axis=order.index("c")).reshape(-1, 3, *[3] * spatial)


VIEW = [node("Reshape", "a s", "m")]
SHUFFLED = [
    node("Reshape", "a s", "b"),
    node("Transpose", "b", "c", perm=[0, 1, 4, 2, 5, 3]),
    node("Reshape", "c t", "m"),
]

CASES = {
    "view, ConvTranspose": Unfolded(VIEW, dense("chw", h=4, w=4), "ConvTranspose", {"s": ints(-1, C, 4, 4)}),
    "view, Conv": Unfolded(VIEW, dense("chw", h=4, w=5), weights={"s": ints(-1, C, 4, 5)}),
    "view with an open number of channels": Unfolded(VIEW, dense("chw", h=4, w=4), weights={"s": ints(0, -1, 4, 4)}),
    "view, Conv1d": Unfolded(VIEW, dense("cl", l=5), weights={"s": ints(-1, C, 5)}, rank=1),
    "view, Conv3d": Unfolded(VIEW, dense("cdhw", d=3, h=3, w=3), weights={"s": ints(-1, C, 3, 3, 3)}, rank=3),
    "view, Relu, upsampling": Unfolded(
        [node("Reshape", "a s", "b"), node("Relu", "b", "c"), node("Resize", "c - z", "m")],
        dense("chw", h=3, w=3),
        weights={"s": ints(-1, C, 3, 3), "z": np.array([1, 1, 2, 2], dtype=np.float32)},
    ),
    "view, norm": Unfolded(
        [node("Reshape", "a s", "b"), node("BatchNormalization", "b one zero zero one", "m")],
        dense("chw", h=4, w=4),
        weights={"s": ints(-1, C, 4, 4), "one": np.ones(C, np.float32), "zero": np.zeros(C, np.float32)},
    ),
    "view of rows, Unsqueeze": Unfolded(
        [node("Reshape", "a s", "b"), node("Unsqueeze", "b e", "m")],
        dense("cl", l=9),
        "ConvTranspose",
        {"s": ints(-1, C, 9), "e": ints(2)},
    ),
    "view, channels last, Transpose": Unfolded(
        [node("Reshape", "a s", "b"), node("Transpose", "b", "m", perm=[0, 3, 1, 2])],
        dense("hwc", h=4, w=4),
        weights={"s": ints(-1, 4, 4, C)},
    ),
    "view, channels last, MatMul": Unfolded(VIEW, dense("hwc", h=4, w=4), "MatMul", {"s": ints(-1, 4, 4, C)}),
    "view of a computed shape": Unfolded(
        [
            node("Shape", "x", "n"),
            node("Slice", "n i0 i1", "k"),
            node("Concat", "k s", "u", axis=0),
            node("Reshape", "a u", "m"),
        ],
        dense("chw", h=4, w=4),
        weights={"i0": ints(0), "i1": ints(1), "s": ints(C, 4, 4)},
    ),
    "pixel shuffle": Unfolded(
        SHUFFLED,
        stem("cpq", p=2, q=2),
        weights={"s": ints(-1, C, 2, 2, 6, 6), "t": ints(-1, C, 12, 12)},
        input=(3, 6, 6),
    ),
    "pixel shuffle, depth first": Unfolded(
        [SHUFFLED[0], node("Transpose", "b", "c", perm=[0, 3, 4, 1, 5, 2]), SHUFFLED[2]],
        stem("pqc", p=2, q=2),
        weights={"s": ints(-1, 2, 2, C, 6, 6), "t": ints(-1, C, 12, 12)},
        input=(3, 6, 6),
    ),
    "pixel shuffle of a line": Unfolded(
        [SHUFFLED[0], node("Transpose", "b", "c", perm=[0, 1, 3, 2]), SHUFFLED[2]],
        stem("cp", 1, p=3),
        weights={"s": ints(-1, C, 3, 7), "t": ints(-1, C, 21)},
        rank=1,
        input=(3, 7),
    ),
    "patches to an image": Unfolded(
        [SHUFFLED[0], node("Transpose", "b", "c", perm=[0, 5, 1, 3, 2, 4]), SHUFFLED[2]],
        dense("hwpqc", h=2, w=2, p=3, q=3),
        weights={"s": ints(-1, 2, 2, 3, 3, C), "t": ints(-1, C, 6, 6)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_channels_go_with_all_their_positions(case: Unfolded) -> None:
    model = case.build()
    holds(model, C)
    nothing_lost(model, 0.5)


def test_a_channel_shuffle_takes_the_same_place_of_every_group() -> None:
    """Both axes of the split come back on the axis of channels: neither is the channels'."""
    nodes = [SHUFFLED[0], node("Transpose", "b", "c", perm=[0, 2, 1, 3, 4]), SHUFFLED[2]]
    weights = {"s": ints(-1, 2, C // 2, 6, 6), "t": ints(-1, C, 6, 6)}
    _, dependencies = surveyed(Unfolded(nodes, stem("c"), weights=weights, input=(3, 6, 6)).build())
    assert (dependencies.groups[0].width, dependencies.groups[0].unit) == (C // 2, 2)
