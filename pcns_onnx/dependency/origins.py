"""Which layer made a channel, and by which of its rows."""

from __future__ import annotations

from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.propagation import Propagation
from pcns_onnx.graph import Graph

Maker = tuple[str, int]
"""The layer that made a channel, and the row of V that did."""


class Origins:
    """Which row of which layer made a channel: from a propagation that leaves ties out of account."""

    def __init__(self, graph: Graph, dependencies: DependencyGraph) -> None:
        propagation = Propagation.over(graph, dependencies.feeds, tied=False)
        by_node = {node.key: facts for node, facts in propagation.node_facts}
        by_layer = {layer.name: by_node[layer.key].linear for layer in dependencies.layers}
        self._reads = {name: linear.reads for name, linear in by_layer.items() if linear is not None}
        self._makers = {
            int(label): (name, row)
            for name, linear in by_layer.items()
            if linear is not None
            for row, label in enumerate(linear.writes)
        }
        self._products = {key: facts.bilinear for key, facts in by_node.items() if facts.bilinear is not None}

    def of_columns(self, layer: str) -> list[Maker | None]:
        """The maker of every channel that a layer reads."""
        return [self._makers.get(int(label)) for label in self._reads[layer]]

    def of_product(self, key: str) -> list[tuple[list[Maker | None], list[Maker | None]]]:
        """For every head of a product: the makers of the channels of both sides."""
        product = self._products.get(key)
        if product is None:
            return []
        sides = (side.reshape(-1, side.shape[-1]) for side in (product.a, product.b))
        return [
            ([self._makers.get(int(x)) for x in a], [self._makers.get(int(x)) for x in b])
            for a, b in zip(*sides, strict=True)
        ]
