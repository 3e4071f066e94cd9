"""One layer as two: W = I W, and between the two channels that nothing but linear maps touch.

Where a layer's outputs cannot get fewer (a residual stream, outputs of the model), its rank can:
with A (r, n) and B (K, r), B A x costs n r + r K instead of n K per position. Put as two layers, the
first W and the second the identity, the channels between them are a group like any other; its best
basis is the PCA of what W makes (`reconstruction.rotation`), and narrowing it to r is reduced-rank regression.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pcns_onnx.graph import Graph
from pcns_onnx.graph.queries import bias_of
from pcns_onnx.rewrite.patch import Patch

ENDING = ".rank"
"""What the name of the first of the two layers ends in; the second keeps the name."""
FACTORED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Factor:
    """Node `key`, a linear layer of this `name`, becomes two: its weights, then a square layer with its bias."""

    key: str
    name: str

    def apply(self, graph: Graph) -> None:
        """Make the edit."""
        node = graph.node(self.key)
        weight = graph.constant(node.inputs[1])
        assert weight is not None, "layers with stored weights are factored"
        rows_first = node.op == "Conv" or (node.op == "Gemm" and node.attrs.get("transB", 0))
        width = int(weight.shape[0 if rows_first else 1])
        square = np.eye(width)
        if node.op == "Conv":
            square = square.reshape(width, width, *(1,) * (weight.ndim - 2))
        bias = None if node.op == "MatMul" else bias_of(graph, node, width)
        inner = graph.append(self.key, node.op, square, (ENDING, ""), self.name)
        if bias is None:
            graph.append(inner, "Add", np.zeros(width), ("", ".bias"))
        else:
            graph.set_input(self.key, 2, bias)
            graph.set_input(inner, 2, np.zeros(width))

    def first(self, graph: Graph) -> str:
        """Key of what adds the first layer's bias, once the edit is made."""
        return graph.node(self.key).inputs[0]

    def __str__(self) -> str:
        return f"'{self.key}' := identity behind what it was"


def additions(graph: Graph, patch: Patch) -> tuple[str, ...]:
    """Keys of the additions behind the first of two MatMuls that edits in `patch` have made."""
    nodes = (graph.node(edit.first(graph)) for edit in patch if isinstance(edit, Factor))
    return tuple(node.key for node in nodes if node.op == "Add")
