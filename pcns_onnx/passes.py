"""The first pass over the data: what the readers see.

It runs the original model once and gathers, for every group, the second moments of its readers'
inputs; everything that chooses channels and widths works on these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from pcns_onnx.backend import namespace_of
from pcns_onnx.capture import Positions, Samples, run_batches
from pcns_onnx.graph import Graph
from pcns_onnx.groups import Census, Group
from pcns_onnx.layers import Layer
from pcns_onnx.memory import Shares
from pcns_onnx.methods import Reading
from pcns_onnx.progress import Progress
from pcns_onnx.reading import COLUMNS, Columns, ProductView, Seen, View
from pcns_onnx.runtime import Engine

ROWS_PER_COLUMN = (40, 20)
"""Rows sampled per column of a layer: up to, and beyond, a thousand columns."""


Places = tuple[str, int]
"""A layer's name and the number of one of its blocks."""


@dataclass(frozen=True)
class Setup:
    """What every pass needs to know: where to run, on which samples, with which seed, in how much memory."""

    engine: Engine
    samples: Samples
    seed: int
    progress: Progress
    shares: Shares = field(default_factory=Shares)

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


def read_groups(setup: Setup, graph: Graph, census: Census, groups: Sequence[Group]) -> Iterator[GroupReadings]:
    """Pass one: how each group is read in `graph`; as many at once as memory allows."""
    for chunk in _chunks(census, groups, setup.shares.statistics):
        layers = [layer for layer in census.layers if any(layer.name in group.readers for group in chunk)]
        places = [setup.positions(census, layer, 0) for layer in layers]
        read_by = {
            (layer.name, block): [group for group in chunk if np.isin(part.reads, group.labels).any()]
            for layer in layers
            for block, part in enumerate(layer.parts)
        }
        products = {(g.name, p.key): (p, ProductView(p, setup.engine.xp)) for g in chunk for p in g.products}
        views: dict[tuple[str, Places], View] = {}
        wanted = [layer.source for layer in layers] + [name for p, _ in products.values() for name in p.names]
        batches = run_batches(setup.engine, graph, setup.samples, list(dict.fromkeys(wanted)))
        for index, tensors in enumerate(setup.progress.track(batches, "capture", setup.samples.batches)):
            for layer, drawn in zip(layers, places, strict=True):
                x = tensors[layer.source]
                at = drawn.draw(index, layer.linear.op.positions(x.shape))
                for block, part in enumerate(layer.parts):
                    rows = part.op.inputs(x, at)
                    for group in read_by[layer.name, block]:
                        key = (group.name, (layer.name, block))
                        if key not in views:
                            views[key] = View(graph, group, layer, part, rows)
                        views[key].update(rows)
            for product, view in products.values():
                q, k = (tensors[name] for name in product.names)
                view.update(q, k, partial(setup.scattered(len(product.labels)).draw, index))
        for group in chunk:
            mine = [key for key in views if key[0] == group.name]
            heads = {p.key: products[group.name, p.key][1].readings(group) for p in group.products}
            yield GroupReadings(group, {key[1]: views.pop(key).reading() for key in mine}, heads)


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
