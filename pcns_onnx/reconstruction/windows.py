"""Windows: small pieces of a layer's input and of what its reader should make of it.

A layer W, its activation s and its one reader V see a few positions of each other only. So a
piece of V's output needs the positions of s(W x) under V's kernel, and these the patches of x
under W's. `Windows` gathers these patches from neighbouring positions, drawn anew for every
batch, together with the original's output there: from then on V s(W x + b) + c is a few matrix
products, whatever the layers are. Where a MaxPool lies between, its positions are one step more.

Where neither layer has a kernel (Gemm, MatMul), a position sees itself only: rows of samples of all lengths, without
their padding, are put together as if each were a sample.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.live_rows import LivePlaces
from pcns_onnx.calibration.output_scale import channel_scales
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.graph import Graph, Node
from pcns_onnx.numerics.arrays import Array, namespace_of, to_numpy
from pcns_onnx.ops import Window
from pcns_onnx.runtime.memory import MemoryBudget

ROWS = 1 << 16
"""Rows of the reader's output that are gathered in all."""
BOX = 1024
"""Rows of one sample that are gathered together, at most."""


@dataclass(frozen=True)
class Route:
    """How a layer reaches its only reader: through its activation and, perhaps, a maximum over positions."""

    group: Group
    layer: Layer
    reader: Layer
    largest: Window | None

    @property
    def name(self) -> str:
        """The reader's name."""
        return self.reader.name


def route(graph: Graph, dependencies: DependencyGraph, layer: Layer) -> Route | None:
    """The route from a layer to the one that alone reads it; None where anything else touches channels or weights."""
    group = next((g for g in dependencies.groups if g.writers == (layer.name,)), None)
    if group is None or group.coupled or group.products or group.states or len(group.readers) != 1:
        return None  # a state means to the caller what it meant
    reader = dependencies.layer(group.readers[0])
    if dependencies.is_bound(layer) or dependencies.is_bound(reader):
        return None
    ops = layer.linear.op, reader.linear.op
    if any(op.conv_groups > 1 or op.mixed for op in ops) or len(reader.linear.reads) != layer.width:
        return None
    walked, name, largest = set[str](), reader.source, None
    while name != group.activation:
        node = graph.producers.get(name)
        if node is None:
            return None
        if node.key in dependencies.largest and largest is None:
            largest = dependencies.largest[node.key]
        elif not _only_reshapes(dependencies, node, layer.width):
            return None
        walked.add(node.key)
        name = node.inputs[0]
    # what lies between beside these nodes is the activation's own, and must be the same function everywhere
    own = [node for node in graph.nodes if node.key in group.path and node.key not in walked]
    inside = {layer.output, *(name for node in own for name in node.outputs)}
    alike = all(
        dependencies.kinds[n.key] in ("pointwise", "scaling") and _is_alike(graph, dependencies, n, inside) for n in own
    )
    return Route(group, layer, reader, largest) if alike else None


def _is_alike(graph: Graph, dependencies: DependencyGraph, node: Node, inside: Collection[str]) -> bool:
    """Whether a node does the same at all positions of all samples: it sees `inside`, numbers, channels' constants."""
    per_channel = {node.inputs[ride.position] for key, ride in dependencies.per_channel if key == node.key}
    constants = {name: graph.constant(name) for name in node.inputs if name and name not in per_channel | set(inside)}
    return all(value is not None and value.size == 1 for value in constants.values())


def _only_reshapes(dependencies: DependencyGraph, node: Node, channels: int) -> bool:
    """Whether a node moves the channels of a single position."""
    shape = dependencies.shapes.get(node.inputs[0], (None,))
    return dependencies.kinds.get(node.key) == "move" and prod(d or 0 for d in shape[1:]) == channels


