"""Which layer made a channel, and by which of its rows."""

from __future__ import annotations

from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.propagation import Propagation
from pcns_onnx.graph import Graph

Maker = tuple[str, int]
"""The layer that made a channel, and the row of V that did."""


class Origins:
    """Which row of which layer made a channel: from a walk that leaves ties out of account."""

    def __init__(self, graph: Graph, dependencies: DependencyGraph) -> None:
        propagation = Propagation.over(graph, dependencies.feeds, tied=False)
        flows = {node.key: flow for node, flow in propagation.flows}
        linear = {layer.name: flows[layer.key].linear for layer in dependencies.layers}
        self._reads = {name: found.reads for name, found in linear.items() if found is not None}
        self._made = {
            int(label): (name, row)
            for name, found in linear.items()
            if found is not None
            for row, label in enumerate(found.writes)
        }
        self._products = {key: flow.bilinear for key, flow in flows.items() if flow.bilinear is not None}

    def of_columns(self, layer: str) -> list[Maker | None]:
        """The maker of every channel that a layer reads."""
        return [self._made.get(int(label)) for label in self._reads[layer]]

    def of_product(self, key: str) -> list[tuple[list[Maker | None], list[Maker | None]]]:
        """For every head of a product: the makers of the channels of both sides."""
        found = self._products.get(key)
        if found is None:
            return []
        sides = (side.reshape(-1, side.shape[-1]) for side in (found.a, found.b))
        return [
            ([self._made.get(int(x)) for x in a], [self._made.get(int(x)) for x in b])
            for a, b in zip(*sides, strict=True)
        ]
