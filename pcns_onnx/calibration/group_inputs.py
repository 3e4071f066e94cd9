"""How every group is read: second moments of its readers' inputs, gathered over the samples.

Layers that share a weight are one reader, which sees the inputs of all: it goes by the name of the first.

The original model runs once, or as often as memory asks for; everything that chooses channels and
widths works on these moments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.calibration.columns import COLUMNS, BlockKey, ChannelCovariance, Columns
from pcns_onnx.calibration.layer_inputs import InputObserver
from pcns_onnx.calibration.output_scale import channel_scales
from pcns_onnx.calibration.product_inputs import PositionChoice, ProductObserver
from pcns_onnx.calibration.ranking import ReaderStats
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import Array, namespace_of
from pcns_onnx.runtime.activations import Cut
from pcns_onnx.runtime.engine import Tensors
from pcns_onnx.runtime.executor import Sides


@dataclass(frozen=True)
class GroupStats:
    """How a group is read: by each block of each reader (layer name, block), by each head of each product."""

    group: Group
    layers: Mapping[BlockKey, ReaderStats]
    products: Mapping[str, list[ReaderStats]]

    @property
    def all(self) -> list[ReaderStats]:
        """Every reading, in a fixed order."""
        return [*self.layers.values(), *(reading for heads in self.products.values() for reading in heads)]

    def without_refit(self) -> GroupStats:
        """Products as they are where no change of basis can make up for what goes: every channel for itself."""
        return replace(self, products={key: [_alone(r) for r in heads] for key, heads in self.products.items()})

    def covariances(self) -> dict[BlockKey, ChannelCovariance]:
        """What the re-fit of the readers needs of it."""
        labels = self.group.labels
        return {
            block_key: ChannelCovariance(labels[reading.among(len(labels))], reading.channel_covariance())
            for block_key, reading in self.layers.items()
        }


def _alone(reading: ReaderStats) -> ReaderStats:
    """A product's reading without the correlations between channels."""
    xp = namespace_of(reading.covariance)
    energy = xp.sum(reading.matrix * reading.matrix, axis=0)
    eye = xp.eye(int(energy.shape[0]), dtype=xp.float64)
    return replace(reading, covariance=eye * xp.linalg.diagonal(reading.covariance), matrix=eye * xp.sqrt(energy))


def in_own_scale(reading: ReaderStats, weight: NDArray[np.float64]) -> ReaderStats:
    """The reading with every row of V in units of how much its output varies: rows of boxes beside rows of scores.

    `weight` (K,) is how much the squared error of each row counts.
    """
    xp = namespace_of(reading.covariance)
    scale = channel_scales(np.sqrt(reading.row_variances()))
    return replace(reading, matrix=reading.matrix * xp.asarray(np.sqrt(weight) / scale)[:, None])


