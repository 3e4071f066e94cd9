"""Images seen otherwise, by both models: mirrored, or shifted by up to two pixels.

The original is asked about the same image, so no label can be wrong. What it says of an image that it would never meet
teaches little, though, and costs time: by itself photographs are mirrored (three channels, 16 pixels or more), single
channels that are classified, and rows that are images, are shifted, and everything else is left as it is. Text is never
mirrored: a model with a recurrent layer, or whose one output is a sequence of classes, is left alone, and so are images
far wider than high, which are lines of text or spectrograms.

    a row of L x L numbers is an image  if  its numbers correlate with those one line up (L places before) like with
                                        their neighbours, and more than with those half a line away
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.data.batch import Batch
from pcns_onnx.distillation.options import AugmentChoice
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph

Array = NDArray[Any]
Kind = Literal["none", "mirror", "shift"]

LEAST_WIDTH = 16
SHIFT = 2
_ALIKE, _APART = 0.4, 0.1
"""Correlation of a row's numbers with those above them, and how much less it is half a line away."""
_LINE = 2.5
"""Times that an image is wider than high, from which on it is a line: photographs are up to 16 : 9, panoramas rare."""
_RECURRENT = frozenset({"LSTM", "GRU", "RNN", "Scan", "Loop"})


@dataclass(frozen=True)
class Augmentation:
    """What is done to the images at `inputs`: (height axis, width axis), or the `side` of those that are rows."""

    kind: Kind
    inputs: Mapping[str, tuple[int, int] | int]
    why: str

    @property
    def versions(self) -> int | None:
        """How many forms of a sample there are, if few."""
        return {"none": 1, "mirror": 2, "shift": None}[self.kind]

    def draw(self, generator: np.random.Generator, size: int) -> Array:
        """(size, 2): what is done to each sample."""
        if self.kind == "none":
            return np.zeros((size, 2), dtype=np.int64)
        if self.kind == "mirror":
            return np.asarray(generator.integers(0, 2, (size, 1)) * np.array([[0, 1]]))
        return generator.integers(-SHIFT, SHIFT + 1, (size, 2))

    def apply(self, batch: Batch, drawn: Array) -> Batch:
        """The samples, seen otherwise."""
        if self.kind == "none" or not drawn.any():
            return batch
        feeds = dict(batch.feeds)
        for name, axes in self.inputs.items():
            values = feeds[name]
            images = values.reshape(len(values), axes, axes) if isinstance(axes, int) else values
            height, width = (1, 2) if isinstance(axes, int) else axes
            if self.kind == "mirror":
                images = images.copy()
                rows = drawn[:, 1] > 0
                images[rows] = np.flip(images[rows], width)
            else:
                images = _shifted(images, height, width, drawn)
            feeds[name] = np.ascontiguousarray(images.reshape(values.shape))
        return replace(batch, feeds=feeds)


def _shifted(images: Array, height: int, width: int, drawn: Array) -> Array:
    """Every image moved by its (rows, columns); what comes in repeats the edge."""
    shifted = np.empty_like(images)
    down, right = np.arange(images.shape[height]), np.arange(images.shape[width])
    for at, (y, x) in enumerate(drawn):
        moved = images[at].take((down - y).clip(0, len(down) - 1), axis=height - 1)
        shifted[at] = moved.take((right - x).clip(0, len(right) - 1), axis=width - 1)
    return shifted


def augmentation_of(choice: AugmentChoice, graph: Graph, batches: Sequence[Batch]) -> Augmentation:
    """What is done to the samples of a model; raises `InputError` where what is asked for cannot be done."""
    images, rows = _images(graph, batches), _rows(batches)
    if choice == "none":
        return Augmentation("none", {}, "as asked")
    if choice == "mirror" or (choice == "shift" and images):
        if not images:
            raise InputError("--heal-augment mirror needs images of floats with four axes: the model takes none")
        return Augmentation(choice, {name: axes[:2] for name, axes in images.items()}, "as asked")
    if choice == "shift":
        squares = {name: isqrt(values.shape[1]) for name, values in rows.items() if isqrt(values.shape[1]) >= 4}
        squares = {name: side for name, side in squares.items() if side**2 == rows[name].shape[1]}
        if not squares:
            raise InputError("--heal-augment shift needs images, or rows that are square images: the model takes none")
        return Augmentation("shift", squares, "as asked")
    return _by_itself(graph, batches, images, rows)


