"""Operations on models under test, done by hand: what the engine should be able to do, in a few lines of NumPy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from builders.chains import BATCH
from builders.models import Array, run
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.graph import Graph


def sample(model: onnx.ModelProto) -> Array:
    shape = [d.dim_value or BATCH for d in model.graph.input[0].type.tensor_type.shape.dim]
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def removed_labels(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Some of the classes, more than a third where there are many."""
    return labels[[at for at in (1, 2, 5) if at < len(labels) - 1] if len(labels) > 2 else [1]]


def twins(dependencies: DependencyGraph) -> list[NDArray[np.int64]]:
    """The classes that can be narrowed, those together that lie in the same tensors: they could change places."""
    carriers = {label: set[str]() for group in dependencies.shrinkable for label in group.labels.tolist()}
    for name, labels in dependencies.labels.items():
        for label in set(np.unique(labels).tolist()) & carriers.keys():
            carriers[label].add(name)
    found: dict[tuple[int, frozenset[str]], list[int]] = {}
    for label, names in carriers.items():
        found.setdefault((int(dependencies.owner[label]), frozenset(names)), []).append(label)
    return [np.array(labels) for labels in found.values()]


def weight_of(graph: Graph, layer: Layer) -> Array:
    weight = graph.constant(graph.node(layer.key).inputs[layer.linear.weight])
    assert weight is not None
    return weight


def bias_of(graph: Graph, layer: Layer) -> Array:
    """The bias that the layer adds, shape (K,)."""
    if layer.bias.absent:
        return np.zeros(layer.width)
    value = graph.constant(graph.node(layer.bias.key).inputs[layer.bias.position])
    assert value is not None
    if value.ndim > 1:
        axes = layer.linear.bias_axes
        value = np.moveaxis(value, axes, range(-len(axes), 0))
    return np.broadcast_to(value.astype(np.float64).reshape(-1) * layer.bias.scale, (layer.width,))


def taken_from(vector: NDArray[np.int64], source: Mapping[int, int]) -> NDArray[np.int64]:
    """For each place, the place of the same occurrence of the label that replaces its own."""
    places = {label: np.flatnonzero(vector == label) for label in np.unique(vector)}
    result = np.arange(len(vector))
    for label, where in places.items():
        result[where] = places[source.get(int(label), int(label))]
    return result


def permuted(graph: Graph, dependencies: DependencyGraph, order: Mapping[int, int], *, reads: bool = True) -> Graph:
    """The graph with channel `order[label]` standing where `label` stood, everywhere (or only where it is made)."""
    result = graph.copy()
    biases = {layer.bias.key for layer in dependencies.layers}
    for layer in dependencies.layers:
        weight = weight_of(graph, layer)
        ends = [layer.linear.writes, layer.linear.reads]
        for axis, labels in list(zip(layer.linear.weight_axes, ends, strict=True))[: 1 + reads]:
            weight = np.take(weight, taken_from(labels[: weight.shape[axis]], order), axis=axis)
        result.set_input(layer.key, layer.linear.weight, weight)
        if not layer.bias.absent:
            bias = graph.constant(graph.node(layer.bias.key).inputs[layer.bias.position])
            assert bias is not None
            if bias.size == layer.width:
                axis = layer.linear.bias_axes[-1]
                places = taken_from(layer.linear.writes[: bias.shape[axis]], order)
                result.set_input(layer.bias.key, layer.bias.position, np.take(bias, places, axis=axis))
    for key, ride in dependencies.per_channel:
        value = graph.constant(graph.node(key).inputs[ride.position])
        assert value is not None
        if key not in biases:
            for axis, size in enumerate(ride.labels.shape):
                if size > 1:
                    value = np.take(value, taken_from(ride.labels.reshape(-1), order), axis=axis)
            result.set_input(key, ride.position, value)
    return result


def narrowed(dependencies: DependencyGraph, gone: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Every group that loses some of the classes `gone`, and what stays of it."""
    lost = [group for group in dependencies.groups if np.isin(group.labels, gone).any()]
    return {group.name: np.setdiff1d(group.labels, gone) for group in lost}


def unread(graph: Graph, dependencies: DependencyGraph, gone: NDArray[np.int64]) -> Graph:
    """The graph in which no layer reads the classes `gone`."""
    zeroed = graph.copy()
    for layer in dependencies.layers:
        weight, axis = weight_of(graph, layer), layer.linear.weight_axes[1]
        reads = layer.linear.reads[: weight.shape[axis]]
        mask = np.expand_dims(~np.isin(reads, gone), [a for a in range(weight.ndim) if a != axis])
        zeroed.set_input(layer.key, layer.linear.weight, weight * mask)
    return zeroed


def tensor(graph: Graph, name: str, x: Array) -> Array:
    """A tensor of the graph in onnxruntime."""
    return x if name == "x" else run(graph.extract(["x"], [name]).proto, x)


def taken(rows: Array, samples: int, at: NDArray[np.int64]) -> Array:
    """Rows at some positions of each sample."""
    width = rows.shape[-1]
    return rows.reshape(samples, -1, width)[:, at].reshape(-1, width)
