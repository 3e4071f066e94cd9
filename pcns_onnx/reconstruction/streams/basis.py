"""The basis of a residual stream: the principal axes of what its norms make of it.

    M = E over norms and positions of n n',   n = C x / sqrt(mean (C x)² + e),   Q = eigenvectors of M

uncentred, since the readers see n itself: what is cut away of it is the share of M's trace that is not among the first
d eigenvalues (Ashkboos et al. 2024, SliceGPT; one Q for all blocks, so that no block needs a matrix to get from one
basis to the next).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.calibration.live_rows import LivePlaces
from pcns_onnx.dependency.streams.stream import Stream
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import Array, namespace_of, to_numpy
from pcns_onnx.numerics.linalg import eigh_descending
from pcns_onnx.runtime.activations import Cut
from pcns_onnx.runtime.executor import Sides
from pcns_onnx.runtime.samples import Positions

_TINY = 1e-30


@dataclass(frozen=True)
class StreamBasis:
    """Q (D, D), the principal axes as columns, and what each holds of the normalised stream, as shares (D,)."""

    axes: NDArray[np.float64]
    shares: NDArray[np.float64]

    def first(self, count: int) -> NDArray[np.float64]:
        """(D, count): the axes that hold most."""
        return self.axes[:, :count]

    def lost(self, count: int) -> float:
        """The share of the normalised stream that the others hold."""
        return float(np.clip(1.0 - self.shares[:count].sum(), 0.0, 1.0))

    @classmethod
    def of(cls, moment: Array) -> StreamBasis:
        """From M (D, D); each axis has its largest entry positive."""
        values, vectors = (to_numpy(part) for part in eigh_descending((moment + moment.T) / 2))
        values = np.clip(values, 0.0, None)
        upright = np.where(vectors.max(axis=0) >= -vectors.min(axis=0), 1.0, -1.0)
        return cls(vectors * upright, values / max(float(values.sum()), _TINY))


class StreamObserver:
    """The second moments of what norms make of some tensors, each with channels on its last axis."""

    def __init__(self, tensors: Sequence[str], width: int, centres: bool, positions: Positions, places: LivePlaces):
        self._tensors, self._width, self._centres = tensors, width, centres
        self._positions, self._places = positions, places
        self.moments: dict[str, Array] = {}
        self.rows: dict[str, int] = {}

    def begin(self, sides: Sides) -> None:
        """There is nothing to settle."""

    def update(self, index: int, sides: Sides) -> None:
        """Take a batch in: at most as many rows of it as its share."""
        tensors = sides[0]
        for name in self._tensors:
            x = tensors[name]
            xp, samples = namespace_of(x), int(x.shape[0])
            (x,) = self._places.only(name, tensors, x)
            rows = xp.astype(xp.reshape(x, (-1, self._width)), xp.float64)
            available = np.arange(int(rows.shape[0]), dtype=np.int64)
            chosen = self._positions.choose(index, available, self._positions.of_live * samples)
            rows = xp.take(rows, xp.asarray(chosen), axis=0)
            if self._centres:
                rows = rows - xp.mean(rows, axis=1)[:, None]
            power = xp.mean(rows * rows, axis=1)[:, None]
            rows = rows / xp.sqrt(power + _TINY)
            own = rows.T @ rows
            self.moments[name] = self.moments[name] + own if name in self.moments else own
            self.rows[name] = self.rows.get(name, 0) + int(rows.shape[0])

    def merge(self, other: StreamObserver) -> None:
        """Add what later batches hold."""
        for name, moment in other.moments.items():
            self.moments[name] = self.moments[name] + moment if name in self.moments else moment
            self.rows[name] = self.rows.get(name, 0) + other.rows[name]


def basis_of(calibration: Calibration, graph: Graph, stream: Stream) -> StreamBasis:
    """One pass over the samples: every norm of the stream counts as much."""
    tensors = list(dict.fromkeys(_read_by(graph, stream)))
    places = calibration.live_places(graph, tensors)
    observer = StreamObserver(tensors, stream.width, stream.centres, calibration.scattered(stream.width), places)
    observer = calibration.gather([Cut(graph, [*tensors, *places.wanted])], observer, "stream")
    means = [observer.moments[name] / max(observer.rows[name], 1) for name in tensors]
    return StreamBasis.of(sum(means[1:], start=means[0]))


def _read_by(graph: Graph, stream: Stream) -> list[str]:
    """The tensors that norms read: of those of a sum, the sum, which an Add would make."""
    names = []
    for norm in stream.norms.values():
        if norm.kind != "skip":
            names.append(norm.source)
        elif len(node := graph.node(norm.key).outputs) > 3 and node[3]:
            names.append(node[3])
        else:
            names.append(graph.node(norm.key).inputs[0])
    return names
