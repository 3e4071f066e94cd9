"""The passes over the data: what the readers see, then the re-fit, layer by layer.

The first pass runs the original model once and gathers, for every group, how its readers see
it. The second walks original and shrunk model side by side, from input to output, and solves
each layer from the shrunk model's inputs to the original's outputs before the walk goes on, so
that errors of earlier layers are corrected and not accumulated.

A layer whose output goes straight into a sum is solved for what the sum still lacks: the
original's sum less what the shrunk model's other operand already has. So the last layer of a
residual block corrects the stream, not only its own branch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.backend import namespace_of, to_numpy
from pcns_onnx.capture import Positions, Samples, Tape, run_batches
from pcns_onnx.graph import Graph
from pcns_onnx.groups import Census, Group
from pcns_onnx.layers import Layer
from pcns_onnx.methods import Reading
from pcns_onnx.ops import Labels
from pcns_onnx.progress import Progress
from pcns_onnx.reading import COLUMNS, Columns, ProductView, Seen, View, mixed_prior, stored_weight
from pcns_onnx.rewrite import Patch, edit, kept_classes, set_layer
from pcns_onnx.runtime import Engine
from pcns_onnx.solve import Fit, fit, gather

MEMORY = 1 << 26
"""Bytes of activations that each of the two tapes keeps in memory; beyond it they go to disk."""
STATISTICS = 3 << 29
"""Bytes of second moments gathered at once; more layers than fit take another pass."""
ROWS_PER_COLUMN = (40, 20)
"""Rows sampled per column of a layer: up to, and beyond, a thousand columns."""


Places = tuple[str, int]
"""A layer's name and the number of one of its blocks."""


@dataclass(frozen=True)
class Setup:
    """What every pass needs to know: where to run, on which samples, with which seed."""

    engine: Engine
    samples: Samples
    seed: int
    progress: Progress

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
    for chunk in _chunks(census, groups):
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


def refit(
    setup: Setup,
    original: Graph,
    shrunk: Graph,
    census: Census,
    keep: Mapping[str, Labels],
    seen: Mapping[Places, Mapping[str, Seen]],
) -> tuple[Patch, dict[str, Fit]]:
    """Pass two: solve every layer behind the first narrowed group, in order.

    `keep` are the classes that stay, by narrowed group; `seen`, by reader, how these groups vary
    there. The ridge pulls towards the original's weights, what went replaced by its mixture of
    what stayed. `shrunk` gets the new weights in place. Returns the edits that made them, and the
    fits by layer name.
    """
    layers = _behind(original, census, keep)
    goals = [_goal(original, census, layer) for layer in layers]
    kept = kept_classes(census, keep)
    left = Tape(setup.engine, setup.samples, MEMORY)
    right = Tape(setup.engine, setup.samples, MEMORY)
    edits: Patch = ()
    fits: dict[str, Fit] = {}
    ridge: float | None = None
    try:
        for done, layer in enumerate(setup.progress.track(layers, "re-fit", len(layers))):
            wanted, other = goals[done]
            rows = [np.flatnonzero(kept[part.writes]) for part in layer.parts]
            priors = []
            for block, part in enumerate(layer.parts):
                matrix = setup.engine.xp.asarray(part.op.matrix(stored_weight(original, layer)))
                prior = mixed_prior(matrix, part, seen.get((layer.name, block), {}), keep)
                priors.append(prior[rows[block], :])
            targets = left.advance(original, layer.key, [wanted], [goal for goal, _ in goals[done + 1 :]])
            needed = [name for n, (_, o) in zip(layers[done:], goals[done:], strict=True) for name in (n.source, o)]
            inputs = right.advance(shrunk, layer.key, [layer.source, other], [name for name in needed if name])
            pairs = ((x[layer.source], y[wanted], x.get(other)) for x, y in zip(inputs, targets, strict=True))
            evidence = gather(layer.parts, rows, pairs, setup.positions(census, layer, 1))
            solved = [fit(e, prior, ridge) for e, prior in zip(evidence, priors, strict=True)]
            fits[layer.name] = whole = Fit.joined(solved)
            ridge = whole.ridge
            patch = set_layer(shrunk, layer, to_numpy(whole.matrix), _quiet(whole))
            edit(shrunk, patch)
            edits += patch
    finally:
        left.close()
        right.close()
    return edits, fits


def _goal(graph: Graph, census: Census, layer: Layer) -> tuple[str, str]:
    """What a layer is solved for: (a tensor, '') or (a sum, its other operand, made before the layer).

    Both operands must have the sum's shape: where one is spread over the other's positions, the
    layer's rows are not the sum's.
    """
    alone = layer.output, ""
    readers = graph.consumers.get(layer.output, ())
    exposed = any(output.name == layer.output for output in graph.outputs)
    if len(readers) != 1 or readers[0].op not in ("Add", "Sum") or len(readers[0].inputs) != 2 or exposed:
        return alone
    sum_, other = readers[0].key, next((name for name in readers[0].inputs if name != layer.output), "")
    shapes = {census.shapes.get(name, (None,)) for name in (layer.output, other, sum_)}
    if not other or graph.is_constant(other) or len(shapes) > 1 or None in shapes.pop():
        return alone
    order = {node.key: at for at, node in enumerate(graph.nodes)}
    maker = graph.producers.get(other)
    is_known = maker is None or order[maker.key] < order[layer.key]
    return (sum_, other) if is_known else alone


def _quiet(solved: Fit) -> NDArray[np.float64]:
    """The bias, zero where it is only rounding: a layer without one should not get one for that."""
    bias = to_numpy(solved.bias)
    loud = np.abs(bias).max(initial=0.0) > 1e-6 * solved.scale
    return bias if loud else np.zeros_like(bias)


def _behind(graph: Graph, census: Census, keep: Mapping[str, Labels]) -> list[Layer]:
    """Layers whose inputs differ from the original's, in topological order."""
    narrowed = {name for group in census.groups if group.name in keep for name in group.readers}
    keys = {layer.key: layer for layer in census.layers}
    changed: set[str] = set()
    behind: list[Layer] = []
    for node in graph.nodes:
        layer = keys.get(node.key)
        touched = changed.intersection((*node.inputs, *node.captures))
        if layer is not None and (layer.name in narrowed or touched):
            behind.append(layer)
            changed.update(node.outputs)
        elif touched:
            changed.update(node.outputs)
    return behind


def _chunks(census: Census, groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Groups whose second moments fit into `STATISTICS` bytes together."""
    chunk: list[Group] = []
    used = 0
    for group in groups:
        size = 0
        for part in (part for name in group.readers for part in census.layer(name).parts):
            channels, taps = Columns.of(part, group.labels).index.shape
            size += 8 * max(channels, min(channels * taps, COLUMNS)) ** 2
        if chunk and used + size > STATISTICS:
            yield chunk
            chunk, used = [], 0
        chunk.append(group)
        used += size
    if chunk:
        yield chunk
