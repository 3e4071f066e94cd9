"""Changes of basis: where only linear maps lie between, PCA is exact and costs nothing.

Selecting channels is all that can be done behind a nonlinearity. Where there is none (V and O of
attention, factored layers) channels t may be replaced by t' = A t and the reader's V by V A⁻¹
without changing the function, and the axes of t' can be chosen so that dropping the last ones is
the best that any projection can do. With C = L Lᵀ the covariance of t and V the readers' weights,

    Lᵀ Vᵀ V L = U Λ Uᵀ,    A = S Uᵀ L⁻¹,    channel j then costs exactly λ_j

(reduced-rank regression; S makes the rows of A unit vectors). Where two computed tensors are
multiplied (Q Kᵀ), with C_q = L_q L_qᵀ and C_k = L_k L_kᵀ,

    L_qᵀ L_k = U S Wᵀ,    A = S^½ Uᵀ L_q⁻¹ for q and A⁻ᵀ for k,    channel j costs s_j².

Every head has an A of its own, and the channels of all heads are sorted by what they cost. So a
rotated group is narrowed like any other: by a subset, the same in all heads.

Where several heads of Q share one of K (grouped and multi-query attention, however K is repeated), they have one
basis: C_q is the sum over these heads, since Σ_g E|q_g'(k - k̂)|² = tr (Σ_g E q_g q_g') E(k - k̂)(k - k̂)'. A head of
V that O reads in several places has one, too: its covariance is averaged, Vᵀ V added up over these places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pcns_onnx.calibration.columns import Columns
from pcns_onnx.calibration.group_inputs import GroupStats
from pcns_onnx.calibration.ranking import ReaderStats
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.dependency.origins import Maker, Origins
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import namespace_of, to_numpy
from pcns_onnx.numerics.linalg import add_ridge
from pcns_onnx.ops import Labels
from pcns_onnx.rewrite.change_basis import BasisChange, Indices, Matrix

_RIDGE, _RIDGE_SINGULAR = 1e-6, 1e-12
_SINGULAR = 1e-11
"""Eigenvalues of this share of the largest are none: directions that nothing goes in must not pass for weak ones."""


def rotations(
    graph: Graph, dependencies: DependencyGraph, read: GroupStats, origins: Origins
) -> tuple[tuple[BasisChange, ...], GroupStats]:
    """The best basis for a group, and how it is read in that basis; no turns where it has to stay as it is."""
    if any(dependencies.is_bound(dependencies.layer(name)) for name in (*read.group.writers, *read.group.readers)):
        return (), read
    try:
        basis_changes: list[BasisChange] = []
        layers = dict(read.layers)
        products = dict(read.products)
        if read.layers:
            changes, layers = _between_layers(dependencies, read, origins)
            basis_changes += changes
        if products:
            changes, products = _inside_products(dependencies, origins, products)
            basis_changes += changes
    except _Unfit:
        return (), read
    rows = [(change.layer, int(row)) for change in basis_changes if change.is_row for row in change.places]
    if len(set(rows)) != len(rows):
        return (), read
    xp = namespace_of(read.all[0].covariance)
    layers = {block_key: _on_device(reading, xp) for block_key, reading in layers.items()}
    products = {key: [_on_device(reading, xp) for reading in heads] for key, heads in products.items()}
    return tuple(basis_changes), replace(read, layers=layers, products=products)


def _on_device(reading: ReaderStats, xp: Any) -> ReaderStats:
    return replace(reading, covariance=xp.asarray(reading.covariance), matrix=xp.asarray(reading.matrix))


def _root(covariance: Matrix) -> Matrix:
    """L with L Lᵀ = C and a ridge: one that keeps apart what is weak and what is not there at all."""
    values = np.linalg.eigvalsh(covariance)
    singular = values[0] <= _SINGULAR * values[-1]
    return np.asarray(np.linalg.cholesky(add_ridge(covariance, _RIDGE_SINGULAR if singular else _RIDGE)))


class _Unfit(Exception):
    """A group whose basis cannot be changed."""


def _rows(dependencies: DependencyGraph, makers: Sequence[Maker | None]) -> tuple[str, Indices]:
    """The layer and its rows that made the channels of one head."""
    known = [maker for maker in makers if maker is not None]
    names = {name for name, _ in known}
    if len(known) != len(makers) or len(names) != 1 or dependencies.layer(known[0][0]).linear.op.conv_groups != 1:
        raise _Unfit
    return names.pop(), np.array([row for _, row in known], dtype=np.int64)


def _heads_of(labels: Labels) -> Indices:
    """The n-th row of a class is in head n."""
    counts: dict[int, int] = {}
    heads = np.empty(len(labels), dtype=np.int64)
    for row, label in enumerate(labels):
        heads[row] = counts[int(label)] = counts.get(int(label), -1) + 1
    return heads


def _between_layers(
    dependencies: DependencyGraph, read: GroupStats, origins: Origins
) -> tuple[list[BasisChange], dict[tuple[str, int], ReaderStats]]:
    """Writers and linear readers: PCA of what the readers use, head by head."""
    group = read.group
    columns = {place: list(_columns(dependencies, group, origins, place[0])) for place in read.layers}
    heads = len(next(iter(columns.values())))
    if any(len(by_head) != heads for by_head in columns.values()):
        raise _Unfit
    basis_changes, maps = [], []
    for head in range(heads):
        makers = [by_head[head][0] for by_head in columns.values()]
        name, rows = makers[0]
        if any(other != name or not np.array_equal(at, rows) for other, at in makers):
            raise _Unfit  # one of them reads other channels than the rest
        statistics = [
            _of_head(dependencies, group, read.layers[place], place[0], columns[place][head][1]) for place in columns
        ]
        covariance = np.mean([c for c, _ in statistics], axis=0)
        lower = _root(covariance)
        _, axes = np.linalg.eigh(lower.T @ np.sum([g for _, g in statistics], axis=0) @ lower)
        ahead = np.linalg.solve(lower.T, axes[:, ::-1]).T
        scale = np.linalg.norm(ahead, axis=1)
        ahead, back = ahead / scale[:, None], (lower @ axes[:, ::-1]) * scale
        maps.append((ahead, back))
        basis_changes.append(BasisChange(name, rows, ahead, True))
        for (layer, _), by_head in columns.items():
            basis_changes += [BasisChange(layer, at, back, False) for at in by_head[head][1]]
    readings = {p: _in_basis(dependencies, group, r, p[0], columns[p], maps) for p, r in read.layers.items()}
    return basis_changes, readings


def _columns(
    dependencies: DependencyGraph, group: Group, origins: Origins, name: str
) -> Iterator[tuple[tuple[str, Indices], list[Indices]]]:
    """Per head that a layer reads: (its maker and rows), and for every tap the columns of its channels."""
    layer = dependencies.layer(name)
    if layer.linear.op.conv_groups != 1 or not np.isin(layer.linear.reads, group.labels).all():
        raise _Unfit
    makers = origins.of_columns(name)
    numbers = {writer: _heads_of(dependencies.layer(writer).linear.writes) for writer in group.writers}
    heads: dict[Maker, list[int]] = {}
    for column, maker in enumerate(makers):
        if maker is None or maker[0] not in numbers:
            raise _Unfit
        heads.setdefault((maker[0], int(numbers[maker[0]][maker[1]])), []).append(column)
    width = len(np.unique(layer.linear.reads))
    if any(set(np.unique(layer.linear.reads[c], return_counts=True)[1]) != {len(c) // width} for c in heads.values()):
        raise _Unfit
    for columns in heads.values():
        by_class = np.asarray(columns)[np.argsort(layer.linear.reads[columns], kind="stable")]
        copies = by_class.reshape(width, -1).T  # a head that is read in several places stands there as often
        rows = {tuple(makers[c] for c in at) for at in copies}
        if len(rows) != 1:
            raise _Unfit
        taps = [at + tap * len(makers) for tap in range(layer.linear.op.taps) for at in copies]
        yield _rows(dependencies, rows.pop()), taps


def _inside_products(
    dependencies: DependencyGraph, origins: Origins, products: Mapping[str, list[ReaderStats]]
) -> tuple[list[BasisChange], dict[str, list[ReaderStats]]]:
    """Both sides of all products: joint singular directions, for every set of heads that share some."""
    pairs: list[tuple[Rows, Rows, ReaderStats]] = []
    for key, readings in products.items():
        heads = origins.of_product(key)
        readings = _pooled(readings, len({tuple(map(tuple, head)) for head in heads}))
        if len({tuple(map(tuple, head)) for head in heads}) != len(readings):
            raise _Unfit  # several heads were looked at as one
        for (a, b), reading in zip(heads, readings, strict=False):  # samples, if merged with the heads, repeat them
            if reading.taps != 1:
                raise _Unfit  # channels are tied in pairs
            pairs.append((_hashed(*_rows(dependencies, a)), _hashed(*_rows(dependencies, b)), reading))
    basis_changes, changed = [], list[ReaderStats]()
    for together in _sharing(pairs):
        seconds = {q: to_numpy(reading.covariance) for q, _, reading in together}
        roots = {k: to_numpy(reading.matrix) for _, k, reading in together}
        left = _root(np.sum(list(seconds.values()), axis=0))
        right = _root(np.sum([root.T @ root for root in roots.values()], axis=0))
        u, sigma, _ = np.linalg.svd(left.T @ right)
        half = np.sqrt(np.maximum(sigma, 1e-9 * sigma[0]))
        ahead, back = half[:, None] * np.linalg.solve(left.T, u).T, ((left @ u) / half).T
        basis_changes += [BasisChange(name, np.array(rows), ahead, True) for name, rows in seconds]
        basis_changes += [BasisChange(name, np.array(rows), back, True) for name, rows in roots]
        changed.append(replace(together[0][2], covariance=np.diag(half**2), matrix=np.diag(half)))
    first, *others = products
    return basis_changes, {first: changed, **{key: [] for key in others}}


def _pooled(readings: list[ReaderStats], heads: int) -> list[ReaderStats]:
    """One reading per head, where every window of a sample was looked at by itself (windows vary first)."""
    if not heads or len(readings) % heads or len(readings) == heads:
        return readings
    pooled = []
    for head in range(heads):
        same = readings[head::heads]
        covariance = np.mean([to_numpy(reading.covariance) for reading in same], axis=0)
        roots = [to_numpy(reading.matrix) for reading in same]
        values, vectors = np.linalg.eigh(np.mean([root.T @ root for root in roots], axis=0))
        matrix = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
        pooled.append(replace(same[0], covariance=covariance, matrix=matrix))
    return pooled


Rows = tuple[str, tuple[int, ...]]
"""A layer and some of its rows."""


def _hashed(name: str, rows: Indices) -> Rows:
    return name, tuple(int(row) for row in rows)


def _sharing(pairs: Sequence[tuple[Rows, Rows, ReaderStats]]) -> list[list[tuple[Rows, Rows, ReaderStats]]]:
    """The pairs in sets without a side in common, in order."""
    of: dict[tuple[int, Rows], int] = {}
    for number, (q, k, _) in enumerate(pairs):
        met = {of.setdefault((0, q), number), of.setdefault((1, k), number)}
        of = {side: min(met) if other in met else other for side, other in of.items()}
    numbers = [of[0, q] for q, _, _ in pairs]
    return [[pair for pair, own in zip(pairs, numbers, strict=True) if own == one] for one in dict.fromkeys(numbers)]


def _of_head(
    dependencies: DependencyGraph, group: Group, reading: ReaderStats, name: str, columns: list[Indices]
) -> tuple[Matrix, Matrix]:
    """Covariance (N, N), averaged over taps, and Vᵀ V of one head, relative to the reader's variance."""
    blocks = _blocks(dependencies, group, reading, name, columns)
    covariance, matrix = to_numpy(reading.covariance), to_numpy(reading.matrix)
    mean = np.mean([covariance[np.ix_(at, at)] for at in blocks], axis=0)
    gram = np.sum([matrix[:, at].T @ matrix[:, at] for at in blocks], axis=0)
    return np.asarray(mean), np.asarray(gram / max(reading.output_variance(), 1e-300))


