"""Questions that several rewrites ask of a graph."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.graph import Graph, Node


def names_of(graph: Graph) -> str:
    """The inputs, as messages list them."""
    return ", ".join(spec.name for spec in graph.inputs)


def bias_add(graph: Graph, node: Node, shape: tuple[int, ...]) -> Node | None:
    """The Add behind a layer that holds its bias, a stored value of this shape (but for ones in front), if any."""
    readers = graph.consumers.get(node.key, ())
    if len(readers) != 1 or readers[0].op != "Add" or any(o.name == node.key for o in graph.outputs):
        return None
    value = graph.constant(readers[0].inputs[1 - list(readers[0].inputs).index(node.key)])
    is_bias = value is not None and value.shape[-len(shape) :] == shape and value.size == prod(shape)
    return readers[0] if is_bias else None


def stored_value(graph: Graph, name: str) -> NDArray[np.float64]:
    """A constant that is known to be one, in float64."""
    value = graph.constant(name)
    assert value is not None, "the caller checked that it is constant"
    return value.astype(np.float64)


def bias_of(graph: Graph, node: Node, width: int) -> NDArray[np.float64]:
    """The bias that the layer really adds, shape (width,)."""
    if len(node.inputs) < 3 or not node.inputs[2]:
        return np.zeros(width)
    beta = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
    return np.broadcast_to(stored_value(graph, node.inputs[2]).reshape(-1) * beta, (width,))


def choosing_inputs(graph: Graph) -> frozenset[str]:
    """The inputs that the conditions of Ifs follow from."""
    pending, visited = [node.inputs[0] for node in graph.nodes if node.op == "If" and not node.domain], set[str]()
    while pending:
        name = pending.pop()
        if name not in visited:
            visited.add(name)
            maker = graph.producers.get(name)
            pending += [] if maker is None else [*maker.inputs, *maker.captures]
    return frozenset(spec.name for spec in graph.inputs if spec.name in visited)


class ConstantUse(NamedTuple):
    """Input `position` of node `key`; position -1: a subgraph of the node reads it, key '': it is an output."""

    key: str
    position: int


def stored_root(graph: Graph, name: str) -> str:
    """The stored tensor that a constant is, or is made of: of several, the largest."""
    while name in graph.derived:
        sources = [source for source in graph.producers[name].inputs if source]
        name = max(sources, key=lambda source: prod(_shape_of(graph, source)))
    return name


def constant_uses(graph: Graph) -> dict[str, list[ConstantUse]]:
    """Stored tensor -> everything that reads it, what is derived from it looked through, in the order of the nodes."""
    uses: dict[str, list[ConstantUse]] = {}
    for node in graph.nodes:
        if node.key in graph.derived:
            continue
        reads = [(name, position) for position, name in enumerate(node.inputs)]
        for name, position in (*reads, *((name, -1) for name in node.captures)):
            if name and graph.is_constant(name):
                uses.setdefault(stored_root(graph, name), []).append(ConstantUse(node.key, position))
    for output in graph.outputs:
        if graph.is_constant(output.name):
            uses.setdefault(stored_root(graph, output.name), []).append(ConstantUse("", 0))
    return uses


def _shape_of(graph: Graph, name: str) -> tuple[int, ...]:
    value = graph.constant(name)
    return (0,) if value is None else value.shape


def has_attention(graph: Graph) -> bool:
    """Whether a model has attention: what a Softmax makes is multiplied with what is computed, too."""
    for node in graph.nodes:
        if node.op.endswith("Attention"):
            return True
        if node.op in ("MatMul", "Einsum"):
            makers = [_computed_by(graph, name) for name in node.inputs]
            if "Softmax" in makers and all(makers):
                return True
    return False


def _computed_by(graph: Graph, name: str) -> str:
    """The operator that makes the values of a tensor, '' for what is stored; casts and the like are skipped."""
    node = graph.producers.get(name)
    while node is not None and node.op in ("Cast", "Dropout", "Identity", "Where") and node.inputs:
        node = graph.producers.get(node.inputs[-1])  # a Where has a guard for rows of nothing but masks in front
    return "" if node is None else node.op
