"""The linear layers of a model, and what else has multiply-adds, from the facts of a propagation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from pcns_onnx.dependency.propagation import Propagation
from pcns_onnx.graph import Graph, Node
from pcns_onnx.graph.quantized_weights import bits_of, parameters_of_node
from pcns_onnx.graph.queries import bias_add
from pcns_onnx.ops import Labels, Linear, LinearOp, bias_behind


@dataclass(frozen=True)
class Bias:
    """Where a layer's bias is stored: input `position` of node `key`; new if `absent`."""

    key: str
    position: int
    scale: float
    absent: bool


@dataclass(frozen=True)
class ConvGroup:
    """A block of a layer that sees its own channels only: V's `rows`, the classes it reads and writes."""

    op: LinearOp
    reads: Labels
    writes: Labels
    rows: slice


@dataclass(frozen=True)
class Layer:
    """One linear layer y = V x + c. `output` is the tensor after its bias, `key` the node.

    `first_use` is the name of the first layer with the same stored weight, its own where there is none before it;
    `has_first_bias` says that the bias is that one's too. `fixed` says why the weight cannot be solved for.
    `macs` are 0 where the sizes are not known. `room` is what a weight takes in the file, in floats: less than one
    where it is stored in fewer bits.
    """

    name: str
    kind: str
    key: str
    source: str
    output: str
    linear: Linear
    bias: Bias
    macs: int
    parameters: int
    first_use: str
    has_first_bias: bool = False
    fixed: str = ""
    room: float = 1.0

    @property
    def is_repeated(self) -> bool:
        """Whether a layer before this one has the same stored weight."""
        return self.first_use != self.name

    @property
    def width(self) -> int:
        """Number of neurons or output channels."""
        return len(self.linear.writes)

    @property
    def parts(self) -> tuple[ConvGroup, ...]:
        """The blocks of V; one for all but grouped convolutions."""
        blocks = self.linear.op.conv_groups
        reads, writes = np.split(self.linear.reads, blocks), np.split(self.linear.writes, blocks)
        step = self.width // blocks
        return tuple(
            ConvGroup(self.linear.op.part(b), reads[b], writes[b], slice(b * step, (b + 1) * step))
            for b in range(blocks)
        )


@dataclass(frozen=True)
class Unsolved:
    """A node with multiply-adds whose weights are not solved for; `width` and `macs` are 0 where they are not known.

    `scales` are the classes that its cost is proportional to (a depthwise Conv's channels), None
    where it stays as it is, for `reason`.
    """

    name: str
    kind: str
    reason: str
    width: int
    macs: int
    parameters: int
    scales: Labels | None = None


def find_layers(propagation: Propagation) -> Iterator[Layer]:
    """Every layer that is solved for, in topological order, under a name of its own."""
    graph, shared = propagation.graph, propagation.shared_weights
    by_key: dict[str, tuple[str, tuple[str, float]]] = {}
    taken: set[str] = set()
    for node, facts in propagation.node_facts:
        if facts.linear is None:
            continue
        classes = propagation.classes.of
        linear = replace(facts.linear, reads=classes(facts.linear.reads), writes=classes(facts.linear.writes))
        bias = _bias(graph, node, linear)
        size = int(np.prod([d or 1 for d in propagation.shapes[node.inputs[linear.weight]]]))
        name = next(n for n in _names(node.name, bias.key) if n not in taken)
        taken.add(name)
        stored_bias = "" if bias.absent else graph.node(bias.key).inputs[bias.position]
        by_key[node.key] = name, (stored_bias, bias.scale)
        first = by_key[shared.first_use.get(node.key, node.key)]
        yield Layer(
            name=name,
            kind=node.op,
            key=node.key,
            source=node.inputs[linear.source],
            output=bias.key,
            linear=linear,
            bias=bias,
            macs=_per_sample(facts.macs or 0, propagation.batch),
            parameters=size + (0 if bias.absent else len(linear.writes)),
            room=(bits_of(graph, node.inputs[linear.weight]) or 32.0) / 32.0,
            first_use=first[0],
            has_first_bias=first[0] != name and first[1] == (stored_bias, bias.scale),
            fixed=shared.fixed.get(node.key, ""),
        )


def _names(name: str, output: str) -> Iterator[str]:
    """What a layer may be called: its name, else its output's; node names need not be unique."""
    if name:
        yield name
    yield output
    yield from (f"{name or output}_{i}" for i in count(1))


def _bias(graph: Graph, node: Node, linear: Linear) -> Bias:
    """The node's own bias input, or the Add behind it (`explicit_biases` puts one where there is none)."""
    if linear.bias is not None:
        absent = len(node.inputs) <= linear.bias or not node.inputs[linear.bias]
        return Bias(node.key, linear.bias, linear.bias_scale, absent)
    shape = bias_behind(node, graph.constant)
    add = None if shape is None else bias_add(graph, node, shape)
    assert add is not None, "explicit_biases ran before the dependency graph was built"
    return Bias(add.key, 1 - list(add.inputs).index(node.key), 1.0, absent=False)


def _per_sample(macs: int, batch: int) -> int:
    """Multiply-adds per sample; 0 is left to what is not known."""
    return max(macs // batch, 1) if macs else 0


def find_unsolved(propagation: Propagation) -> Iterator[Unsolved]:
    """Every other node with multiply-adds."""
    for node, facts in propagation.node_facts:
        if facts.macs is not None and facts.linear is None:
            shape = propagation.shapes.get(node.key, ())
            axis = 1 if node.op.startswith("Conv") else -1
            width = shape[axis] if len(shape) > 1 else None
            parameters = parameters_of_node(propagation.graph, node)
            scales = None if facts.scales is None else propagation.classes.of(facts.scales)
            macs = _per_sample(facts.macs, propagation.batch)
            reason = propagation.causes.complete(node, facts.reason)
            yield Unsolved(node.label, node.op, reason, width or 0, macs, parameters, scales)
