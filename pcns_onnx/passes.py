"""The passes over the data: what the readers see, then the re-fit, layer by layer.

The first pass runs the original model once and gathers, for every group, how its readers see
it. The second walks original and shrunk model side by side, from input to output, and solves
each layer from the shrunk model's inputs to the original's outputs before the walk goes on, so
that errors of earlier layers are corrected and not accumulated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.backend import Array, namespace_of, to_numpy
from pcns_onnx.capture import Positions, Samples, Tape, run_batches
from pcns_onnx.graph import Graph
from pcns_onnx.groups import Census, Group, Layer
from pcns_onnx.linalg import eigh_descending
from pcns_onnx.methods import Reading, mixing
from pcns_onnx.moments import Moments
from pcns_onnx.ops import Labels
from pcns_onnx.progress import Progress
from pcns_onnx.rewrite import Patch, apply, set_layer
from pcns_onnx.runtime import Engine
from pcns_onnx.solve import Fit, fit, gather

MEMORY = 1 << 26
"""Bytes of activations that each of the two tapes keeps in memory; beyond it they go to disk."""
STATISTICS = 3 << 29
"""Bytes of second moments gathered at once; more layers than fit take another pass."""
COLUMNS = 1536
"""Widest second moments used to choose channels; beyond it the taps are compressed."""
ROWS_PER_COLUMN = (40, 20)
"""Rows sampled per column of a layer: up to, and beyond, a thousand columns."""


@dataclass(frozen=True)
class Setup:
    """What every pass needs to know: where to run, on which samples, with which seed."""

    engine: Engine
    samples: Samples
    seed: int
    progress: Progress

    def positions(self, census: Census, layer: Layer, stage: int) -> Positions:
        """Sampled output positions of a layer, drawn anew for each stage."""
        columns = len(layer.linear.reads) * layer.linear.op.taps
        columns = min(columns, COLUMNS) if stage == 0 else columns
        rows = columns * ROWS_PER_COLUMN[columns > 1024]
        seed = (self.seed, stage, census.layers.index(layer))
        return Positions(rows, self.samples.count, seed)


def read_groups(
    setup: Setup, graph: Graph, census: Census, groups: Sequence[Group]
) -> Iterator[tuple[Group, list[Reading]]]:
    """Pass one: for each group, how its readers read it in `graph`; as many at once as memory allows."""
    for chunk in _chunks(census, groups):
        pairs = [(group, census.layer(name)) for group in chunk for name in group.readers]
        names = list(dict.fromkeys(layer.source for _, layer in pairs))
        places = [setup.positions(census, layer, 0) for _, layer in pairs]
        views: list[_View] = []
        batches = run_batches(setup.engine, graph, setup.samples, names)
        for index, tensors in enumerate(setup.progress.track(batches, "capture", setup.samples.batches)):
            for which, (group, layer) in enumerate(pairs):
                x, op = tensors[layer.source], layer.linear.op
                rows = op.inputs(x, places[which].draw(index, op.positions(x.shape)))
                if which == len(views):
                    views.append(_View(graph, group, layer, rows))
                views[which].update(rows)
        for group in chunk:
            yield group, [views.pop(0).reading() for _ in group.readers]


class _View:
    """Second moments of a reader's input over at most `COLUMNS` columns.

    Where all taps of all channels would be more, the taps are rotated onto their leading
    principal directions, shared by all channels: this only steers which channels stay, the
    re-fit sees every tap. Rows are gathered tap-major, as Conv has them.
    """

    def __init__(self, graph: Graph, group: Group, layer: Layer, rows: Array) -> None:
        xp = namespace_of(rows)
        columns, self._taps = channel_major(layer, group.labels)
        columns = columns.reshape(group.width, self._taps).T.reshape(-1)
        self._whole = np.array_equal(columns, np.arange(int(rows.shape[1])))
        self._index = xp.asarray(columns)
        self._channels = group.width
        self._matrix = xp.asarray(layer.linear.op.matrix(stored_weight(graph, layer))[:, columns])
        self._basis: Array | None = None
        keep = max(1, COLUMNS // group.width)
        if keep < self._taps:
            self._basis = self._principal_taps(self._pick(rows), keep)
            self._matrix = self._turn(self._matrix, xp.astype(self._basis, xp.float64))
            self._taps = keep
        self._moments = Moments(group.width * self._taps, 0, xp)

    def update(self, rows: Array) -> None:
        rows = self._pick(rows)
        self._moments.update(rows if self._basis is None else self._turn(rows, self._basis))

    def reading(self) -> Reading:
        xp = namespace_of(self._matrix)
        n, t = self._channels, self._taps
        covariance = xp.reshape(self._moments.covariance, (t, n, t, n))
        covariance = xp.reshape(xp.permute_dims(covariance, (1, 0, 3, 2)), (n * t, n * t))
        matrix = xp.reshape(xp.permute_dims(xp.reshape(self._matrix, (-1, t, n)), (0, 2, 1)), (-1, n * t))
        return Reading(covariance, matrix, t, self._moments.rows)

    def _pick(self, rows: Array) -> Array:
        return rows if self._whole else namespace_of(rows).take(rows, self._index, axis=1)

    def _turn(self, rows: Array, basis: Array) -> Array:
        xp = namespace_of(rows)
        turned = basis.T @ xp.reshape(rows, (-1, int(basis.shape[0]), self._channels))
        return xp.reshape(turned, (int(rows.shape[0]), -1))

    def _principal_taps(self, rows: Array, keep: int) -> Array:
        """(taps, keep) float32: principal directions of the taps, channels weighted by their readers."""
        xp = namespace_of(rows)
        shape = (-1, self._taps, self._channels)
        energy = xp.sum(xp.reshape(self._matrix * self._matrix, shape), axis=(0, 1))
        weighted = xp.reshape(rows, shape) * xp.astype(xp.sqrt(energy), rows.dtype)
        moment = xp.sum(weighted @ xp.permute_dims(weighted, (0, 2, 1)), axis=0)
        _, vectors = eigh_descending(xp.astype(moment, xp.float64))
        return xp.astype(vectors[:, :keep], xp.float32)


def stored_weight(graph: Graph, layer: Layer) -> NDArray[np.float64]:
    """The weight of a layer as it stands in `graph`, in its own layout."""
    weight = graph.constant(graph.node(layer.key).inputs[layer.linear.weight])
    assert weight is not None, "layers have stored weights"
    return weight.astype(np.float64)


def channel_major(layer: Layer, labels: Labels) -> tuple[NDArray[np.int64], int]:
    """Columns of V sorted by the channel they read, and how many each channel has."""
    owners = layer.linear.op.owners(layer.linear.reads)
    columns = np.argsort(owners, kind="stable")
    columns = columns[np.isin(owners[columns], labels)]
    return columns, len(columns) // len(labels)


def mixed_prior(graph: Graph, group: Group, layer: Layer, covariance: Array, keep: NDArray[np.int64]) -> Array:
    """V (K, n') over the kept columns, removed channels replaced by their mixture of the kept ones.

    `covariance` (N, N) is that of the channels; `keep` (M,) indexes them. Columns are in the
    order of the narrowed layer.
    """
    return mixed_matrix(graph, group, layer, mixing(covariance, keep), keep)


def mixed_matrix(graph: Graph, group: Group, layer: Layer, mix: Array, places: NDArray[np.int64]) -> Array:
    """V (K, n') of a reader whose N channels become t = mix t', mix (N, M), the same for all taps.

    The new channels take the places (M,) of old ones, which sets the order of the columns.
    """
    xp = namespace_of(mix)
    columns, taps = channel_major(layer, group.labels)
    matrix = layer.linear.op.matrix(stored_weight(graph, layer))
    split = xp.reshape(xp.asarray(matrix[:, columns]), (-1, group.width, taps))
    mixed = xp.permute_dims(xp.permute_dims(split, (0, 2, 1)) @ mix, (0, 2, 1))
    order = np.argsort(columns.reshape(group.width, taps)[places].reshape(-1))
    return xp.take(xp.reshape(mixed, (int(matrix.shape[0]), -1)), xp.asarray(order), axis=1)


def refit(
    setup: Setup,
    original: Graph,
    shrunk: Graph,
    census: Census,
    keep: Mapping[str, Labels],
    priors: Mapping[str, Array],
) -> tuple[Graph, Patch, dict[str, Fit]]:
    """Pass two: solve every layer behind the first narrowed group, in order.

    `priors[layer]` (K, n) are the weights that the ridge pulls towards, for readers of narrowed
    groups; other layers are pulled towards their own. Returns the shrunk graph with its new
    weights, the edits that made them, and the fits by layer name.
    """
    layers = _behind(original, census, keep)
    left = Tape(setup.engine, setup.samples, MEMORY)
    right = Tape(setup.engine, setup.samples, MEMORY)
    edits: Patch = ()
    fits: dict[str, Fit] = {}
    ridge: float | None = None
    try:
        for done, layer in enumerate(setup.progress.track(layers, "re-fit", len(layers))):
            targets = left.advance(original, layer.key, layer.output, [n.output for n in layers[done + 1 :]])
            inputs = right.advance(shrunk, layer.key, layer.source, [n.source for n in layers[done:]])
            rows = np.flatnonzero(np.isin(layer.linear.writes, keep.get(layer.name, layer.linear.writes)))
            prior = _prior(setup, original, layer, priors.get(layer.name), rows)
            pairs = ((x[layer.source], y[layer.output]) for x, y in zip(inputs, targets, strict=True))
            evidence = gather(
                layer.linear.op, int(prior.shape[1]), layer.width, pairs, setup.positions(census, layer, 1)
            )
            fits[layer.name] = solved = fit(evidence.only(rows), prior, ridge)
            ridge = solved.ridge
            patch = set_layer(shrunk, layer, to_numpy(solved.matrix), _quiet(solved))
            shrunk = apply(shrunk, patch)
            edits += patch
    finally:
        left.close()
        right.close()
    return shrunk, edits, fits


def _prior(setup: Setup, original: Graph, layer: Layer, prior: Array | None, rows: NDArray[np.int64]) -> Array:
    xp = setup.engine.xp
    if prior is None:
        prior = xp.asarray(layer.linear.op.matrix(stored_weight(original, layer)))
    return xp.take(prior, xp.asarray(rows), axis=0)


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
        taps = [census.layer(name).linear.op.taps for name in group.readers]
        size = sum(8 * max(group.width, min(group.width * t, COLUMNS)) ** 2 for t in taps)
        if chunk and used + size > STATISTICS:
            yield chunk
            chunk, used = [], 0
        chunk.append(group)
        used += size
    if chunk:
        yield chunk
