"""Weights that are quantised alone: what DequantizeLinear makes of constants is written as it was stored.

New values of such a weight get the old type, axis and blocks (`numerics.quantization`), so that they never take more
room than before; what that cannot hold shows as an error of the model. Channels that are only taken out are exact.
Between DequantizeLinear and the reader may stand what only rearranges, or casts. Weights that are stored in half
precision and cast to float32 go the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import ml_dtypes
import numpy as np

from pcns_onnx.graph.protobuf import Array, Node
from pcns_onnx.numerics.quantization import Quantized, Takes


class Constants(Protocol):
    """What is asked of a graph here: its nodes, and which tensors are constants."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes."""

    @property
    def producers(self) -> Mapping[str, Node]:
        """Tensor name -> the node that makes it."""

    @property
    def derived(self) -> frozenset[str]:
        """Constants that nodes make of constants."""

    def constant(self, name: str) -> Array | None:
        """The value of a constant."""


class Editable(Constants, Protocol):
    """A graph whose constants can be replaced."""

    def node(self, key: str) -> Node:
        """The node whose first output is `key`."""

    def set_input(self, key: str, position: int, value: Array, like: str = "") -> None:
        """Make an input a constant."""

    def own_maker(self, key: str, position: int, stem: str = "shape") -> Node:
        """The node that makes an input, copied if anything else reads what it makes."""

    def make_constant(self, key: str, like: str, value: Array) -> None:
        """Replace a node by what it makes."""


_REARRANGING = ("Identity", "Transpose", "Squeeze", "Unsqueeze", "Cast")
_HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
_MANY = 1024
"""Elements; fewer integers that become floats are sizes, not weights."""

_QUANTISED: dict[tuple[str, str], tuple[int, ...]] = {
    **dict.fromkeys((("", "QLinearConv"), ("", "QLinearMatMul")), (3,)),
    **dict.fromkeys((("", "ConvInteger"), ("", "MatMulInteger")), (1,)),
    **dict.fromkeys((("com.microsoft", "MatMulNBits"), ("com.microsoft", "MatMulBnb4")), (1,)),
    ("com.microsoft", "DynamicQuantizeMatMul"): (1,),
    ("com.microsoft", "MatMulIntegerToFloat"): (1,),
    ("com.microsoft", "QGemm"): (3,),
    ("com.microsoft", "DynamicQuantizeLSTM"): (1, 2),
}  # fmt: skip
"""Operators that read weights as integers, and the positions of these."""


# -- reading -----------------------------------------------------------------------------------


def dequantized(node: Node, values: Sequence[Array]) -> Quantized:
    """What a DequantizeLinear is given, by the values of its inputs."""
    q, scale, *zero = values
    axis = int(node.attrs.get("axis", 1))
    block = int(node.attrs.get("block_size", 0)) if scale.ndim else 0
    return Quantized(q, scale, zero[0] if zero else None, axis % max(q.ndim, 1), block)


def chain_to(graph: Constants, name: str) -> list[Node] | None:
    """The nodes that make a constant of one that is stored in fewer bits, that one's reader first.

    None where there is no such constant, or something between does more than rearrange.
    """
    chain: list[Node] = []
    while name in graph.derived:
        node = graph.producers[name]
        if node.op not in (*_REARRANGING, "DequantizeLinear"):
            return None
        chain.insert(0, node)
        name = node.inputs[0]
        if node.op == "DequantizeLinear":
            return chain
    while chain and chain[0].op != "Cast":
        del chain[0]
    stored = graph.constant(chain[0].inputs[0]) if chain else None
    return chain if stored is not None and stored.dtype in _HALVES else None


def is_quantized(graph: Constants, name: str) -> bool:
    """Whether a constant is what a DequantizeLinear makes, perhaps rearranged."""
    chain = chain_to(graph, name)
    return chain is not None and chain[0].op == "DequantizeLinear"


def bits_of(graph: Constants, name: str) -> float | None:
    """Bits that each value of a constant takes, its share of scales included; None where it is stored as it is."""
    chain = chain_to(graph, name)
    if chain is None:
        return None
    values = [graph.constant(source) for source in chain[0].inputs if source]
    if chain[0].op == "Cast":
        return 16.0
    old = dequantized(chain[0], [value for value in values if value is not None])
    return old.bits + 8 * old.scale.nbytes / max(old.q.size, 1)


def can_be_written(graph: Constants, name: str) -> bool:
    """Whether new values of a constant take no more room: not where it is computed from integers in another way."""
    return chain_to(graph, name) is not None or not any(_from_integers(graph, name))


def _from_integers(graph: Constants, name: str) -> Iterator[bool]:
    """For each node that a constant is made by, whether that makes floats of many integers."""
    pending, visited = [name], set[str]()
    while pending:
        source = pending.pop()
        if source not in graph.derived or source in visited:
            continue
        visited.add(source)
        node = graph.producers[source]
        value = graph.constant(node.inputs[0]) if node.op in ("Cast", "CastLike", "DequantizeLinear") else None
        yield value is not None and value.size > _MANY and value.dtype.kind not in "fO" and _is_small(value)
        pending += node.inputs


def _is_small(value: Array) -> bool:
    return value.dtype.itemsize < 4 and value.dtype not in _HALVES


def parameters_of(graph: Constants, sizes: Mapping[str, int]) -> tuple[dict[str, int], set[str]]:
    """How many weights each stored tensor holds that nodes read as integers, and the scales and zero points of these.

    `sizes`: elements of all stored tensors.
    """
    counts, beside = dict[str, int](), set[str]()
    for node in graph.nodes:
        if node.op == "DequantizeLinear":
            source = _root(graph, node.inputs[0])
            if source in sizes:
                counts[source] = sizes[source]
                beside.update(node.inputs[1:])
        for position in _QUANTISED.get((node.domain, node.op), ()):
            source = _root(graph, node.inputs[position]) if position < len(node.inputs) else ""
            if source in sizes:
                packed = int(node.attrs.get("K", 0)) * int(node.attrs.get("N", 0))
                counts[source] = packed or sizes[source]
                beside.update(node.inputs[2:4] if packed else ())
    return counts, beside - counts.keys()


