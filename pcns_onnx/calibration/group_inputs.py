"""The first pass over the data: what the readers see.

It runs the original model once and gathers, for every group, the second moments of its readers'
inputs; everything that chooses channels and widths works on these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from pcns_onnx.calibration.layer_inputs import COLUMNS, Columns, ProductView, Seen, View
from pcns_onnx.calibration.ranking import Reading
from pcns_onnx.dependency.groups import Census, Group
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import Array, namespace_of
from pcns_onnx.progress import Progress
from pcns_onnx.runtime.activations import Positions, Samples, Stop, Tensors, run_batches
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.executor import Alone, Crew, G, Sides, Tapes
from pcns_onnx.runtime.memory import Shares

ROWS_PER_COLUMN = (40, 20)
"""Rows sampled per column of a layer: up to, and beyond, a thousand columns."""


Places = tuple[str, int]
"""A layer's name and the number of one of its blocks."""


@dataclass(frozen=True)
class Setup:
    """What every pass needs to know: where to run, on which samples, with which seed, in how much memory, by whom."""

    engine: Engine
    samples: Samples
    seed: int
    progress: Progress
    shares: Shares = field(default_factory=Shares)
    crew: Crew = field(default_factory=Alone)

    def tapes(self, count: int) -> Tapes:
        """Tapes over the samples, side by side, from the inputs on."""
        return self.crew.tapes(self.engine, self.samples, self.progress, self.shares.tape, count)

    def gather(self, ends: Sequence[Stop], into: G, title: str | None = None) -> G:
        """Run graphs over all samples, each to its end, and gather what is wanted there into `into`."""
        with closing(self.tapes(len(ends))) as tapes:
            return tapes.advance(ends, into, title)

    def scattered(self, columns: int) -> Positions:
        """Sampled positions of a tensor that no layer reads."""
        return Positions(columns * ROWS_PER_COLUMN[0], self.samples.count, (self.seed, 5))

    def positions(self, census: Census, layer: Layer, stage: int) -> Positions:
        """Sampled output positions of a layer, drawn anew for each stage."""
        columns = len(layer.linear.reads) // layer.linear.op.blocks * layer.linear.op.taps
        columns = min(columns, COLUMNS) if stage == 0 else columns
        rows = columns * ROWS_PER_COLUMN[columns > 1024]
        seed = (self.seed, stage, census.layers.index(layer))
        return Positions(rows, self.samples.count, seed)


@dataclass(frozen=True)
class GroupReadings:
    """How a group is read: by each block of each reader (layer name, block), by each head of each product."""

    group: Group
    layers: Mapping[Places, Reading]
    products: Mapping[str, list[Reading]]

    @property
    def all(self) -> list[Reading]:
        """Every reading, in a fixed order."""
        return [*self.layers.values(), *(reading for heads in self.products.values() for reading in heads)]

    def without_refit(self) -> GroupReadings:
        """Products as they are where no change of basis can make up for what goes: every channel for itself."""
        return replace(self, products={key: [_alone(r) for r in heads] for key, heads in self.products.items()})

    def seen(self) -> dict[Places, Seen]:
        """What the re-fit of the readers needs of it."""
        labels = self.group.labels
        return {
            place: Seen(labels[reading.among(len(labels))], reading.channel_covariance())
            for place, reading in self.layers.items()
        }


def _alone(reading: Reading) -> Reading:
    """A product's reading without the correlations between channels."""
    xp = namespace_of(reading.covariance)
    energy = xp.sum(reading.matrix * reading.matrix, axis=0)
    eye = xp.eye(reading.channels, dtype=xp.float64)
    return replace(reading, covariance=eye * xp.linalg.diagonal(reading.covariance), matrix=eye * xp.sqrt(energy))


