"""Every layer with a bias, for the time of the solve.

A MatMul has no bias of its own. Where no Add follows it, one with zeros is put there; those that are
still zero afterwards go again.
"""

from __future__ import annotations

import numpy as np

from pcns_onnx.graph import Graph
from pcns_onnx.graph.queries import bias_add


def explicit_biases(graph: Graph) -> tuple[Graph, tuple[str, ...]]:
    """A copy in which an Add follows every MatMul by a stored matrix; keys of the new Adds."""
    result, added = graph, list[str]()
    for node in graph.nodes:
        weight = graph.constant(node.inputs[1]) if node.op == "MatMul" and not node.domain else None
        if weight is not None and weight.ndim == 2 and bias_add(graph, node, weight.shape[1]) is None:
            result = graph.copy() if result is graph else result
            result.append(node.key, "Add", np.zeros(weight.shape[1]), ("", ".bias"))
            added.append(node.key)
    return result, tuple(added)


def drop_zero_biases(graph: Graph, added: tuple[str, ...]) -> None:
    """Take out, in place, the Adds of `explicit_biases` that the solve left at zero."""
    for key in added:
        value = graph.constant(graph.node(key).inputs[1])
        if value is not None and not value.any():
            graph.bypass(key)
