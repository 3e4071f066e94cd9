"""Outputs that are no plain tensors: sequences and maps as arrays, and how many rows were found where that varies."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pcns_onnx.numerics.arrays import to_numpy


class Counts(msgspec.Struct, frozen=True):
    """How much an output holds whose size depends on what is found: means per run, and the share of runs where both
    models find as many."""

    a: float
    b: float
    same: float


class CountTally:
    """The shapes of one output of two models, run by run."""

    def __init__(self) -> None:
        self._shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def update(self, a: tuple[int, ...], b: tuple[int, ...]) -> None:
        """Take the shapes of a run in."""
        self._shapes.append((a, b))

    def result(self) -> Counts | None:
        """What was counted: elements along the axes on which the models differ; None where they never do."""
        if all(a == b for a, b in self._shapes):
            return None
        pairs = [dict(enumerate(zip_longest(a, b))) for a, b in self._shapes]
        axes = {axis for pair in pairs for axis, (one, other) in pair.items() if one != other}
        sides = [[_along(shape, axes) for shape in side] for side in zip(*self._shapes, strict=True)]
        same = float(np.mean([a == b for a, b in self._shapes]))
        return Counts(float(np.mean(sides[0])), float(np.mean(sides[1])), same)


def _along(shape: tuple[int, ...], axes: set[int]) -> int:
    return int(np.prod([size for axis, size in enumerate(shape) if axis in axes], dtype=np.int64))


def as_array(value: Any) -> NDArray[Any]:
    """An output on the host; of a sequence, a map or an optional all that it holds, a row per sample where it has such.

    A sequence of maps (as classifiers have) has a row per map; of tensors, the rows of all side by side where they
    have as many, and otherwise one row of all elements.
    """
    if not isinstance(value, list | tuple | dict) and value is not None:
        return to_numpy(value)
    if isinstance(value, dict):
        parts = [np.asarray(value[key]).reshape(1, -1) for key in sorted(value)]
    else:
        parts = [as_array(item) for item in value or ()]
        if any(isinstance(item, dict) for item in value or ()):
            return np.concatenate(parts) if len({part.shape[1] for part in parts}) == 1 else _flat(parts)
    rows = {part.shape[0] if part.ndim else -1 for part in parts}
    if len(rows) == 1 and (count := rows.pop()) >= 0:
        return np.concatenate([part.reshape(count, int(np.prod(part.shape[1:]))) for part in parts], axis=1)
    return _flat(parts)


def _flat(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=np.float32), *(part.reshape(-1) for part in parts)]).reshape(1, -1)
