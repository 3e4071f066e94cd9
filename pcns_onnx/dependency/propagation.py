"""Labels propagated over the graph: every node goes to its rule, and what the rules state is collected.

Channels are labels (see `ops.facts`). A tie merges labels into one class; from then on rules are
shown one label per class, and an axis along which the class does not change has size one. So
the heads of an attention layer, once tied, look like a single head to what follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from pcns_onnx.dependency.causes import Causes
from pcns_onnx.dependency.classes import Classes
from pcns_onnx.dependency.data_dependence import DataDependence
from pcns_onnx.dependency.shared_weights import SharedWeights
from pcns_onnx.dependency.states.carried_states import CarriedStates
from pcns_onnx.graph import Graph, Node, Shape
from pcns_onnx.graph.quantized_weights import can_be_written
from pcns_onnx.graph.queries import bias_add
from pcns_onnx.ops import Heads, Labels, Linear, OpContext, OpFacts, axes_of, bias_behind, facts_of
from pcns_onnx.ops.facts import describe, freeze


@dataclass
class Propagation:
    """Labels, their classes and what the rule of each node states; with `tied` false, ties are left out of account."""

    graph: Graph
    shapes: Mapping[str, Shape]
    larger: Mapping[str, Shape]
    batch: int
    heads: Heads = "width"
    tied: bool = True
    classes: Classes = field(default_factory=Classes)
    labels: dict[str, Labels] = field(default_factory=dict)
    node_facts: list[tuple[Node, OpFacts]] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    states: CarriedStates = field(default_factory=CarriedStates)
    _facts: dict[str, OpFacts] = field(default_factory=dict)

    @classmethod
    def over(
        cls, graph: Graph, feeds: Mapping[str, Sequence[int]] | None, *, heads: Heads = "width", tied: bool = True
    ) -> Propagation:
        """Propagate labels through `graph`; `feeds` gives the shape of each input where the model leaves it open."""
        batch = graph.layout.batch
        shapes = graph.shapes(feeds, batch=batch)
        propagation = cls(graph, shapes, graph.shapes(feeds, batch=batch + 1), batch, heads, tied)
        propagation.states = CarriedStates.of(graph, shapes, propagation.classes)
        propagation._run()
        return propagation

    @cached_property
    def _dependence(self) -> DataDependence:
        return DataDependence(self.graph)

    @cached_property
    def shared_weights(self) -> SharedWeights:
        """The weights that several nodes read."""
        return SharedWeights(self.graph)

    @cached_property
    def exposed(self) -> frozenset[str]:
        """Names of the model's outputs."""
        return frozenset(output.name for output in self.graph.outputs)

    @cached_property
    def carried(self) -> Mapping[str, frozenset[int]]:
        """Tensor -> the classes that it carries."""
        return {name: frozenset(np.unique(self.classes.of(lab)).tolist()) - {-1} for name, lab in self.labels.items()}

    @cached_property
    def coupled(self) -> frozenset[int]:
        """Classes that several layers share."""
        shared = [self.classes.of(labels).reshape(-1) for _, facts in self.node_facts for labels in facts.coupled]
        return frozenset(np.unique(np.concatenate(shared)).tolist()) - {-1} if shared else frozenset()

    @cached_property
    def frozen(self) -> Mapping[int, str]:
        """Class -> why it must stay."""
        by_class: dict[int, str] = {}
        for label in sorted(self.reasons):
            by_class.setdefault(int(self.classes.roots[label]), self.reasons[label])
        return by_class

    @cached_property
    def causes(self) -> Causes:
        """Why tensors stay."""
        return Causes(self.graph, self._facts, self.labels)

    def _run(self) -> None:
        for node in self.graph.nodes:
            if self.graph.is_constant(node.key):
                continue
            if node.key in self.states.labels:
                self.labels[node.key] = self.states.labels[node.key]
                continue
            facts = self._facts_of(node)
            self.node_facts.append((node, facts))
            self._facts[node.key] = facts
            for name, labels in zip(node.outputs, facts.outputs, strict=False):
                if name and labels is not None:
                    self.labels[name] = labels
            for fact in facts.frozen:
                self._freeze(fact.labels, self.causes.complete(node, fact.reason))
            own = [(node, tie) for tie in facts.ties]
            for blamed, tie in (*own, *self.shared_weights.ties(node, facts)) if self.tied else ():
                both = (tie.a >= 0) & (tie.b >= 0)
                self.classes.tie(tie.a[both], tie.b[both])
                if not both.all():
                    why = self.causes.complete(blamed, tie.reason)
                    self._freeze(np.concatenate([tie.a[~both], tie.b[~both]]), why)
            for name in node.captures:
                if name in self.labels:
                    self._freeze(self.labels[name], f"a subgraph of {node.op} '{node.label}' reads it")
        for fact in self.shared_weights.frozen():
            self._freeze(fact.labels, fact.reason)
        for tie in self.states.ties(self.labels):
            both = (tie.a >= 0) & (tie.b >= 0)
            self.classes.tie(tie.a[both], tie.b[both])
            self._freeze(np.concatenate([tie.a[~both], tie.b[~both]]), tie.reason)
        for output in self.graph.outputs:
            if output.name in self.labels and output.name not in self.states.outputs:
                self._freeze(self.labels[output.name], f"it feeds the model's output '{output.name}'")
        for name, labels in self.labels.items():
            if len(axes_of(self.classes.compact(labels))) > 1 and not self._has_whole_directions(name):
                self._freeze(labels, f"its channels lie on several axes of '{name}'")

    def _has_whole_directions(self, name: str) -> bool:
        """Whether a tensor holds all units of directions of a recurrent layer, and is only moved about."""
        labels = self.classes.compact(self.labels[name])
        sides = {tuple(side) for side in (*self._directions, *self.states.rows(self.classes))}
        table = labels.reshape([size for size in labels.shape if size > 1] or [1])
        whole = table.ndim == 2 and any({tuple(row) for row in way} <= sides for way in (table, table.T))
        readers = [reader for reader in self.graph.consumers.get(name, ()) if reader.key in self._facts]
        kinds = {self._facts[reader.key].kind for reader in readers if not self._starts_from(reader, name)}
        return whole and kinds <= {"move", "select", "pointwise", "scaling"}

    def _starts_from(self, node: Node, name: str) -> bool:
        """Whether a recurrent layer takes a tensor as a state, whose units are tied to its own, not as its input."""
        linear = self._facts[node.key].linear
        return linear is not None and linear.cell is not None and node.inputs[0] != name

    @property
    def _directions(self) -> list[Labels]:
        """The units of every direction of recurrent layers."""
        cells = (facts.linear.cell for _, facts in self.node_facts if facts.linear is not None)
        return [side for cell in cells if cell is not None for side in self.classes.of(cell.hidden)]

    def _facts_of(self, node: Node) -> OpFacts:
        """What the rule of a node states, unless how many rows it has differs from one form of the model to another."""
        context = self._context(node)
        facts = facts_of(context, local=(node.domain, node.op) in self.graph.functions)
        if not self._dependence.counted.isdisjoint(node.outputs):
            why = f"the size of '{node.key}' depends on the values that layers compute"
            return freeze(context, why, macs=facts.macs)
        constant = None if facts.linear is None else self._not_finite(node, facts.linear)
        if constant is not None:
            return freeze(context, f"{describe(node)} has NaN or Inf in '{constant}'", macs=facts.macs)
        return facts

    def _not_finite(self, node: Node, linear: Linear) -> str | None:
        """The weight or bias of a layer that holds NaN or Inf, so that nothing can be solved for it."""
        graph, shape = self.graph, bias_behind(node, self.graph.constant)
        add = None if shape is None else bias_add(graph, node, shape)
        names = [*node.inputs[linear.weight : linear.weight + 1], *(add.inputs if add is not None else ())]
        names += [] if linear.bias is None else node.inputs[linear.bias : linear.bias + 1]
        names += [] if linear.cell is None else [node.inputs[linear.cell.recurrence]]
        values = {name: graph.constant(name) for name in names if name}
        floats = {name: value for name, value in values.items() if value is not None and value.dtype.kind == "f"}
        return next((name for name, value in floats.items() if not np.isfinite(value).all()), None)

    def _freeze(self, labels: Labels, reason: str) -> None:
        for label in np.unique(labels):
            if label >= 0:
                self.reasons.setdefault(int(label), reason)

    def _labels_of(self, name: str) -> Labels | None:
        labels = self.labels.get(name)
        return labels if labels is None or not self.tied else self.classes.compact(labels)

    def _batched(self, name: str) -> tuple[int, ...]:
        sizes = zip(self.shapes.get(name, ()), self.larger.get(name, ()), strict=False)
        return tuple(axis for axis, (one, more) in enumerate(sizes) if one != more)

    def _context(self, node: Node) -> OpContext:
        graph = self.graph
        names = node.inputs
        return OpContext(
            node=node,
            labels=tuple(self._labels_of(name) for name in names),
            shapes=tuple(self.shapes.get(name) for name in names),
            outputs=tuple(self.shapes.get(name) for name in node.outputs),
            constants=tuple(graph.constant(name) if name else None for name in names),
            batched=tuple(self._batched(name) for name in names),
            exposed=tuple(name in self.exposed for name in node.outputs),
            heads=self.heads,
            opset=graph.opset,
            fresh=self.classes.fresh,
            producer=graph.producers.get,
            readers=lambda name: graph.consumers.get(name, ()),
            value=graph.constant,
            size=self.shapes.get,
            carried=self._labels_of,
            leaves=self.exposed.__contains__,
            sparse=graph.sparse.__contains__,
            writable=partial(can_be_written, graph),
            given_back=self.states.given_back.__contains__,
        )