def _blocks(
    dependencies: DependencyGraph, group: Group, reading: ReaderStats, name: str, columns: list[Indices]
) -> list[Indices]:
    """Where the reading, channel-major, has these columns of V."""
    index = Columns.of(dependencies.layer(name).parts[0], group.labels).index
    if reading.taps != index.shape[1]:
        raise _Unfit  # the taps are compressed, heads among them
    place = np.argsort(index.reshape(-1))
    return [place[at] for at in columns]


def _in_basis(
    dependencies: DependencyGraph,
    group: Group,
    reading: ReaderStats,
    name: str,
    columns: list[tuple[tuple[str, Indices], list[Indices]]],
    maps: list[tuple[Matrix, Matrix]],
) -> ReaderStats:
    """The same reading of the turned channels."""
    size = int(reading.covariance.shape[0])
    ahead, back = np.zeros((size, size)), np.zeros((size, size))
    for (_, taps), (forward, backward) in zip(columns, maps, strict=True):
        for at in _blocks(dependencies, group, reading, name, taps):
            ahead[np.ix_(at, at)], back[np.ix_(at, at)] = forward, backward
    covariance = ahead @ to_numpy(reading.covariance) @ ahead.T
    return replace(reading, covariance=covariance, matrix=to_numpy(reading.matrix) @ back, changes=None)
