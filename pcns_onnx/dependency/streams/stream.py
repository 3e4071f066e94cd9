"""A residual stream: a vector per position that blocks add to, and read through norms alone.

    x = table[tokens] + sum of writers(...),    readers(norm(x))

Found from its norms: their inputs are followed to all tensors that carry the same vector (sums, moves along other
axes), up to what writes it and down to what reads it. Where every writer and every reader is linear, an orthogonal
matrix on the stream can be put into them (Ashkboos et al. 2024, SliceGPT), and the stream gets narrower. Anything else
is a reason to leave it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.dependency.layers import Layer
from pcns_onnx.dependency.streams.norms import Norm

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Slot:
    """Input `position` of node `key`; `from_end`: on which axis it has the channels, 1 for the last."""

    key: str
    position: int
    from_end: int = 1


@dataclass(frozen=True)
class Writer:
    """A layer that writes the stream, times `scale` (N,), which node `scaling` applies ('' where none does)."""

    layer: Layer
    scale: Vector | None = None
    scaling: str = ""


@dataclass(frozen=True)
class Reading:
    """What stands between a norm and a reader: y = scale * normed + shift, each (N,)."""

    scale: Vector
    shift: Vector


@dataclass(frozen=True)
class Reader:
    """A layer that reads the stream, through a norm (`reading`) or as it is (None)."""

    layer: Layer
    reading: Reading | None


@dataclass(frozen=True)
class End:
    """An output of the model that shows the stream, through a norm (`reading`) or as it is (None)."""

    tensor: str
    reading: Reading | None


@dataclass
class Stream:
    """Where a stream runs, by the axis of the channels of every tensor, and all that has to change with it.

    `entries` are tensors that no layer and no table writes: a matrix is put behind them. `tables` are stored vectors.
    `scalings` and `shifts` are nodes behind norms that multiply or add a stored vector; `numbers` are inputs that
    name the width among sizes, with the element.
    """

    width: int
    tensors: dict[str, int] = field(default_factory=dict)
    writers: dict[str, Writer] = field(default_factory=dict)
    tables: dict[tuple[str, int], Slot] = field(default_factory=dict)
    entries: dict[str, str] = field(default_factory=dict)
    norms: dict[str, Norm] = field(default_factory=dict)
    readers: dict[str, Reader] = field(default_factory=dict)
    ends: dict[str, End] = field(default_factory=dict)
    scalings: dict[str, int] = field(default_factory=dict)
    shifts: dict[str, int] = field(default_factory=dict)
    numbers: dict[tuple[str, int], int] = field(default_factory=dict)
    sums: int = 0
    name: str = ""

    @property
    def centres(self) -> bool:
        """Whether its norms take the mean over the channels away."""
        return any(norm.centres for norm in self.norms.values())


@dataclass(frozen=True)
class Streams:
    """The streams of a model that can get narrower, and by name why the others cannot."""

    streams: tuple[Stream, ...]
    refused: Mapping[str, str]
