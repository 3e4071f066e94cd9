"""Weights that several layers read: a head on every level of a pyramid, siamese towers, a cell written out in time.

What is stored once stays stored once. So the uses of one weight are tied, row by row and column by column: they
keep the same channels, and are solved for together (`reconstruction.joint`). Where one of them cannot follow (it is
read transposed, or by a Gather, as embeddings are that also make the logits), all stay as they are.

Vectors with a value per channel (biases, slopes, norms) tie nothing: exporters store equal ones once, whoever they
belong to. They are few, and come apart where their channels do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pcns_onnx.graph import Array, Graph, Node
from pcns_onnx.graph.queries import ConstantUse, constant_uses, stored_root
from pcns_onnx.ops import MUST_STAY, Frozen, Labels, Linear, OpFacts, Tie


@dataclass(frozen=True)
class _Use:
    """A node that reads a shared weight, and the labels that lie along it: of rows and columns, or of channels."""

    node: Node
    position: int
    labels: tuple[Labels, ...]
    linear: Linear | None = None


@dataclass
class SharedWeights:
    """The uses of every weight that has several, as a propagation comes to them.

    `first_use`: key of a layer -> that of the first with its weight; `fixed`: key of a layer -> why it cannot be
    solved for.
    """

    graph: Graph
    first_use: dict[str, str] = field(default_factory=dict)
    fixed: dict[str, str] = field(default_factory=dict)
    _known: dict[str, list[_Use]] = field(default_factory=dict)
    _unlike: dict[str, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._uses = {root: uses for root, uses in constant_uses(self.graph).items() if len(uses) > 1}

    def ties(self, node: Node, facts: OpFacts) -> Iterator[tuple[Node, Tie]]:
        """What a node's channels share with the uses before it, and the node that is to blame where they stay."""
        for use in self._of(node, facts):
            name = node.inputs[use.position]
            root = stored_root(self.graph, name)
            if root not in self._uses:
                continue
            known = self._known.setdefault(root, [])
            known.append(use)
            first = known[0]
            if use.linear is not None and first.linear is not None:
                self.first_use[node.key] = first.node.key
            if not self._are_alike(first, use):
                self._unlike.setdefault(root, node)
                continue
            both = f"'{node.label}' and '{first.node.label}' share the weight '{root}'"
            why = f"{both}, one of them with channels {MUST_STAY}"
            for a, b in zip(first.labels, use.labels, strict=True):
                if first is not use:
                    yield (first.node if (a < 0).any() else node), Tie(a, b, why)

    def frozen(self) -> Iterator[Frozen]:
        """What stays since other nodes read the weight too, or read it in another way."""
        for root, known in self._known.items():
            covered = {(use.node.key, use.position) for use in known}
            others = [use for use in self._uses[root] if (use.key, use.position) not in covered]
            if not others and root not in self._unlike:
                continue
            whose = self._whose(others[0]) if others else f"'{self._unlike[root].label}', in another way,"
            why = f"its weight '{root}' is stored once, and {whose} reads it too"
            for use in known:
                if use.linear is not None:
                    self.fixed[use.node.key] = why
                for labels in use.labels:
                    yield Frozen(labels, f"'{use.node.label}' stays: {why}")

    def _of(self, node: Node, facts: OpFacts) -> Iterator[_Use]:
        if facts.linear is not None:
            linear = facts.linear
            yield _Use(node, linear.weight, (linear.writes, linear.reads), linear)
        for constant in facts.per_channel:
            value = self.graph.constant(node.inputs[constant.position])
            if value is not None and value.size > constant.labels.size:
                yield _Use(node, constant.position, (constant.labels,))

    def _are_alike(self, first: _Use, use: _Use) -> bool:
        """Whether two uses read the weight as the same V."""
        a, b = (self._value(item) for item in (first, use))
        shapes = [[labels.shape for labels in item.labels] for item in (first, use)]
        layouts = [None if item.linear is None else item.linear.op.layout for item in (first, use)]
        same = a is b or (a is not None and b is not None and np.array_equal(a, b))
        return same and shapes[0] == shapes[1] and layouts[0] == layouts[1]

    def _value(self, use: _Use) -> Array | None:
        return self.graph.constant(use.node.inputs[use.position])

    def _whose(self, use: ConstantUse) -> str:
        if not use.key:
            return "the model's output"
        node = self.graph.node(use.key)
        return f"{node.op} '{node.label}'"