def parameters_of_node(graph: Constants, node: Node) -> int:
    """How many weights a node reads, however they are stored."""
    sizes = {name: value.size for name in node.inputs if (value := graph.constant(name)) is not None}
    for name in node.inputs:
        maker = graph.producers.get(name)
        stored = graph.constant(maker.inputs[0]) if maker is not None and maker.op == "DequantizeLinear" else None
        if stored is not None:
            sizes[name] = stored.size
    for position in _QUANTISED.get((node.domain, node.op), ())[:1]:
        packed = int(node.attrs.get("K", 0)) * int(node.attrs.get("N", 0))
        if packed:
            for name in node.inputs[1:5]:  # the matrix, scales, zero points, an order
                sizes.pop(name, None)
            sizes[node.inputs[position]] = packed
    return sum(sizes.values())


def _root(graph: Constants, name: str) -> str:
    """The stored tensor that is only rearranged to make this one."""
    while (node := graph.producers.get(name)) is not None and node.op in (*_REARRANGING, "Reshape"):
        name = node.inputs[0]
    return name


# -- writing -----------------------------------------------------------------------------------


def set_quantized(graph: Editable, key: str, position: int, value: Array) -> bool:
    """Give input `position` of a node new values in the form that it is stored in; False where that is a plain one."""
    chain = chain_to(graph, graph.node(key).inputs[position])
    if chain is None:
        return False
    first = _own_chain(graph, key, position, chain)
    for node in reversed(chain[1:]):
        value = _undone(graph, node, value)
    if first.op == "Cast":
        graph.set_input(first.key, 0, value)
    else:
        _store(graph, first, _at(graph, first).like(value))
    return True


def take_input(graph: Editable, key: str, position: int, takes: Takes) -> None:
    """Leave a constant input some places along its axes: exact, in the form that it is stored in."""
    name = graph.node(key).inputs[position]
    chain, whole = chain_to(graph, name), graph.constant(name)
    assert whole is not None, "rules state facts about constants only"
    if chain is not None and chain[0].op == "DequantizeLinear":
        axes = list(range(whole.ndim))
        for node in reversed(chain[1:]):
            axes = _axes_before(graph, node, axes)
        old = _at(graph, chain[0])
        taken = old.take([(axes.index(axis), index) for axis, index in takes])
        if taken is not None:
            _store(graph, _own_chain(graph, key, position, chain), taken)
            return
    value = whole
    for axis, index in takes:
        value = np.take(value, index, axis=axis)
    graph.set_input(key, position, value)


def unpack_input(graph: Editable, key: str, position: int) -> None:
    """Store a constant input as plain values, where it is stored in fewer bits."""
    name = graph.node(key).inputs[position]
    value = graph.constant(name) if chain_to(graph, name) is not None else None
    if value is not None:
        graph.make_constant(name, "", value)


def _at(graph: Constants, node: Node) -> Quantized:
    values = (graph.constant(name) for name in node.inputs if name)
    return dequantized(node, [value for value in values if value is not None])


def _own_chain(graph: Editable, key: str, position: int, chain: Sequence[Node]) -> Node:
    """The first node of a chain, after all that something else reads, too, was copied."""
    node = graph.node(key)
    for _ in chain:
        node = graph.own_maker(node.key, position, "weight")
        position = 0
    return node


def _store(graph: Editable, node: Node, weight: Quantized) -> None:
    """Let a DequantizeLinear read this."""
    graph.set_input(node.key, 1, weight.scale)
    if weight.zero is not None:
        graph.set_input(node.key, 2, weight.zero, like=node.inputs[0])
    graph.set_input(node.key, 0, weight.q)


def _undone(graph: Constants, node: Node, value: Array) -> Array:
    """What a rearranging node was given, from what it made."""
    if node.op == "Transpose":
        perm = node.attrs.get("perm", list(range(value.ndim))[::-1])
        return np.transpose(value, np.argsort(perm))
    if node.op == "Unsqueeze":
        return np.squeeze(value, axis=tuple(axis % value.ndim for axis in _axes(graph, node)))
    if node.op == "Squeeze":
        return np.expand_dims(value, _squeezed(graph, node))
    return value


def _axes_before(graph: Constants, node: Node, axes: list[int]) -> list[int]:
    """Which axis of the reader's each axis of a node's input is; -1 for those that it takes away."""
    if node.op == "Transpose":
        perm = node.attrs.get("perm", list(range(len(axes)))[::-1])
        return [axes[place] for place in np.argsort(perm)]
    if node.op == "Unsqueeze":
        gone = {axis % len(axes) for axis in _axes(graph, node)}
        return [axis for place, axis in enumerate(axes) if place not in gone]
    if node.op == "Squeeze":
        for place in _squeezed(graph, node):
            axes.insert(place, -1)
    return axes


def _axes(graph: Constants, node: Node) -> list[int]:
    stored = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return [int(axis) for axis in (node.attrs.get("axes", ()) if stored is None else stored.reshape(-1))]


def _squeezed(graph: Constants, node: Node) -> tuple[int, ...]:
    """The axes that a Squeeze takes away, ascending."""
    shape = graph.constant(node.inputs[0])
    assert shape is not None, "a chain is made of constants"
    axes = _axes(graph, node) or [axis for axis, size in enumerate(shape.shape) if size == 1]
    return tuple(sorted(axis % shape.ndim for axis in axes))