def _by_itself(
    graph: Graph, batches: Sequence[Batch], images: Mapping[str, tuple[int, int, int]], rows: Mapping[str, Array]
) -> Augmentation:
    if _reads_in_order(graph):
        return Augmentation("none", {}, "the model reads a sequence, such as a line of text")
    if any(
        batches[0].feeds[name].shape[x] >= _LINE * batches[0].feeds[name].shape[y] for name, (y, x, _) in images.items()
    ):
        return Augmentation("none", {}, "images far wider than high, such as lines of text")
    channels = {count for _, _, count in images.values()}
    axes = {name: axes[:2] for name, axes in images.items()}
    classified = any(len(spec.shape) == 2 for spec in graph.outputs)
    if channels == {3}:
        return Augmentation("mirror", axes, "photographs: images of three channels")
    if channels == {1} and classified:
        return Augmentation("shift", axes, "images of one channel, which are classified")
    squares = {name: side for name, values in rows.items() if (side := _side(values))}
    if squares and not images:
        sizes = ", ".join(f"{side} x {side}" for side in squares.values())
        return Augmentation("shift", squares, f"rows that are images of {sizes}: their numbers go with those above")
    return Augmentation(
        "none", {}, "no input is a photograph or a classified image of one channel, of 16 pixels or more"
    )


def _images(graph: Graph, batches: Sequence[Batch]) -> dict[str, tuple[int, int, int]]:
    """Inputs that hold images: the axes of height and width, and how many channels there are."""
    images, first = dict[str, tuple[int, int, int]](), batches[0]
    for spec in graph.inputs:
        values = first.feeds.get(spec.name)
        if values is None or values.ndim != 4 or values.dtype.kind != "f" or first.axes.get(spec.name, 0) != 0:
            continue
        for channel, axes in ((1, (2, 3)), (3, (1, 2))):
            if values.shape[channel] in (1, 3) and values.shape[axes[1]] >= LEAST_WIDTH:
                images[spec.name] = (*axes, values.shape[channel])
                break
    return images


def _rows(batches: Sequence[Batch]) -> dict[str, Array]:
    """Inputs that are rows of floats, with some of them."""
    return {
        name: np.concatenate([batch.feeds[name] for batch in batches]).astype(np.float32)
        for name, values in batches[0].feeds.items()
        if values.ndim == 2 and values.dtype.kind == "f" and batches[0].axes.get(name, 0) == 0
    }


def _side(rows: Array) -> int:
    """The side of the square images that rows are; 0 where they are none."""
    side = isqrt(rows.shape[1])
    if side < LEAST_WIDTH or side**2 != rows.shape[1] or len(rows) < 2:
        return 0
    above, half = _correlation(rows, side), _correlation(rows, side // 2)
    return side if min(above, _correlation(rows, 1)) > _ALIKE and above > half + _APART else 0


def _correlation(rows: Array, lag: int) -> float:
    """Of numbers with those `lag` places before, over all rows: the mean taken off each place."""
    centred = rows - rows.mean(axis=0)
    a, b = centred[:, lag:], centred[:, :-lag]
    power = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / power if power else 0.0


def _reads_in_order(graph: Graph) -> bool:
    """Whether the model has a recurrent layer, or its one output holds a sequence of classes (as CTC takes it)."""
    if any(node.op in _RECURRENT for node in graph.nodes):
        return True
    if len(graph.outputs) != 1 or len(graph.outputs[0].shape) != 3:
        return False
    node = graph.producers.get(graph.outputs[0].name)
    while node is not None and node.op in ("Transpose", "Identity", "Reshape", "Squeeze"):
        node = graph.producers.get(node.inputs[0])
    return node is not None and node.op in ("Softmax", "LogSoftmax", "MatMul", "Gemm", "Add")
