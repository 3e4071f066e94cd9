"""The layers whose rows are what the outputs hold: each row of theirs counts in its own scale."""

from __future__ import annotations

from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.graph import Graph


def last_layers(graph: Graph, dependencies: DependencyGraph) -> frozenset[str]:
    """Names of the layers that reach an output through nothing but what acts on each value, or moves it.

    Where two tensors that vary meet, as in a sum, neither is what the output holds.
    """
    layers = {layer.key: layer.name for layer in dependencies.layers}
    names, visited = set[str](), set[str]()
    pending = [spec.name for spec in graph.outputs]
    while pending:
        node = graph.producers.get(pending.pop())
        if node is None or node.key in visited:
            continue
        visited.add(node.key)
        if node.key in layers:
            names.add(layers[node.key])
            continue
        varying = [name for name in node.inputs if name and not graph.is_constant(name)]
        if len(varying) == 1 or dependencies.kinds.get(node.key) == "move":
            pending += varying
    return frozenset(names)
