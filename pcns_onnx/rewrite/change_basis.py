"""Layers in another basis: rows of a writer and columns of its readers multiplied by a matrix and its inverse.

A cache of K that gets narrower holds some of its channels as they are, so K has no basis but its own. What goes of it
follows from what stays, k_G ~ M' k_S, as far as it does, and Q makes up for that:

    q' k = (q_S + M q_G)' k_S + q_G' (k_G - M' k_S),    M = C_SS^-1 C_SG

with C the covariance of k: its mean adds the same to all scores of a row, which Softmax does not see.
"""

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


@dataclass(frozen=True)
class Absorption:
    """A head of K, `rows` of layer `name`, whose heads of Q (`queries`: layers with rows) make up for what goes of it.

    `labels` (N,) are the classes of its channels, `covariance` (N, N) is theirs. `state` is the tensor that its cache
    is passed on as, `head` which of the cache's heads it is.
    """

    name: str
    rows: Indices
    queries: tuple[tuple[str, Indices], ...]
    labels: Indices
    covariance: Matrix
    state: str
    head: int

    def matrix(self, kept: NDArray[np.bool_]) -> Matrix:
        """A (N, N): what multiplies q, and A^-T multiplies k; `kept` (born + 1,): which classes stay."""
        stays = kept[self.labels]
        inner = self.covariance[np.ix_(stays, stays)]
        inner = inner + np.eye(len(inner)) * (1e-9 * max(float(np.trace(inner)) / max(len(inner), 1), 1e-30))
        by = np.eye(len(stays))
        by[np.ix_(stays, ~stays)] = np.linalg.solve(inner, self.covariance[np.ix_(stays, ~stays)])
        return by

    def changes(self, kept: NDArray[np.bool_]) -> list[BasisChange]:
        """Q and K in the basis in which what goes of K is what does not follow from the rest."""
        by = self.matrix(kept)
        back = np.asarray(np.linalg.inv(by).T, dtype=np.float64)
        of_q = [BasisChange(name, rows, by, True) for name, rows in self.queries]
        return [*of_q, BasisChange(self.name, self.rows, back, True)]


@dataclass(frozen=True)
class MixState:
    """What tensor `key` (B, H, P, N) holds of every head is multiplied by a matrix of its own: `by` (H, N, N)."""

    key: str
    by: Matrix

    def apply(self, graph: Graph) -> None:
        """Make the edit."""
        graph.multiply_behind(self.key, self.by[None])

    def __str__(self) -> str:
        return f"'{self.key}' := its product with {self.by.shape}"


def mixed_caches(absorptions: Sequence[Absorption], kept: NDArray[np.bool_]) -> Patch:
    """The edits by which caches come in the basis that their layers are put in."""
    patch: Patch = ()
    for key in dict.fromkeys(absorption.state for absorption in absorptions):
        of_state = [absorption for absorption in absorptions if absorption.state == key]
        heads = 1 + max(absorption.head for absorption in of_state)
        by = np.tile(np.eye(len(of_state[0].labels)), (heads, 1, 1))
        for absorption in of_state:
            by[absorption.head] = np.linalg.inv(absorption.matrix(kept))
        patch += (MixState(key, by),)
    return patch


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
