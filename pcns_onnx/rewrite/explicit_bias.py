"""Every layer with a bias, for the time of the solve.

Some operators have no input for a bias (MatMul). Where no Add follows such a layer, one with zeros is put
there; those that are still zero afterwards go again.
"""

from __future__ import annotations

import numpy as np

from pcns_onnx.graph import Graph
from pcns_onnx.graph.queries import bias_add, stored_root
from pcns_onnx.ops import bias_behind


def explicit_biases(graph: Graph) -> tuple[Graph, tuple[str, ...]]:
    """A copy in which an Add follows every layer that has no bias of its own; keys of the new Adds."""
    result, added = graph, list[str]()
    by_weight: dict[tuple[str, tuple[int, ...]], str] = {}
    for node in graph.nodes:
        shape = bias_behind(node, graph.constant)
        if shape is not None and bias_add(graph, node, shape) is None:
            result = graph.copy() if result is graph else result
            result.append(node.key, "Add", np.zeros(shape), ("", ".bias"))
            added.append(node.key)
            weight = stored_root(graph, next(name for name in node.inputs if name and graph.is_constant(name)))
            bias = by_weight.setdefault((weight, shape), result.node(node.key).inputs[1])
            if bias != result.node(node.key).inputs[1]:  # layers with one weight have one bias
                result.read_same(node.key, 1, bias)
    return result, tuple(added)


def drop_zero_biases(graph: Graph, added: tuple[str, ...]) -> None:
    """Take out, in place, the Adds of `explicit_biases` that the solve left at zero."""
    for key in added:
        value = graph.constant(graph.node(key).inputs[1])
        if value is not None and not value.any():
            graph.bypass(key)
