"""The linear layers of a model, and what else has multiply-adds, from the facts of a propagation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np

from pcns_onnx.dependency.propagation import Propagation
from pcns_onnx.graph import Graph, Node
from pcns_onnx.graph.quantized_weights import bits_of, parameters_of_node
from pcns_onnx.graph.queries import bias_add
from pcns_onnx.ops import Cell, Labels, Linear, LinearOp, bias_behind
from pcns_onnx.ops.recurrent import CellOp


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
    where it is stored in fewer bits. `beside` are further tensors that a recurrent layer's rows are made of: its own
    states, and by name of the argument what its node says of lengths and initial states.
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
    beside: Mapping[str, str] = field(default_factory=dict)

    @property
    def cell(self) -> Cell | None:
        """What sets a recurrent layer apart, None for all others."""
        return self.linear.cell

    @property
    def sources(self) -> tuple[str, ...]:
        """The tensors that its rows are made of."""
        return (self.source, *self.beside.values())

    @property
    def inputs(self) -> Labels:
        """The classes that it reads of its source: of a recurrent layer all but its own states."""
        reads = self.linear.reads
        if self.cell is None:
            return reads
        directions, units = self.cell.hidden.shape
        return reads[: len(reads) // directions - units]

    def rows_from(self, tensors: Mapping[str, Any]) -> Any:
        """What its `op` takes the input rows from, of the tensors by name."""
        x, op = tensors[self.source], self.linear.op
        if not isinstance(op, CellOp):
            return x
        return op.joined(x, **{argument: tensors[name] for argument, name in self.beside.items()})

    @property
    def is_repeated(self) -> bool:
        """Whether a layer before this one has the same stored weight."""
        return self.first_use != self.name

    @property
    def width(self) -> int:
        """Number of neurons, output channels or units (of all directions)."""
        return len(self.linear.writes) // (1 if self.cell is None else self.cell.gates)

    @property
    def parts(self) -> tuple[ConvGroup, ...]:
        """The blocks of V; one for all but grouped convolutions."""
        blocks = self.linear.op.conv_groups
        reads, writes = np.split(self.linear.reads, blocks), np.split(self.linear.writes, blocks)
        step = len(self.linear.writes) // blocks
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
        if linear.cell is not None:
            linear = replace(linear, cell=replace(linear.cell, hidden=classes(linear.cell.hidden)))
        bias = _bias(graph, node, linear)
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
            parameters=_parameters(propagation, node, linear, bias),
            room=(bits_of(graph, node.inputs[linear.weight]) or 32.0) / 32.0,
            first_use=first[0],
            has_first_bias=first[0] != name and first[1] == (stored_bias, bias.scale),
            fixed=shared.fixed.get(node.key, ""),
            beside=_beside(node, linear),
        )


def _parameters(propagation: Propagation, node: Node, linear: Linear, bias: Bias) -> int:
    """Numbers that are stored for a layer."""
    if linear.cell is not None:
        return parameters_of_node(propagation.graph, node)
    size = int(np.prod([d or 1 for d in propagation.shapes[node.inputs[linear.weight]]]))
    return size + (0 if bias.absent else len(linear.writes))


def _beside(node: Node, linear: Linear) -> dict[str, str]:
    """What the rows of a recurrent layer are made of beside its input: states at every step, lengths, first states."""
    if linear.cell is None:
        return {}
    varying = {argument: at for argument, at in (("lengths", 4), ("initial", 5)) if at in linear.cell.varying}
    return {"y": node.outputs[0], **{argument: node.inputs[at] for argument, at in varying.items()}}


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
