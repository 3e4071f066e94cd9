"""A layer's weight and bias as they are stored: read as the matrix V, written back, sliced."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.dependency.layers import Layer
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Array, Graph
from pcns_onnx.rewrite.patch import Edit, Patch, SetAttributes, SetInput


def stored(graph: Graph, key: str, position: int) -> Array:
    """Constant input `position` of node `key`."""
    value = graph.constant(graph.node(key).inputs[position])
    assert value is not None, "rules state facts about constants only"
    return value


def set_layer(graph: Graph, layer: Layer, matrix: NDArray[np.float64], bias: NDArray[np.float64]) -> Patch:
    """Give a layer new weights V (K, n) and bias (K,), in its own layout.

    A layer that has no bias gets one only if `bias` is not zero.
    """
    if not (np.isfinite(matrix).all() and np.isfinite(bias).all()):
        raise InputError(f"the solve of '{layer.name}' gives NaN or Inf: leave it alone with --exclude")
    old = stored(graph, layer.key, layer.linear.weight)
    edits: list[Edit] = [SetInput(layer.key, layer.linear.weight, layer.linear.op.weight(matrix, old))]
    if layer.linear.resets:
        edits.append(SetAttributes(layer.key, layer.linear.resets))
    if layer.bias.absent:
        return (*edits, SetInput(layer.key, layer.bias.position, bias)) if bias.any() else tuple(edits)
    lead = (1,) * (stored(graph, layer.bias.key, layer.bias.position).ndim - 1)
    return (*edits, SetInput(layer.bias.key, layer.bias.position, bias.reshape(*lead, -1)))


def slice_layer(graph: Graph, layer: Layer, rows: NDArray[np.bool_], columns: NDArray[np.bool_]) -> list[Edit]:
    """Leave a layer the outputs `rows` (K,) and the inputs `columns` (C,), in every block the same."""
    linear = layer.linear
    if rows.all() and columns.all():
        return []
    weight = stored(graph, layer.key, linear.weight)
    for axis, mask in zip(linear.weight_axes, (rows, columns), strict=True):
        own = mask[: weight.shape[axis]]  # of blocks that are alike, the first
        weight = weight if own.all() else np.compress(own, weight, axis=axis)
    edits: list[Edit] = [SetInput(layer.key, linear.weight, weight)]
    if not layer.bias.absent and not rows.all():
        bias = stored(graph, layer.bias.key, layer.bias.position)
        if bias.shape and bias.shape[-1] == len(rows):
            edits.append(SetInput(layer.bias.key, layer.bias.position, np.compress(rows, bias, axis=-1)))
    return edits


def stored_weight(graph: Graph, layer: Layer) -> NDArray[np.float64]:
    """The weight of a layer as it stands in `graph`, in its own layout."""
    weight = graph.constant(graph.node(layer.key).inputs[layer.linear.weight])
    assert weight is not None, "layers have stored weights"
    return weight.astype(np.float64)


def stored_bias(graph: Graph, layer: Layer) -> NDArray[np.float64]:
    """The bias that a layer adds as it stands in `graph`, (K,)."""
    found = layer.bias
    rows = layer.linear.op.matrix(stored_weight(graph, layer)).shape[0]
    if found.absent:
        return np.zeros(rows)
    value = graph.constant(graph.node(found.key).inputs[found.position])
    assert value is not None, "a bias is stored"
    node = graph.node(found.key)
    scale = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
    return np.broadcast_to(value.astype(np.float64).reshape(-1) * scale, (rows,))
