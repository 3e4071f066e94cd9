"""A layer's weight and bias as they are stored: read as the matrix V, written back, sliced."""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.dependency.layers import Layer
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Array, Graph
from pcns_onnx.rewrite.patch import Edit, Patch, SetAttributes, SetInput
from pcns_onnx.rewrite.recurrent_cells import set_cell, stored_cell, take_units


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
    if layer.cell is not None:
        return set_cell(graph, layer, stored_cell(graph, layer).solved(matrix, bias))
    old = stored(graph, layer.key, layer.linear.weight)
    edits: list[Edit] = [SetInput(layer.key, layer.linear.weight, layer.linear.op.weight(matrix, old))]
    if layer.linear.resets:
        edits.append(SetAttributes(layer.key, layer.linear.resets))
    if layer.bias.absent:
        return (*edits, SetInput(layer.key, layer.bias.position, bias)) if bias.any() else tuple(edits)
    like = stored(graph, layer.bias.key, layer.bias.position)
    return (*edits, SetInput(layer.bias.key, layer.bias.position, _laid_out(bias, like, layer.linear.bias_axes)))


def slice_layer(graph: Graph, layer: Layer, rows: NDArray[np.bool_], columns: NDArray[np.bool_]) -> list[Edit]:
    """Leave a layer the outputs `rows` (K,) and the inputs `columns` (C,), in every block the same."""
    linear = layer.linear
    if rows.all() and columns.all():
        return []
    if layer.cell is not None:
        units = np.flatnonzero(rows[: layer.cell.hidden.shape[1]])
        inputs = np.flatnonzero(columns[: stored(graph, layer.key, linear.weight).shape[2]])
        edits = take_units(graph, layer, [units] * len(layer.cell.hidden), inputs)
        return [*edits, SetAttributes(layer.key, (("hidden_size", len(units)),))]
    weight = stored(graph, layer.key, linear.weight)
    for axis, mask in zip(linear.weight_axes, (rows, columns), strict=True):
        own = mask[: weight.shape[axis]]  # of blocks that are alike, the first
        weight = weight if own.all() else np.compress(own, weight, axis=axis)
    edits = [SetInput(layer.key, linear.weight, weight)]
    if not layer.bias.absent and not rows.all():
        bias, axis = stored(graph, layer.bias.key, layer.bias.position), linear.bias_axes[-1]
        if has_value_per_row(bias, layer):
            own = rows[: bias.shape[axis]]
            edits.append(SetInput(layer.bias.key, layer.bias.position, np.compress(own, bias, axis=axis)))
    return edits


def has_value_per_row(bias: Array, layer: Layer) -> bool:
    """Whether a stored bias has a value for every row of V, not one for all."""
    axes = layer.linear.bias_axes
    return bias.ndim >= -min(axes) and prod(bias.shape[axis] for axis in axes) == layer.width


def _laid_out(bias: NDArray[np.float64], like: Array, axes: tuple[int, ...]) -> NDArray[np.float64]:
    """A bias (K,) in the layout of the stored one `like` (whose last of `axes` may differ)."""
    if like.ndim < 2:
        return bias
    others = [axis for axis in range(-like.ndim, 0) if axis not in axes]
    sizes = [like.shape[axis] for axis in axes[:-1]]
    order = [*others, *axes]
    value = bias.reshape(*(1,) * len(others), *sizes, -1)
    return np.transpose(value, np.argsort(order))


def stored_weight(graph: Graph, layer: Layer) -> NDArray[np.float64]:
    """The weight of a layer as it stands in `graph`, in its own layout; of a recurrent layer [W R] (D, kH, I + H)."""
    if layer.cell is not None:
        return stored_cell(graph, layer).matrix
    weight = graph.constant(graph.node(layer.key).inputs[layer.linear.weight])
    assert weight is not None, "layers have stored weights"
    return weight.astype(np.float64)


def stored_bias(graph: Graph, layer: Layer) -> NDArray[np.float64]:
    """The bias that a layer adds as it stands in `graph`, (K,)."""
    bias = layer.bias
    if layer.cell is not None:
        weights = stored_cell(graph, layer)
        return (weights.wb + weights.rb).reshape(-1)
    rows = layer.linear.op.matrix(stored_weight(graph, layer)).shape[0]
    if bias.absent:
        return np.zeros(rows)
    value = graph.constant(graph.node(bias.key).inputs[bias.position])
    assert value is not None, "a bias is stored"
    node = graph.node(bias.key)
    scale = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
    value = value.astype(np.float64) * scale
    if has_value_per_row(value, layer) and value.ndim > 1:
        value = np.moveaxis(value, layer.linear.bias_axes, range(-len(layer.linear.bias_axes), 0))
    return np.broadcast_to(value.reshape(-1), (rows,))
