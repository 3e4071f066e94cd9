"""A table that is read as the head, too: kept as one, where one basis serves both.

    logits = E (g n + b),    table T = E Q,    head: T M n' sqrt(D / d),    M = (T'T)^-1 T'E diag(g) Q

Behind a norm whose scale g is one number M is that number; else it is a d x d matrix in front of the head, the least
squares answer, and exact where nothing is cut away. Behind a norm that takes the mean away the table's rows would have
to be centred, and the head reads them as they were: such a head gets a table of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.dependency.streams.stream import Reader, Slot, Stream
from pcns_onnx.graph import Graph, Node
from pcns_onnx.graph.queries import stored_root, stored_value

Matrix = NDArray[np.float64]
_ALIKE = 1e-6


@dataclass(frozen=True)
class TiedHead:
    """A reader whose weight is the table of `slot`; `holds`: whether one basis serves both."""

    reader: Reader
    slot: Slot
    root: str
    holds: bool


def tied_heads(graph: Graph, stream: Stream) -> list[TiedHead]:
    """The heads of a stream that are its tables."""
    roots = {stored_root(graph, graph.node(s.key).inputs[s.position]): s for s in stream.tables.values()}
    heads = list[TiedHead]()
    for reader in stream.readers.values():
        layer = reader.layer
        root = stored_root(graph, graph.node(layer.key).inputs[layer.linear.weight])
        if root in roots and root not in graph.derived:
            heads.append(TiedHead(reader, roots[root], root, _holds(graph, stream, reader, root)))
    return heads


def _holds(graph: Graph, stream: Stream, reader: Reader, root: str) -> bool:
    table = stored_value(graph, root)
    way = _way_to(graph, reader, root)
    if table.ndim != 2 or table.shape[1] != stream.width or way is None or reader.reading is None:
        return False
    means = table.mean(axis=1)
    is_centred = not stream.centres or float(np.abs(means).max()) <= _ALIKE * float(np.abs(table).max())
    return is_centred or _is_one_number(reader.reading.scale)


def _is_one_number(scale: Matrix) -> bool:
    return float(np.ptp(scale)) <= _ALIKE * float(np.abs(scale).max())


def _way_to(graph: Graph, reader: Reader, root: str) -> tuple[str, int] | None:
    """The input that reads the stored table: the layer's own, or that of the Transpose in front of it."""
    key, position = reader.layer.key, reader.layer.linear.weight
    name = graph.node(key).inputs[position]
    if name == root:
        return key, position
    maker = graph.producers.get(name)
    is_plain = maker is not None and maker.op == "Transpose" and maker.inputs[0] == root
    return (maker.key, 0) if is_plain and maker is not None and len(graph.consumers[name]) == 1 else None


def read_narrowed_table(graph: Graph, tie: TiedHead, before: Graph, writes: Matrix, reads: Matrix) -> Matrix:
    """Let a head read the narrowed table of its stream, in place, from its own side of M; gives what E adds to its
    bias. `writes`, `reads` (D, d) are the bases that tables and readers are put in."""
    reading = tie.reader.reading
    assert reading is not None, "it holds"
    table, layer = stored_value(before, tie.root), tie.reader.layer
    head = graph.node(layer.key)
    source = list(head.inputs)[layer.linear.source]
    key, position = _way_to(graph, tie.reader, tie.root) or ("", 0)
    graph.read_same(key, position, graph.node(tie.slot.key).inputs[tie.slot.position])
    name = f"{layer.name}.basis"
    inner = graph.fresh_name(name)
    if _is_one_number(reading.scale):
        factor = float(reading.scale.mean()) * float(np.linalg.norm(reads[:, 0]))
        if factor != 1.0:
            stored = graph.store(
                f"{name}.factor", np.asarray(factor), graph.node(layer.key).inputs[layer.linear.weight]
            )
            _put_before(graph, layer.key, source, Node(inner, "Mul", "", name, (source, stored), (inner,), {}))
    else:
        gram = table.T @ table
        left = writes.T @ gram @ writes
        right = writes.T @ gram @ (reading.scale[:, None] * reads)
        matrix = np.linalg.lstsq(left, right, rcond=1e-12)[0]
        stored = graph.store(f"{name}.weight", matrix.T, graph.node(layer.key).inputs[layer.linear.weight])
        _put_before(graph, layer.key, source, Node(inner, "MatMul", "", name, (source, stored), (inner,), {}))
    return np.asarray(table @ reading.shift, dtype=np.float64)


def _put_before(graph: Graph, key: str, source: str, node: Node) -> None:
    """Let node `key` read what `node` makes of `source`."""
    reader = graph.node(key)
    inputs = tuple(node.key if name == source else name for name in reader.inputs)
    graph.replace(key, [node, Node(key, reader.op, reader.domain, reader.name, inputs, reader.outputs, reader.attrs)])
