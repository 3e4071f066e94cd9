"""Which channels can go, and what goes with them: one walk over the graph.

The walk hands every node to its rule, in topological order, and collects what the rules
state. Channels born in one layer form a *group*: the unit that is narrowed. A group is frozen,
with the reason, as soon as one of its channels reaches something that cannot follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count

import numpy as np

from pcns_onnx.fold import bias_add
from pcns_onnx.graph import Array, Graph, Node, Shape
from pcns_onnx.ops import Flow, Kind, Labels, Linear, Ride, Site, Size, flow_of


@dataclass(frozen=True)
class Bias:
    """Where a layer's bias is stored: input `position` of node `key`; new if `absent`."""

    key: str
    position: int
    scale: float
    absent: bool


@dataclass(frozen=True)
class Layer:
    """One linear layer y = V x + c. `output` is the tensor after its bias, `key` the node."""

    name: str
    kind: str
    key: str
    source: str
    output: str
    linear: Linear
    bias: Bias
    macs: int
    parameters: int

    @property
    def width(self) -> int:
        """Number of neurons or output channels."""
        return len(self.linear.writes)


@dataclass(frozen=True)
class Unsolved:
    """A node with multiply-adds whose weights are not solved for; `width` 0 where it is not known."""

    name: str
    kind: str
    reason: str
    width: int
    macs: int
    parameters: int


@dataclass(frozen=True)
class Group:
    """Channels that are narrowed together. `labels` are sorted; `frozen` says why it must stay."""

    name: str
    labels: Labels
    writer: str
    readers: tuple[str, ...]
    activation: str
    path: tuple[str, ...]
    frozen: str | None

    @property
    def width(self) -> int:
        """Number of channels."""
        return len(self.labels)


@dataclass(frozen=True)
class Census:
    """Everything the walk found."""

    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    rides: tuple[tuple[str, Ride], ...]
    sizes: tuple[Size, ...]
    kinds: Mapping[str, Kind]
    labels: Mapping[str, Labels]
    shapes: Mapping[str, Shape]
    unsolved: tuple[Unsolved, ...] = ()

    def layer(self, name: str) -> Layer:
        """The layer of this name."""
        return next(layer for layer in self.layers if layer.name == name)

    def reads(self, layer: Layer) -> Group | None:
        """The group whose channels this layer reads, if any."""
        return next((g for g in self.groups if layer.name in g.readers), None)

    def writes(self, layer: Layer) -> Group:
        """The group whose channels this layer makes."""
        return next(g for g in self.groups if g.writer == layer.name)

    @property
    def shrinkable(self) -> tuple[Group, ...]:
        """Groups that may be narrowed."""
        return tuple(g for g in self.groups if g.frozen is None)


@dataclass
class _Walk:
    graph: Graph
    shapes: Mapping[str, Shape]
    larger: Mapping[str, Shape]
    batch: int
    labels: dict[str, Labels] = field(default_factory=dict)
    flows: list[tuple[Node, Flow]] = field(default_factory=list)
    frozen: dict[int, str] = field(default_factory=dict)
    born: int = 0

    @cached_property
    def exposed(self) -> frozenset[str]:
        return frozenset(output.name for output in self.graph.outputs)

    def batched(self, name: str) -> tuple[int, ...]:
        sizes = zip(self.shapes.get(name, ()), self.larger.get(name, ()), strict=False)
        return tuple(axis for axis, (one, more) in enumerate(sizes) if one != more)

    def fresh(self, count: int) -> Labels:
        self.born += count
        return np.arange(self.born - count, self.born, dtype=np.int64)

    def freeze(self, labels: Labels, reason: str) -> None:
        for label in np.unique(labels):
            if label >= 0:
                self.frozen.setdefault(int(label), reason)

    def site(self, node: Node) -> Site:
        graph = self.graph
        names = node.inputs
        return Site(
            node=node,
            labels=tuple(self.labels.get(name) for name in names),
            shapes=tuple(self.shapes.get(name) for name in names),
            outputs=tuple(self.shapes.get(name) for name in node.outputs),
            constants=tuple(graph.constant(name) if name else None for name in names),
            batched=tuple(self.batched(name) for name in names),
            exposed=tuple(name in self.exposed for name in node.outputs),
            fresh=self.fresh,
            producer=graph.producers.get,
            readers=lambda name: graph.consumers.get(name, ()),
            value=graph.constant,
            size=self.shapes.get,
        )

    def run(self) -> None:
        for node in self.graph.nodes:
            if node.op == "Constant" and not node.domain:
                continue
            flow = flow_of(self.site(node))
            self.flows.append((node, flow))
            for name, labels in zip(node.outputs, flow.outputs, strict=False):
                if name and labels is not None:
                    self.labels[name] = labels
            for fact in flow.frozen:
                self.freeze(fact.labels, fact.reason)
            for name in node.captures:
                if name in self.labels:
                    self.freeze(self.labels[name], f"a subgraph of {node.op} '{node.label}' reads it")
        for output in self.graph.outputs:
            if output.name in self.labels:
                self.freeze(self.labels[output.name], f"it feeds the model's output '{output.name}'")


