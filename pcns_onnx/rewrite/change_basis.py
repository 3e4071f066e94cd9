"""Layers in another basis: rows of a writer and columns of its readers multiplied by a matrix and its inverse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.graph import Graph
from pcns_onnx.rewrite.layer_weights import set_layer, stored_bias, stored_weight
from pcns_onnx.rewrite.patch import Patch, apply

Matrix = NDArray[np.float64]


Indices = NDArray[np.int64]


@dataclass(frozen=True)
class BasisChange:
    """Rows of V of a writer (`is_row`) or columns of a reader, (N,), and the matrix (N, N) that multiplies them."""

    layer: str
    places: Indices
    by: Matrix
    is_row: bool


def change_basis(
    graph: Graph, dependencies: DependencyGraph, basis_changes: Sequence[BasisChange]
) -> tuple[Graph, Patch]:
    """`graph` in the new basis, and the edits that make it so."""
    patch: Patch = ()
    for layer in dependencies.layers:
        of_layer = [change for change in basis_changes if change.layer == layer.name]
        if of_layer:
            patch += _change_layer(graph, layer, of_layer)
    return (apply(graph, patch) if patch else graph), patch


def _change_layer(graph: Graph, layer: Layer, basis_changes: list[BasisChange]) -> Patch:
    matrix = layer.linear.op.matrix(stored_weight(graph, layer)).copy()
    bias = stored_bias(graph, layer).copy()
    for change in basis_changes:
        at = change.places
        if change.is_row:
            matrix[at], bias[at] = change.by @ matrix[at], change.by @ bias[at]
        else:
            matrix[:, at] = matrix[:, at] @ change.by
    return set_layer(graph, layer, matrix, bias)
