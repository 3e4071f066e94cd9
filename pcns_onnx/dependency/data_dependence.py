"""Tensors with as many rows as the data says, and what two forms of a model are compared by instead.

NonMaxSuppression finds more boxes in one picture than in another, and a model that is a little narrower finds one
more or one fewer in the same. So a tensor whose shape follows from values that layers compute is no place for a
re-fit, and no measure of what a loss does. What is left to measure by stands in front: the numbers that the counting
operators read,

    boxes, scores -> NonMaxSuppression -> Gather -> found          found is judged by boxes and scores

which have the same shape in every form of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from pcns_onnx.graph import Graph, Node
from pcns_onnx.ops import COUNTING, SIZE_INPUTS

KNOWN = ("", "ai.onnx.ml", "com.microsoft")
"""Domains whose counting operators are listed."""


class DataDependence:
    """What of a graph depends on the weights (`touched`), whose shape follows from such values (`counted`), and what
    follows from operators that nothing is known of (`strange`)."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.touched: set[str] = set()
        self.counted: set[str] = set()
        self.strange: set[str] = set()
        for node in graph.nodes:
            if not graph.is_constant(node.key):
                self._add(node)

    def _add(self, node: Node) -> None:
        sources = [name for name in (*node.inputs, *node.captures) if name]
        outputs = [name for name in node.outputs if name]
        if node.op in ("Shape", "Size") and not node.domain:
            self.touched.update(outputs if node.inputs[0] in self.counted else ())
            return
        if not self.touched.isdisjoint(sources) or any(map(self._graph.is_weight, sources)):
            self.touched.update(outputs)
            if node.domain not in KNOWN or not self.strange.isdisjoint(sources):
                self.strange.update(outputs)
            if self._counts(node) or not self.counted.isdisjoint(sources):
                self.counted.update(outputs)

    def _counts(self, node: Node) -> bool:
        """Whether the shape of what a node makes follows from values that depend on the weights."""
        if not self.touched.isdisjoint(node.inputs + node.captures):
            if not COUNTING.isdisjoint((node.op, *node.inner)):
                return True
            if node.op == "If":  # both branches may well make the same shape
                return node.inputs[0] in self.touched and any(map(self._graph.is_open, filter(None, node.outputs)))
            if node.op == "Loop":
                return not self.touched.isdisjoint((node.inputs[0], *node.stop))
        sizes = SIZE_INPUTS.get(node.op, ()) if not node.domain else ()
        return any(place < len(node.inputs) and node.inputs[place] in self.touched for place in sizes)

    @cached_property
    def judged(self) -> Mapping[str, tuple[str, ...]]:
        """Output -> the tensors that it is judged by: itself, where its shape is the same whatever is found."""
        return {output.name: self._judged_by(output.name) for output in self._graph.outputs}

    def _judged_by(self, output: str) -> tuple[str, ...]:
        graph = self._graph
        if output not in self.counted and output not in graph.containers:
            return (output,)
        fronts, visited, pending = dict[str, None](), set[str](), [output]
        while pending:
            name = pending.pop()
            maker = graph.producers.get(name)
            if name in visited or name not in self.touched or maker is None:
                continue
            visited.add(name)
            if name not in self.counted and graph.is_floating(name):
                fronts[name] = None
            else:
                pending += [*maker.captures[::-1], *maker.inputs[::-1]]
        return tuple(fronts)


def judged_tensors(graph: Graph) -> Sequence[str]:
    """The tensors by which forms of a model are judged: its outputs, or what stands in front of counting operators."""
    return tuple(dict.fromkeys(name for names in DataDependence(graph).judged.values() for name in names))
