"""What stands between a norm and its readers, and whether these are linear.

A stored number per channel that is multiplied or added goes into the readers: W (g n + b) = (W diag g) n + W b.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pcns_onnx.dependency.layers import Layer
from pcns_onnx.dependency.streams.carriage import Carriage, Sizes, carriage, literal, sizes_in_shape
from pcns_onnx.dependency.streams.norms import SKIPS
from pcns_onnx.dependency.streams.stream import End, Reader, Reading, Stream, Vector
from pcns_onnx.graph import Graph, Node
from pcns_onnx.graph.queries import stored_value

LINEAR = ("MatMul", "Gemm", "Conv", "FusedMatMul")

POST_NORM = "its norms stand behind the sums (post-norm): every block would need one more matrix to read another basis"


class Refused(Exception):
    """Why a stream stays as wide as it is."""


def reads_channels(layer: Layer, axis: int, rank: int, width: int, *, shifted: bool) -> str | None:
    """Why a layer does not read all channels of a stream by one matrix; None if it does."""
    op, name = layer.linear.op, f"{layer.kind} '{layer.name}'"
    if layer.kind not in LINEAR or layer.cell is not None or op.conv_groups > 1 or op.axis % rank != axis:
        return f"{name} does not read its channels by one matrix"
    if len(layer.linear.reads) != width:
        return f"{name} reads some of its channels only"
    if layer.room < 1:
        return f"{name} is quantised: narrow the model before it is"
    if shifted and op.padded:
        return f"{name} reads zeros around what a norm makes"
    return None


def note_sizes(graph: Graph, sizes: Sizes, stream: Stream, node: Node, carried: Carriage) -> None:
    """Remember where a node's sizes name the width of the stream."""
    place = sizes_in_shape(node, sizes, carried)
    if place is not None and literal(graph, sizes, node.inputs[place[0]], place[1]) == stream.width:
        stream.numbers[node.key, place[0]] = place[1]


class ReadingWalk:
    """From a norm to all that reads it."""

    def __init__(self, graph: Graph, sizes: Sizes, stream: Stream, layers: Mapping[str, Layer]) -> None:
        self._graph, self._sizes, self._stream, self._layers = graph, sizes, stream, layers
        self._outputs = {output.name for output in graph.outputs}

    def run(self, tensor: str, scale: Vector, shift: Vector) -> None:
        """Follow what the norm makes; raises `Refused`."""
        shape = self._sizes.get(tensor)
        if shape is None:
            raise Refused(f"the shape of '{tensor}' is not known")
        self._follow(tensor, len(shape) - 1, Reading(scale, shift))

    def _follow(self, tensor: str, axis: int, reading: Reading) -> None:
        if tensor in self._outputs:
            self._stream.ends[tensor] = End(tensor, reading)
        for node in self._graph.consumers.get(tensor, ()):
            if tensor in node.captures:
                raise Refused(f"{node.op} '{node.label}' reads it in a branch")
            if node.op not in ("Shape", "Size"):
                self._visit(tensor, axis, reading, node)

    def _visit(self, tensor: str, axis: int, reading: Reading, node: Node) -> None:
        layer, stream, rank = self._layers.get(node.key), self._stream, len(self._sizes[tensor])
        if layer is not None and layer.source == tensor:
            why = reads_channels(layer, axis, rank, stream.width, shifted=bool(reading.shift.any()))
            if why is not None:
                raise Refused(why)
            stream.readers[layer.name] = Reader(layer, reading)
            return
        place = self._vector(node, tensor, rank - axis)
        if place is not None:
            value = stored_value(self._graph, node.inputs[place]).reshape(-1)
            if node.op == "Mul":
                stream.scalings[node.key] = place
                reading = Reading(reading.scale * value, reading.shift * value)
            else:
                stream.shifts[node.key] = place
                reading = Reading(reading.scale, reading.shift + value)
            self._follow(node.outputs[0], axis, reading)
            return
        carried = carriage(self._graph, self._sizes, node, tensor, axis)
        if node.op in SKIPS or (node.op in ("Add", "Sum") and carried is not None and len(carried.inputs) > 1):
            raise Refused(POST_NORM)
        if carried is None:
            raise Refused(f"{node.op} '{node.label}' does not treat its channels alike behind a norm")
        if len(carried.inputs) > 1 or carried.constants:
            raise Refused(f"{node.op} '{node.label}' puts what a norm makes together with something else")
        if carried.shifts and reading.shift.any():
            raise Refused(f"{node.op} '{node.label}' stands behind the shift of a norm")
        note_sizes(self._graph, self._sizes, stream, node, carried)
        reading = Reading(reading.scale, reading.shift * self._factor(node))
        for at, out in carried.outputs.items():
            if node.outputs[at]:
                self._follow(node.outputs[at], out, reading)

    def _vector(self, node: Node, tensor: str, from_end: int) -> int | None:
        """The input at which a Mul or an Add has a stored number per channel."""
        if node.domain or node.op not in ("Mul", "Add") or list(node.inputs).count(tensor) != 1:
            return None
        place = 1 - list(node.inputs).index(tensor)
        value = self._graph.constant(node.inputs[place])
        if value is None or value.size != self._stream.width or value.ndim < from_end:
            return None
        is_vector = value.shape[-from_end] == value.size and value.ndim <= len(self._sizes[tensor])
        return place if is_vector and value.size > 1 else None

    def _factor(self, node: Node) -> float:
        """What a node multiplies all channels by, where that is stored."""
        if node.op not in ("Mul", "Div"):
            return 1.0
        values = [self._graph.constant(name) for name in node.inputs]
        numbers = [float(np.asarray(value).reshape(-1)[0]) for value in values if value is not None and value.size == 1]
        number = numbers[0] if numbers else 1.0
        return number if node.op == "Mul" else 1.0 / number
