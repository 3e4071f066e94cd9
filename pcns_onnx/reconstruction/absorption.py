"""Caches of K that get narrower: which heads of Q make up for what goes of K, and how K ranks then.

K keeps some of its channels as they are, and Q is free. So the product loses what of k_G does not follow from k_S,

    E|q_G'(k_G - M'k_S)|^2,

which is what a layer loses that reads k with V = C_q^1/2 and is fitted again (`rewrite.change_basis`). That takes a Q
that a layer makes, with nothing between it and the product but what reorders it: where positions turn Q and K, every
channel of K counts by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.group_inputs import GroupStats
from pcns_onnx.calibration.ranking import ReaderStats
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Product
from pcns_onnx.dependency.origins import Maker, Origins
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import namespace_of, to_numpy
from pcns_onnx.ops.attention.kernels import kernel_of
from pcns_onnx.rewrite.change_basis import Absorption

_FAR = 32


def absorbing(
    graph: Graph, dependencies: DependencyGraph, read: GroupStats, origins: Origins
) -> tuple[tuple[Absorption, ...], GroupStats]:
    """The heads of K of a group for which Q makes up, and how the group is read then."""
    alone, absorptions, products = read.without_refit(), list[Absorption](), dict(read.products)
    for product in read.group.products:
        state = _cache_of(graph, product)
        own = [] if state is None else list(_heads(dependencies, product, read.products[product.key], origins, state))
        if own:
            absorptions += own
            products[product.key] = [_read_by_q(reading) for reading in read.products[product.key]]
        else:
            products[product.key] = alone.products[product.key]
    return tuple(absorptions), replace(read, products=products)


def _read_by_q(reading: ReaderStats) -> ReaderStats:
    """The reading of a product from the other side: k is the input, the root of q's second moment reads it."""
    xp = namespace_of(reading.covariance)
    values, vectors = np.linalg.eigh(to_numpy(reading.covariance))
    root = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
    return replace(reading, covariance=reading.matrix.T @ reading.matrix, matrix=xp.asarray(root))


def _heads(
    dependencies: DependencyGraph, product: Product, readings: list[ReaderStats], origins: Origins, state: str
) -> Iterator[Absorption]:
    """Every head of K with those of Q that read it; none where one of them cannot be told."""
    heads = origins.of_product(product.key)
    if len(heads) != len(readings) or any(reading.taps != 1 for reading in readings):
        return
    by_key: dict[tuple[str, tuple[int, ...]], tuple[ReaderStats, list[tuple[str, NDArray[np.int64]]]]] = {}
    for (q, k), reading in zip(heads, readings, strict=True):
        of_q, of_k = (_rows(dependencies, side) for side in (q, k))
        if of_q is None or of_k is None:
            return
        by_key.setdefault((of_k[0], tuple(of_k[1].tolist())), (reading, []))[1].append(of_q)
    if len({name for name, _ in by_key}) != 1:
        return
    for head, (name, rows) in enumerate(sorted(by_key)):
        reading, queries = by_key[name, rows]
        matrix = to_numpy(reading.matrix)
        labels = np.sort(np.unique(product.labels))
        in_order = np.array(rows)[np.argsort(product.labels, kind="stable")]
        queries = [(of, at[np.argsort(product.labels, kind="stable")]) for of, at in queries]
        yield Absorption(name, in_order, tuple(queries), labels, matrix.T @ matrix, state, head)


def _rows(dependencies: DependencyGraph, makers: list[Maker | None]) -> tuple[str, NDArray[np.int64]] | None:
    """The layer and its rows that make a head, if nobody else has its weight."""
    names = {None if maker is None else maker[0] for maker in makers}
    name = names.pop()
    if names or name is None or dependencies.is_bound(dependencies.layer(name)):
        return None
    if dependencies.layer(name).linear.op.conv_groups != 1:
        return None
    return name, np.array([maker[1] for maker in makers if maker is not None], dtype=np.int64)


def _cache_of(graph: Graph, product: Product) -> str | None:
    """The open state that K of a product comes from, (batch, heads, positions, channels) with its channels in order."""
    keys = {state.key: state for state in graph.layout.states if state.is_cache and state.axes == (1, 3)}
    node = graph.node(product.key)
    kernel = kernel_of(node)
    if kernel is not None:
        name = node.inputs[kernel.past[0]] if kernel.past[0] < len(node.inputs) else ""
        return name if name in keys else None
    pending = [product.names[1]]
    for _ in range(_FAR):
        if not pending:
            return None
        name = pending.pop()
        if name in keys:
            return name
        maker = graph.producers.get(name)
        if maker is not None and not any(graph.is_weight(item) for item in maker.inputs):
            pending += [item for item in maker.inputs if item and not graph.is_constant(item)]
    return None