@dataclass(frozen=True)
class Piece:
    """What one batch gives: N samples, the same positions in all.

    `x` (N, P, n) float32 are the layer's patches at the hidden positions, `y` (N, Q, K) float32
    the reader's targets. `peaks` (S, k) are the hidden positions that each pooled one has the
    largest of, None without a pool; `taps` (Q, t) the (pooled) positions under the reader's
    kernel. P (or S) stands for a row of zeros. `stacked`: the N are rows, of samples of any length.
    """

    x: Array
    y: Array
    peaks: NDArray[np.int64] | None
    taps: NDArray[np.int64]
    stacked: bool = False

    def split(self, count: int) -> tuple[Piece, Piece]:
        """The first `count` samples, and the others."""
        return (
            replace(self, x=self.x[:count, ...], y=self.y[:count, ...]),
            replace(self, x=self.x[count:, ...], y=self.y[count:, ...]),
        )

    def fits(self, other: Piece) -> bool:
        """Whether both have the same positions, so that their samples can be put together."""
        if self.peaks is None or other.peaks is None:
            return self.peaks is other.peaks and np.array_equal(self.taps, other.taps)
        return np.array_equal(self.peaks, other.peaks) and np.array_equal(self.taps, other.taps)

    @property
    def rows(self) -> int:
        """Rows of the reader's output."""
        return int(self.x.shape[0]) * int(self.taps.shape[0])

    def as_rows(self) -> Piece:
        """The same rows, each as a sample of its own; of layers without a kernel."""
        if self.stacked:
            return self
        xp = namespace_of(self.x)
        x = xp.take(self.x, xp.asarray(self.taps[:, 0]), axis=1)
        x, y = (xp.reshape(side, (-1, 1, int(side.shape[2]))) for side in (x, self.y))
        return Piece(x, y, None, np.zeros((1, 1), dtype=np.int64), stacked=True)

    def in_units(self, scale: NDArray[np.float64]) -> Piece:
        """The targets in units (K,) of their own."""
        xp = namespace_of(self.y)
        return replace(self, y=self.y / xp.asarray(scale, dtype=xp.float32))


def own_scale(pieces: Sequence[Piece]) -> NDArray[np.float64]:
    """(K,): the scale of every target, from how it varies over all pieces."""
    xp = namespace_of(pieces[0].y)
    rows = xp.concat([xp.reshape(piece.y, (-1, int(piece.y.shape[2]))) for piece in pieces], axis=0)
    return channel_scales(to_numpy(xp.std(xp.astype(rows, xp.float64), axis=0)))