class GroupObserver:
    """How some groups are read: by blocks of layers, and by products."""

    def __init__(
        self,
        calibration: Calibration,
        graph: Graph,
        dependencies: DependencyGraph,
        groups: Sequence[Group],
        rows: Mapping[str, NDArray[np.float64]],
    ) -> None:
        layers = [layer for layer in dependencies.layers if any(layer.name in group.readers for group in groups)]
        multiplied = [name for group in groups for product in group.products for name in product.names]
        tensors = [name for layer in layers for name in (layer.source, layer.output)]
        self._places = places = calibration.live_places(graph, [*tensors, *multiplied])
        self._layers = [(layer, calibration.row_choice(dependencies, layer, 0, places)) for layer in layers]
        self._last = {
            (layer.first_use, block): rows[layer.name][part.rows]
            for layer in layers
            for block, part in enumerate(layer.parts)
            if layer.name in rows
        }
        readers = {layer.first_use: layer for layer in reversed(layers)}
        self._observers = {
            (layer.first_use, block): {
                group.name: InputObserver(graph, group, layer, part, calibration.engine.xp)
                for group in groups
                if np.isin(part.reads, group.labels).any()
            }
            for layer in layers
            if layer is readers[layer.first_use]
            for block, part in enumerate(layer.parts)
        }
        self._products = {
            (g.name, p.key): (p.names, calibration.scattered(len(p.labels)), ProductObserver(p, calibration.engine.xp))
            for g in groups
            for p in g.products
        }

    @property
    def wanted(self) -> list[str]:
        """The tensors that are observed."""
        sources = [name for layer, _ in self._layers for name in layer.sources]
        products = [name for names, _, _ in self._products.values() for name in names]
        return list(dict.fromkeys([*sources, *products, *self._places.wanted]))

    def begin(self, sides: Sides) -> None:
        """Settle how taps are compressed."""
        if any(observer.is_open for observers in self._observers.values() for observer in observers.values()):
            for observer, rows, _ in self._rows(0, sides[0]):
                observer.begin(rows)

    def update(self, index: int, sides: Sides) -> None:
        """Show a batch to all observers."""
        (tensors,) = sides
        for observer, rows, apart in self._rows(index, tensors):
            observer.update(rows, apart=apart)
        for (q, k), positions, product in self._products.values():
            live = tuple(self._places.spread(name, tensors[name].shape, tensors) for name in (q, k))
            product.update(tensors[q], tensors[k], PositionChoice(positions, index), live)

    def merge(self, other: GroupObserver) -> None:
        """Add what was seen of later batches."""
        for block_key, observers in self._observers.items():
            for name, observer in observers.items():
                observer.merge(other._observers[block_key][name])
        for key, (_, _, product) in self._products.items():
            product.merge(other._products[key][2])

    def readings(self, group: Group) -> GroupStats:
        """What was seen of a group; can be asked for once."""
        layers = {
            block_key: observers.pop(group.name).reading()
            for block_key, observers in self._observers.items()
            if group.name in observers
        }
        layers = {key: in_own_scale(r, self._last[key]) if key in self._last else r for key, r in layers.items()}
        heads = {p.key: self._products[group.name, p.key][2].readings(group) for p in group.products}
        return GroupStats(group, layers, heads)

    def _rows(self, index: int, tensors: Tensors) -> Iterator[tuple[InputObserver, Array, bool]]:
        """The observers with their blocks' input rows in a batch, and whether a sample is a single row."""
        for layer, choice in self._layers:
            x = layer.rows_from(tensors)
            drawn, is_apart = choice.draw(index, x.shape, tensors), layer.linear.op.positions(x.shape) == 1
            for block, part in enumerate(layer.parts):
                rows = drawn.inputs(part.op, x)
                for observer in self._observers[layer.first_use, block].values():
                    yield observer, rows, is_apart


def read_groups(
    calibration: Calibration,
    graph: Graph,
    dependencies: DependencyGraph,
    groups: Sequence[Group],
    rows: Mapping[str, NDArray[np.float64]] | None = None,
) -> Iterator[GroupStats]:
    """How each group is read in `graph`; as many at once as memory allows.

    The layers in `rows` are last ones: each of their rows counts in its own scale, and so much.
    """
    for chunk in _chunks(dependencies, groups, calibration.shares.statistics):
        observer = GroupObserver(calibration, graph, dependencies, chunk, rows or {})
        calibration.gather([Cut(graph, observer.wanted)], observer, "capture")
        for group in chunk:
            yield observer.readings(group)


def _chunks(dependencies: DependencyGraph, groups: Sequence[Group], room: int) -> Iterator[list[Group]]:
    """Groups whose second moments fit into `room` bytes together; the others take another run."""
    chunk: list[Group] = []
    used = 0
    for group in groups:
        size = 0
        readers = {dependencies.layer(name).first_use for name in group.readers}
        for part in (part for name in sorted(readers) for part in dependencies.layer(name).parts):
            channels, taps = Columns.of(part, group.labels).index.shape
            size += 8 * max(channels, min(channels * taps, COLUMNS)) ** 2
        if chunk and used + size > room:
            yield chunk
            chunk, used = [], 0
        chunk.append(group)
        used += size
    if chunk:
        yield chunk