def survey(graph: Graph, feeds: Mapping[str, Sequence[int]] | None = None) -> Census:
    """Walk `graph`; `feeds` gives the shape of each input where the model leaves it open."""
    batch = next((s.shape[0] for s in graph.inputs if s.shape and s.shape[0] is not None), 2)
    shapes = graph.shapes(feeds, batch=batch)
    larger = graph.shapes(feeds, batch=batch + 1)
    walk = _Walk(graph, shapes, larger, batch)
    walk.run()
    layers = tuple(_layers(walk))
    return Census(
        layers=layers,
        groups=tuple(_group(walk, layer, layers) for layer in layers),
        rides=tuple((node.key, ride) for node, flow in walk.flows for ride in flow.rides),
        sizes=tuple(size for _, flow in walk.flows for size in flow.sizes),
        kinds={node.key: flow.kind for node, flow in walk.flows},
        labels=walk.labels,
        shapes=shapes,
        unsolved=tuple(_unsolved(walk)),
    )


def _layers(walk: _Walk) -> Iterator[Layer]:
    graph = walk.graph
    taken: set[str] = set()
    for node, flow in walk.flows:
        if flow.linear is None:
            continue
        weight = graph.constant(node.inputs[flow.linear.weight])
        assert weight is not None, "a rule states `linear` for stored weights only"
        bias = _bias(graph, node, flow.linear)
        output = bias.key
        stored = 0 if bias.absent else len(flow.linear.writes)
        name = next(n for n in _names(node.name, output) if n not in taken)
        taken.add(name)
        yield Layer(
            name=name,
            kind=node.op,
            key=node.key,
            source=node.inputs[0],
            output=output,
            linear=flow.linear,
            bias=bias,
            macs=(flow.macs or 0) // walk.batch,
            parameters=int(weight.size) + stored,
        )


def _names(name: str, output: str) -> Iterator[str]:
    """What a layer may be called: its name, else its output's; node names need not be unique."""
    if name:
        yield name
    yield output
    yield from (f"{name or output}_{i}" for i in count(1))


def _bias(graph: Graph, node: Node, linear: Linear) -> Bias:
    """The node's own bias input, or the Add behind it (`fold` puts one where there is none)."""
    if linear.bias is not None:
        absent = len(node.inputs) <= linear.bias or not node.inputs[linear.bias]
        return Bias(node.key, linear.bias, linear.bias_scale, absent)
    add = bias_add(graph, node, len(linear.writes))
    assert add is not None, "fold.explicit_biases ran before the survey"
    return Bias(add.key, 1 - list(add.inputs).index(node.key), 1.0, absent=False)


def _group(walk: _Walk, layer: Layer, layers: Sequence[Layer]) -> Group:
    labels = layer.linear.writes
    readers = tuple(other.name for other in layers if np.isin(other.linear.reads, labels).any())
    frozen = next((walk.frozen[int(label)] for label in labels if int(label) in walk.frozen), None)
    if frozen is None and not readers:
        frozen = "no linear layer reads it"
    if frozen is None and len(labels) < 2:
        frozen = "it has a single channel"
    activation, path = _path(walk, layer)
    return Group(layer.name, labels, layer.name, readers, activation, path, frozen)


def _path(walk: _Walk, layer: Layer) -> tuple[str, tuple[str, ...]]:
    """The tensor after the activation, and the keys of all nodes between writer and readers.

    The activation ends where the pointwise nodes behind the layer come back to a single tensor
    (x * sigmoid(x) does); where they do not, it is the layer's own output.
    """
    mine = set(layer.linear.writes.tolist())
    carries = {name for name, labels in walk.labels.items() if mine & set(labels.ravel().tolist())}
    between = [
        (node, flow)
        for node, flow in walk.flows
        if flow.linear is None and node.key != layer.output and carries.intersection(node.inputs)
    ]
    inside = {layer.output}
    for node, flow in between:
        if flow.kind == "pointwise" and inside.issuperset(carries.intersection(node.inputs)):
            inside.update(node.outputs)
    outputs = {o.name for o in walk.graph.outputs}
    consumers = walk.graph.consumers
    exits = [
        name
        for name in sorted(inside)
        if name in outputs or any(reader.key not in inside for reader in consumers.get(name, ()))
    ]
    activation = exits[0] if len(exits) == 1 else layer.output
    return activation, tuple(node.key for node, _ in between)


def _unsolved(walk: _Walk) -> Iterator[Unsolved]:
    for node, flow in walk.flows:
        if flow.macs is not None and flow.linear is None:
            weights: list[Array] = [c for n in node.inputs if (c := walk.graph.constant(n)) is not None]
            shape = walk.shapes.get(node.key, ())
            axis = 1 if node.op.startswith("Conv") else -1
            width = shape[axis] if len(shape) > 1 else None
            parameters = sum(int(w.size) for w in weights)
            yield Unsolved(node.label, node.op, flow.reason, width or 0, flow.macs // walk.batch, parameters)