class _Views:
    """How some groups are read: by blocks of layers, and by products."""

    def __init__(self, setup: Setup, graph: Graph, census: Census, groups: Sequence[Group]) -> None:
        layers = [layer for layer in census.layers if any(layer.name in group.readers for group in groups)]
        self._layers = [(layer, setup.positions(census, layer, 0)) for layer in layers]
        self._views = {
            (layer.name, block): {
                group.name: View(graph, group, layer, part, setup.engine.xp)
                for group in groups
                if np.isin(part.reads, group.labels).any()
            }
            for layer in layers
            for block, part in enumerate(layer.parts)
        }
        self._products = {
            (g.name, p.key): (p.names, setup.scattered(len(p.labels)), ProductView(p, setup.engine.xp))
            for g in groups
            for p in g.products
        }

    @property
    def wanted(self) -> list[str]:
        """The tensors that are looked at."""
        sources = [layer.source for layer, _ in self._layers]
        return list(dict.fromkeys(sources + [name for names, _, _ in self._products.values() for name in names]))

    def begin(self, sides: Sides) -> None:
        """Settle how taps are compressed."""
        if any(view.is_open for views in self._views.values() for view in views.values()):
            for view, rows in self._rows(0, sides[0]):
                view.begin(rows)

    def update(self, index: int, sides: Sides) -> None:
        """Show a batch to all views."""
        (tensors,) = sides
        for view, rows in self._rows(index, tensors):
            view.update(rows)
        for (q, k), positions, product in self._products.values():
            product.update(tensors[q], tensors[k], partial(positions.draw, index))

    def merge(self, other: _Views) -> None:
        """Add what was seen of later batches."""
        for place, views in self._views.items():
            for name, view in views.items():
                view.merge(other._views[place][name])
        for key, (_, _, product) in self._products.items():
            product.merge(other._products[key][2])

    def readings(self, group: Group) -> GroupReadings:
        """What was seen of a group; can be asked for once."""
        mine = {place: views.pop(group.name).reading() for place, views in self._views.items() if group.name in views}
        heads = {p.key: self._products[group.name, p.key][2].readings(group) for p in group.products}
        return GroupReadings(group, mine, heads)

    def _rows(self, index: int, tensors: Tensors) -> Iterator[tuple[View, Array]]:
        """The views with their blocks' input rows in a batch."""
        for layer, positions in self._layers:
            x = tensors[layer.source]
            at = positions.draw(index, layer.linear.op.positions(x.shape))
            for block, part in enumerate(layer.parts):
                rows = part.op.inputs(x, at)
                for view in self._views[layer.name, block].values():
                    yield view, rows


def read_groups(setup: Setup, graph: Graph, census: Census, groups: Sequence[Group]) -> Iterator[GroupReadings]:
    """Pass one: how each group is read in `graph`; as many at once as memory allows."""
    for chunk in _chunks(census, groups, setup.shares.statistics):
        views = _Views(setup, graph, census, chunk)
        setup.gather([Stop(graph, views.wanted)], views, "capture")
        for group in chunk:
            yield views.readings(group)


def is_same(setup: Setup, a: Graph, b: Graph, names: Sequence[str]) -> bool:
    """Whether two graphs agree, up to the rounding of float32, on these tensors for the first batch."""
    both = (next(run_batches(setup.engine, graph, setup.samples, list(dict.fromkeys(names)))) for graph in (a, b))
    xp, (left, right) = setup.engine.xp, both
    miss = [float(xp.max(xp.abs(left[n] - right[n]))) - 1e-3 * float(xp.max(xp.abs(left[n]))) for n in names]
    return all(found <= 0 for found in miss)


def _chunks(census: Census, groups: Sequence[Group], room: int) -> Iterator[list[Group]]:
    """Groups whose second moments fit into `room` bytes together; the others take another pass."""
    chunk: list[Group] = []
    used = 0
    for group in groups:
        size = 0
        for part in (part for name in group.readers for part in census.layer(name).parts):
            channels, taps = Columns.of(part, group.labels).index.shape
            size += 8 * max(channels, min(channels * taps, COLUMNS)) ** 2
        if chunk and used + size > room:
            yield chunk
            chunk, used = [], 0
        chunk.append(group)
        used += size
    if chunk:
        yield chunk
