"""Finding residual streams: from the norms that read them to all that carries, writes and reads the same vector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.dependency.streams.carriage import Carriage, Sizes, carriage
from pcns_onnx.dependency.streams.norms import SKIPS, SUM, Norm, bias_of_skip, norm_reading, skip_norm
from pcns_onnx.dependency.streams.reading import LINEAR, ReadingWalk, Refused, note_sizes, reads_channels
from pcns_onnx.dependency.streams.stream import End, Reader, Slot, Stream, Streams, Writer
from pcns_onnx.graph import Graph, Node
from pcns_onnx.graph.queries import stored_value

_ENTRIES = 1
"""Matrices that may be put behind what is no layer, in one stream: each costs its width squared at every position."""


def find_streams(graph: Graph, dependencies: DependencyGraph) -> Streams:
    """All residual streams of a graph whose layers have explicit biases."""
    streams, refused, visited = list[Stream](), dict[str, str](), set[str]()
    for source in _sources(graph, dependencies.shapes):
        if source in visited:
            continue
        search = _Search(graph, dependencies, source)
        search.run()
        visited |= search.stream.tensors.keys()
        stream = search.stream
        if not stream.sums or not (stream.writers or stream.tables):
            continue
        name = next(n for n in _names(search.name) if n not in refused and all(n != s.name for s in streams))
        reason = search.reason or (None if stream.norms else "no norm reads it")
        if reason is None:
            stream.name = name
            streams.append(stream)
        else:
            refused[name] = reason
    return Streams(tuple(streams), refused)


def _names(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{at}" for at in range(1, 1 << 20))


def _sources(graph: Graph, sizes: Sizes) -> Iterator[str]:
    """What norms over the last axis read."""
    for node in graph.nodes:
        if node.op in SKIPS and node.domain:
            yield node.inputs[0]
            continue
        for source in dict.fromkeys(node.inputs[:1]):
            shape = sizes.get(source)
            if not shape or not shape[-1] or graph.is_constant(source):
                continue
            norm = norm_reading(graph, node, source, shape[-1])
            if isinstance(norm, Norm) and _axis(node, len(shape)) == len(shape) - 1:
                yield source


def _axis(node: Node, rank: int) -> int:
    return int(node.attrs.get("axis", -1)) % rank if node.op.endswith("Normalization") else rank - 1


class _Search:
    """One stream in the making, from a tensor that a norm reads; `reason`: why it cannot be rotated."""

    def __init__(self, graph: Graph, dependencies: DependencyGraph, source: str) -> None:
        self._graph, self._sizes = graph, dependencies.shapes
        self._written: Mapping[str, Layer] = {layer.output: layer for layer in dependencies.layers}
        self._layers: Mapping[str, Layer] = {layer.key: layer for layer in dependencies.layers}
        shape = self._sizes[source]
        self.stream = Stream(int(shape[-1] or 0))
        self.reason: str | None = None
        self._pending: list[str] = []
        self._visited, self._counted = set[str](), set[str]()
        self._outputs = {output.name for output in graph.outputs}
        self._order = {node.key: at for at, node in enumerate(graph.nodes)}
        self._reach(source, len(shape) - 1)

    @property
    def name(self) -> str:
        """After what writes it first: a table, or a layer."""
        graph, stream = self._graph, self.stream
        first = [(self._order[slot.key], graph.node(slot.key).inputs[slot.position]) for slot in stream.tables.values()]
        first += [(self._order[writer.layer.key], writer.layer.name) for writer in stream.writers.values()]
        return min(first)[1]

    def run(self) -> None:
        """Follow the stream as far as it goes."""
        while self._pending:
            tensor = self._pending.pop()
            self._up(tensor)
            if tensor in self._outputs:
                self.stream.ends[tensor] = End(tensor, None)
            for node in self._graph.consumers.get(tensor, ()):
                self._down(tensor, node)
        stream = self.stream
        if self.reason is None and len(stream.entries) > _ENTRIES:
            which = ", ".join(dict.fromkeys(stream.entries.values()))
            self._refuse(f"it is written by what is no layer, in {len(stream.entries)} places ({which})")
        stream.entries = {self._with_channels_last(name): text for name, text in stream.entries.items()}
        aside = [name for name in (*stream.entries, *stream.ends) if self._is_aside(name)]
        if aside:
            self._refuse(f"'{aside[0]}' has its channels on another axis than the last")
        kinds = {norm.centres for norm in stream.norms.values()}
        if len(kinds) > 1:
            self._refuse("some of its norms take the mean away and others do not")
        bare = [name for name, end in (stream.ends | stream.readers).items() if end.reading is None]
        if kinds == {True} and bare:
            self._refuse(f"'{bare[0]}' reads it without a norm, with the mean of its channels, which would go")

    def _with_channels_last(self, tensor: str) -> str:
        """A tensor, or what moves and factors alone make of it, where a matrix meets its channels."""
        name = tensor
        while self.stream.tensors[name] != len(self._sizes[name]) - 1:
            readers = self._graph.consumers.get(name, ())
            if len(readers) != 1 or readers[0].op not in ("Transpose", "Mul") or readers[0].key not in self._visited:
                return tensor
            name = readers[0].key
        return name

    def _is_aside(self, tensor: str) -> bool:
        """Whether a matrix that is put behind a tensor would not meet its channels."""
        rank, stream = len(self._sizes.get(tensor) or ()), self.stream
        is_both = tensor in stream.entries and tensor in self._outputs
        return is_both or stream.tensors.get(tensor, rank - 1) != rank - 1

    def _refuse(self, reason: str) -> None:
        self.reason = self.reason or reason

    def _reach(self, tensor: str, axis: int) -> None:
        stream = self.stream
        shape = self._sizes.get(tensor)
        if shape is None or not 0 <= axis < len(shape) or shape[axis] != stream.width:
            self._refuse(f"the shape of '{tensor}' is not known")
        elif stream.tensors.setdefault(tensor, axis) != axis:
            self._refuse(f"'{tensor}' has its channels on two axes")
        elif tensor not in self._visited:
            self._visited.add(tensor)
            self._pending.append(tensor)

    def _carry(self, node: Node, carried: Carriage) -> None:
        """Go on to all that a node carries."""
        stream = self.stream
        for position, axis in carried.inputs.items():
            self._reach(node.inputs[position], axis)
        for place, axis in carried.outputs.items():
            if node.outputs[place]:
                self._reach(node.outputs[place], axis)
        for position, from_end in carried.constants.items():
            stream.tables[node.key, position] = Slot(node.key, position, from_end)
        if node.op in ("Add", "Sum") and len(carried.inputs) > 1 and node.key not in self._counted:
            self._counted.add(node.key)
            stream.sums += 1
        note_sizes(self._graph, self._sizes, stream, node, carried)

    def _up(self, tensor: str) -> None:
        """What makes a tensor of the stream."""
        graph, stream = self._graph, self.stream
        layer, maker = self._written.get(tensor), graph.producers.get(tensor)
        if layer is not None and self._writes(layer, tensor):
            stream.writers[layer.name] = Writer(layer)
        elif maker is None:
            stream.entries[tensor] = f"input '{tensor}'"
        elif maker.op in SKIPS and maker.domain and tensor in maker.outputs[SUM:]:
            self._skip(maker)
        elif (carried := carriage(graph, self._sizes, maker, tensor, stream.tensors[tensor])) is not None:
            self._carry(maker, carried)
        elif (writer := self._scaled(maker, tensor)) is not None:
            stream.writers[writer.layer.name] = writer
        else:
            stream.entries[tensor] = f"{maker.op} '{maker.label}'"

    def _writes(self, layer: Layer, tensor: str) -> bool:
        """Whether a layer's outputs are the channels of the stream, in their order."""
        if layer.kind not in LINEAR or layer.linear.op.conv_groups > 1 or layer.width != self.stream.width:
            return False
        rank = len(self._sizes[tensor])
        axis = 1 if layer.kind == "Conv" else rank - (2 if getattr(layer.linear.op, "columns_out", False) else 1)
        if layer.room < 1:
            self._refuse(f"{layer.kind} '{layer.name}' is quantised: narrow the model before it is")
        return axis == self.stream.tensors[tensor]

    def _scaled(self, node: Node, tensor: str) -> Writer | None:
        """A layer whose output is multiplied by a stored number per channel before it is added."""
        if node.op != "Mul" or node.domain:
            return None
        for at in (0, 1):
            value, inner = self._graph.constant(node.inputs[at]), node.inputs[1 - at]
            layer = self._written.get(inner)
            if value is None or layer is None or value.size != self.stream.width or inner in self._outputs:
                continue
            alone = len(self._graph.consumers[inner]) == 1 and layer.width == self.stream.width
            if alone and layer.kind in ("MatMul", "Gemm") and value.shape[-1] == self.stream.width:
                return Writer(layer, stored_value(self._graph, node.inputs[at]).reshape(-1), node.key)
        return None

    def _down(self, tensor: str, node: Node) -> None:
        """What reads a tensor of the stream."""
        stream, axis = self.stream, self.stream.tensors[tensor]
        layer = self._layers.get(node.key)
        if tensor in node.captures:
            self._refuse(f"{node.op} '{node.label}' reads it in a branch")
        elif node.op in ("Shape", "Size") or any(node.key in norm.nodes for norm in stream.norms.values()):
            return
        elif layer is not None and layer.source == tensor:
            why = reads_channels(layer, axis, len(self._sizes[tensor]), stream.width, shifted=False)
            if why is None:
                stream.readers[layer.name] = Reader(layer, None)
            else:
                self._refuse(why)
        elif node.op in SKIPS and node.domain and tensor in node.inputs[:2]:
            self._skip(node)
        elif (carried := carriage(self._graph, self._sizes, node, tensor, axis)) is not None:
            self._carry(node, carried)
        else:
            self._norm(tensor, node)

    def _norm(self, tensor: str, node: Node) -> None:
        stream, rank = self.stream, len(self._sizes[tensor])
        norm = norm_reading(self._graph, node, tensor, stream.width)
        if isinstance(norm, Norm) and stream.tensors[tensor] == rank - 1 == _axis(node, rank):
            self._read(norm)
        elif isinstance(norm, str):
            self._refuse(norm)
        elif node.op != "Sub" or not self._is_centred(tensor):
            self._refuse(f"{node.op} '{node.label}' does not treat its channels alike")

    def _is_centred(self, tensor: str) -> bool:
        """Whether a norm takes the mean of a tensor away: its Sub comes with the ReduceMean that begins it."""
        norms = (norm_reading(self._graph, node, tensor, self.stream.width) for node in self._graph.consumers[tensor])
        return any(isinstance(norm, Norm) and norm.centres for norm in norms)

    def _skip(self, node: Node) -> None:
        """onnxruntime's norm of a sum: both operands and the sum are the stream."""
        norm, stream = skip_norm(self._graph, node, self.stream.width), self.stream
        if isinstance(norm, str):
            self._refuse(norm)
            return
        if norm.key in stream.norms:
            return
        stream.sums += 1
        names = [*node.inputs[:2], *(node.outputs[SUM:] if len(node.outputs) > SUM else ())]
        for name in filter(None, names):
            if self._graph.is_constant(name):
                self._refuse(f"{node.op} '{node.label}' adds a stored tensor")
            else:
                self._reach(name, len(self._sizes.get(name) or ()) - 1)
        bias = bias_of_skip(node)
        if bias is not None:
            stream.tables[node.key, bias] = Slot(node.key, bias)
        self._read(norm)

    def _read(self, norm: Norm) -> None:
        """All that reads the stream through a norm."""
        if norm.key in self.stream.norms:
            return
        self.stream.norms[norm.key] = norm
        walk = ReadingWalk(self._graph, self._sizes, self.stream, self._layers)
        one, none = np.ones(self.stream.width), np.zeros(self.stream.width)
        try:
            walk.run(norm.normed, one if norm.scale is None else norm.scale, none if norm.shift is None else norm.shift)
        except Refused as refused:
            self._refuse(str(refused))
