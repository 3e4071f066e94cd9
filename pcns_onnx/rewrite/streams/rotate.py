"""A residual stream put into another basis and cut to its first channels (Ashkboos et al. 2024, SliceGPT).

With Q (D, d) of orthonormal columns, C = 1 - 11'/D where the norms take the mean away (else the identity), and a norm
y = g n + b of the stream:

    writers  W := Q'C W,  c := Q'C c,  tables T := T C Q      readers  V := V diag(g) Q sqrt(D/d),  c := c + V b

All D channels kept, the model computes what it did: |Q'x| = |x|, and the readers turn back what they see.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.dependency.layers import Layer
from pcns_onnx.dependency.streams.stream import End, Reading, Stream
from pcns_onnx.graph import Graph, Node
from pcns_onnx.graph.queries import stored_value
from pcns_onnx.rewrite.layer_weights import set_layer, stored_bias, stored_weight
from pcns_onnx.rewrite.patch import edit
from pcns_onnx.rewrite.streams.norms import narrow_norm
from pcns_onnx.rewrite.streams.tied import read_narrowed_table, tied_heads

Matrix = NDArray[np.float64]


def rotate_stream(graph: Graph, stream: Stream, basis: Matrix) -> Graph:
    """A copy of `graph` whose `stream` is in this basis (D, d), with d channels."""
    result, kept = graph.copy(), basis.shape[1]
    writes = basis - basis.mean(axis=0) if stream.centres else basis
    reads = basis * (stream.width / kept) ** 0.5
    tied = {tie.reader.layer.name: tie for tie in tied_heads(graph, stream) if tie.holds}
    for layer in _layers(stream):
        if layer.name not in tied:
            matrix, bias = _in_basis(graph, stream, layer, writes, reads)
            edit(result, set_layer(result, layer, matrix, bias))
    for slot in stream.tables.values():
        value = stored_value(graph, graph.node(slot.key).inputs[slot.position])
        result.set_input(slot.key, slot.position, _table(value, slot.from_end, writes))
    for name, tie in tied.items():
        more = read_narrowed_table(result, tie, graph, writes, reads)
        if more.any():
            layer = stream.readers[name].layer
            bias = stored_bias(graph, layer) + more
            result.set_input(layer.bias.key, layer.bias.position, bias)
    for writer in stream.writers.values():
        if writer.scaling:
            result.drop_into_reader(writer.scaling, list(result.node(writer.scaling).inputs).index(writer.layer.output))
    for norm in stream.norms.values():
        narrow_norm(result, norm, stream.width, kept)
    _without_constants(result, stream, kept)
    for (key, position), element in stream.numbers.items():
        result.set_numbers(key, position, {element: kept})
    for tensor in stream.entries:
        _enter(result, tensor, writes)
    for end in stream.ends.values():
        _leave(result, stream, end, basis, reads)
    result.prune(graph)
    return result


def _layers(stream: Stream) -> Iterator[Layer]:
    """All layers that write or read it, once."""
    layers = [writer.layer for writer in stream.writers.values()]
    layers += [reader.layer for reader in stream.readers.values()]
    yield from {layer.name: layer for layer in layers}.values()


def _in_basis(graph: Graph, stream: Stream, layer: Layer, writes: Matrix, reads: Matrix) -> tuple[Matrix, Matrix]:
    """V and c of a layer whose inputs, outputs or both are in the basis."""
    matrix, bias = layer.linear.op.matrix(stored_weight(graph, layer)), stored_bias(graph, layer)
    reader, writer = stream.readers.get(layer.name), stream.writers.get(layer.name)
    if reader is not None:
        taps = matrix.reshape(len(matrix), -1, stream.width)
        if reader.reading is None:
            taps = taps @ (reads * (reads.shape[1] / stream.width) ** 0.5)
        else:
            bias = bias + taps.sum(axis=1) @ reader.reading.shift
            taps = (taps * reader.reading.scale) @ reads
        matrix = taps.reshape(len(matrix), -1)
    if writer is not None:
        scale = np.ones(stream.width) if writer.scale is None else writer.scale
        matrix, bias = writes.T @ (scale[:, None] * matrix), writes.T @ (scale * bias)
    return matrix, bias


def _table(value: Matrix, from_end: int, writes: Matrix) -> Matrix:
    """Stored vectors in the basis; one number for all channels is a vector, too."""
    value = value.reshape((1,) * (from_end - value.ndim) + value.shape)
    axis = value.ndim - from_end
    vectors = np.moveaxis(value, axis, -1)
    vectors = np.broadcast_to(vectors, (*vectors.shape[:-1], len(writes)))
    return np.asarray(np.moveaxis(vectors @ writes, -1, axis), dtype=np.float64)


def _without_constants(graph: Graph, stream: Stream, kept: int) -> None:
    """Scales behind norms become ones (onnxruntime fuses a norm with its scale), shifts go."""
    outputs = {output.name for output in graph.outputs}
    for key, position in stream.scalings.items():
        value = stored_value(graph, graph.node(key).inputs[position])
        axis = int(np.argmax(value.shape))
        graph.set_input(key, position, np.ones([kept if at == axis else 1 for at in range(value.ndim)]))
    for key, position in stream.shifts.items():
        if key in outputs:
            node = graph.node(key)
            graph.replace(key, [Node(key, "Identity", "", node.name, (node.inputs[1 - position],), (key,), {})])
        else:
            graph.drop_into_reader(key, 1 - position)


def _enter(graph: Graph, tensor: str, writes: Matrix) -> None:
    """Put the basis behind a tensor that no layer writes."""
    readers, inner = graph.consumers[tensor], graph.fresh_name(f"{tensor}.basis")
    stored = graph.store(f"{tensor}.basis.weight", writes, "")
    product = Node(inner, "MatMul", "", inner, (tensor, stored), (inner,), {})
    places = [(node.key, at) for node in readers for at, name in enumerate(node.inputs) if name == tensor]
    graph.replace(readers[0].key, [product, readers[0]])
    for key, position in places:
        graph.read_same(key, position, inner)


def _leave(graph: Graph, stream: Stream, end: End, basis: Matrix, reads: Matrix) -> None:
    """Turn back what an output of the model shows."""
    reading = end.reading or Reading(np.ones(stream.width), np.zeros(stream.width))
    back = (basis if end.reading is None else reads).T * reading.scale
    readers = [(n.key, at) for n in graph.consumers.get(end.tensor, ()) for at, x in enumerate(n.inputs)
               if x == end.tensor]  # fmt: skip
    inner = graph.append(end.tensor, "MatMul", back, ("", ".basis"))
    for key, position in readers:
        graph.read_same(key, position, inner)
    if reading.shift.any():
        graph.append(end.tensor, "Add", reading.shift, ("", ".shift"))