class Windows:
    """Pieces of a layer and its reader, over all samples.

    `rows` are the reader's outputs that stay, `samples` how many samples there are, `places` where padding is.
    """

    def __init__(
        self,
        route: Route,
        dependencies: DependencyGraph,
        rows: NDArray[np.int64],
        samples: int,
        seed: tuple[int, ...],
        room: int = MemoryBudget.windows,
        places: LivePlaces | None = None,
    ):
        self._route, self._rows, self._seed, self._room = route, rows, seed, room
        self._hidden = tuple(d or 1 for d in dependencies.shapes[route.layer.output])
        self._read = tuple(d or 1 for d in dependencies.shapes[route.reader.source])
        self._samples = samples
        self._places = places or LivePlaces()
        self._used = 0
        self._pieces: list[Piece] = []

    @property
    def pieces(self) -> list[Piece]:
        """What was gathered; rows, as soon as there are samples of other lengths, or padding."""
        if any(piece.stacked for piece in self._pieces):
            return [piece.as_rows() for piece in self._pieces]
        return self._pieces

    def update(
        self, index: int, x: Array, y: Array, already: Array | None, tensors: Mapping[str, Array] | None = None
    ) -> None:
        """Take a batch in: the layer's input in the shrunk model, the reader's target, what it has already.

        `tensors`: what says which positions count, by name.
        """
        first, second = self._route.layer.linear.op, self._route.reader.linear.op
        has_rows = self._route.largest is None and all(op.axis < 0 and not op.mixed for op in (first, second))
        live = self._places.rows(self._route.layer.source, first, x.shape, None, tensors or {}) if has_rows else None
        is_known = first.positions(tuple(x.shape)) == self._positions(self._hidden)
        if has_rows and (live is not None or not is_known):
            self._add_rows(index, x, y, already, live)
        if live is not None or not is_known:
            return  # under a kernel, a batch of another size than the one that shapes are known of
        for at in self._draws(index, second.positions(self._read)):
            self._add(at, x, y, already)

    def _add(self, at: NDArray[np.int64], x: Array, y: Array, already: Array | None) -> None:
        """The piece of a batch at some output positions of the reader, if there is room."""
        xp, count = namespace_of(x), int(x.shape[0])
        first, second = self._route.layer.linear.op, self._route.reader.linear.op
        taps, positions = _compact(second.places(self._read, at))
        peaks = None
        if self._route.largest is not None:
            peaks, positions = _compact(self._route.largest.places(self._hidden, positions))
        patches = first.inputs(x, positions)
        size = int(patches.shape[0]) * int(patches.shape[1]) * 4
        if not self._takes(size):
            return
        targets = xp.take(second.outputs(y, at), xp.asarray(self._rows), axis=1)
        if already is not None:
            targets = targets - second.outputs(already, at)
        self._pieces.append(
            Piece(
                xp.astype(xp.reshape(patches, (count, len(positions), -1)), xp.float32),
                xp.astype(xp.reshape(targets, (count, len(at), -1)), xp.float32),
                peaks,
                taps,
            )
        )

    def _add_rows(self, index: int, x: Array, y: Array, already: Array | None, live: NDArray[np.bool_] | None) -> None:
        """Rows of a batch, of those that count, if there is room."""
        first, second = self._route.layer.linear.op, self._route.reader.linear.op
        xp, rows = namespace_of(x), first.inputs(x, None)
        targets = second.outputs(y, None)
        if int(targets.shape[0]) != int(rows.shape[0]):
            return
        places = np.arange(int(rows.shape[0])) if live is None else np.flatnonzero(live)
        count = self._wanted * (int(rows.shape[0]) // first.positions(tuple(x.shape)))
        if count < len(places):
            places = np.sort(np.random.default_rng([*self._seed, index]).choice(places, count, replace=False))
        if not len(places) or not self._takes(len(places) * int(rows.shape[1]) * 4):
            return
        at = xp.asarray(places)
        targets = targets if already is None else targets - second.outputs(already, None)
        targets = xp.take(xp.take(targets, at, axis=0), xp.asarray(self._rows), axis=1)
        x, y = (xp.astype(side, xp.float32)[:, None, :] for side in (xp.take(rows, at, axis=0), targets))
        self._pieces.append(Piece(x, y, None, np.zeros((1, 1), dtype=np.int64), stacked=True))

    def merge(self, other: Windows) -> None:
        """Add the pieces of later batches, as far as there is room."""
        self._pieces += [piece for piece in other._pieces if self._takes(prod(piece.x.shape) * 4)]

    def _takes(self, size: int) -> bool:
        """Whether there is room for so many bytes, which are taken then; the first always fits."""
        if self._used and self._used + size > self._room:
            return False
        self._used += size
        return True

    def _positions(self, shape: tuple[int, ...]) -> int:
        return prod(shape) // shape[0] // self._route.layer.width

    @property
    def _wanted(self) -> int:
        """Rows of every sample."""
        columns = len(self._route.layer.linear.reads) * self._route.layer.linear.op.taps
        return max(1, min(ROWS, self._room // (4 * columns)) // self._samples)

    def _draws(self, index: int, available: int) -> Iterator[NDArray[np.int64]]:
        """Output positions of the reader: boxes of neighbours, each at a place of its own in every batch."""
        wanted = self._wanted
        generator = np.random.default_rng([*self._seed, index])
        if wanted >= available and available <= BOX:
            yield np.arange(available)
            return
        sizes, wanted = self._route.reader.linear.op.grid(self._read), min(wanted, available)
        side = max(1, int(min(wanted, BOX) ** (1 / len(sizes))))
        for _ in range(-(-wanted // BOX)):
            axes = []
            for size in sizes:
                start = int(generator.integers(0, max(size - side, 0) + 1))
                axes.append(np.arange(start, min(start + side, size)))
            yield np.ravel_multi_index(np.meshgrid(*axes, indexing="ij"), sizes).reshape(-1)


def _compact(places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places as indices into the sorted different ones (their number for -1), and these."""
    distinct = np.unique(places[places >= 0])
    return np.where(places < 0, len(distinct), np.searchsorted(distinct, np.maximum(places, 0))), distinct
