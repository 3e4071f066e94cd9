"""Norms over the channels of a stream, in one operator or in pieces, as exporters write them.

    LayerNormalization   y = g (x - mean x) / sqrt(mean (x - mean x)² + e) + b
    RMSNormalization     y = g x / sqrt(mean x² + e)

In pieces these are x (or x - mean x) divided by Sqrt(Add(ReduceMean(its square), e)), or multiplied by the Reciprocal
of that; the scale and the shift behind it are nodes like any others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.graph import Graph, Node
from pcns_onnx.graph.queries import stored_value

Vector = NDArray[np.float64]
SKIPS = {"SkipLayerNormalization": True, "SkipSimplifiedLayerNormalization": False}
"""onnxruntime's norms of a sum, and whether they centre it."""
_WHOLE = {"LayerNormalization": True, "RMSNormalization": False, "SimplifiedLayerNormalization": False}
SUM = 3
"""The output of a norm of a sum that is the sum."""


@dataclass(frozen=True)
class Norm:
    """A norm that tensor `source` is read through; `normed` is what it makes, `g normed + b` if it has these inside.

    `nodes` are the keys of all nodes that read `source`. In pieces `inner` is the tensor whose squares are taken (x
    less its mean where it `centres`), and the epsilon is input `epsilon` (key, position), None where there is none; of
    one operator it is an attribute.
    """

    kind: Literal["whole", "skip", "pieces"]
    key: str
    source: str
    normed: str
    centres: bool
    nodes: frozenset[str]
    label: str
    scale: Vector | None = None
    shift: Vector | None = None
    inner: str = ""
    epsilon: tuple[str, int] | None = None


def norm_reading(graph: Graph, node: Node, source: str, width: int) -> Norm | str | None:
    """The norm that `node` is, or begins, where it reads `source`; why it is none that is understood; None: no norm."""
    if node.op in _WHOLE and node.domain in ("", "com.microsoft"):
        return _whole(graph, node, source, width)
    if node.op == "ReduceMean" and _over_last(graph, node):
        return _centred(graph, node, source) or f"{node.op} '{node.label}' mixes its channels"
    if _is_square(graph, node, source):
        return _pieces(graph, node, source, source) or f"{node.op} '{node.label}' takes squares of its channels"
    return None


def _vector(graph: Graph, node: Node, position: int, width: int) -> Vector | None:
    """A stored input as (width,); None where it is absent."""
    if position >= len(node.inputs) or not node.inputs[position]:
        return None
    value = stored_value(graph, node.inputs[position]).reshape(-1)
    return np.broadcast_to(value, (width,)) if value.size == 1 else value


def _is_stored(graph: Graph, node: Node, positions: tuple[int, ...], width: int) -> bool:
    """Whether these inputs are absent or stored, with a number per channel or one for all."""
    names = [node.inputs[at] for at in positions if at < len(node.inputs) and node.inputs[at]]
    values = [graph.constant(name) for name in names]
    return all(value is not None and value.size in (1, width) for value in values)


def _whole(graph: Graph, node: Node, source: str, width: int) -> Norm | str:
    name = f"{node.op} '{node.label}'"
    if any(node.outputs[1:]) or list(node.inputs).count(source) > 1 or node.inputs[0] != source:
        return f"{name} gives its statistics away"
    if not _is_stored(graph, node, (1, 2), width):
        return f"{name} has a computed scale"
    scale, shift = _vector(graph, node, 1, width), _vector(graph, node, 2, width)
    return Norm(
        "whole", node.key, source, node.outputs[0], _WHOLE[node.op], frozenset({node.key}), node.label, scale, shift
    )


def skip_norm(graph: Graph, node: Node, width: int) -> Norm | str:
    """onnxruntime's norm of a sum as the norm that it has inside."""
    centres = SKIPS[node.op]
    name = f"{node.op} '{node.label}'"
    if any(node.outputs[1:SUM]):
        return f"{name} gives its statistics away"
    stored = (2, 3, 4) if centres else (2, 3)
    if not _is_stored(graph, node, stored, width):
        return f"{name} has a computed scale"
    shift = _vector(graph, node, 3, width) if centres else None
    scale = _vector(graph, node, 2, width)
    return Norm("skip", node.key, "", node.outputs[0], centres, frozenset({node.key}), node.label, scale, shift)


def bias_of_skip(node: Node) -> int | None:
    """The input that a norm of a sum adds to it, if there is one."""
    position = 4 if SKIPS[node.op] else 3
    return position if position < len(node.inputs) and node.inputs[position] else None


def _over_last(graph: Graph, node: Node) -> bool:
    """Whether a ReduceMean keeps its axes and takes the last one: the channels of a stream."""
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1]:
        value = graph.constant(node.inputs[1])
        axes = None if value is None else value.reshape(-1).tolist()
    is_last = axes is not None and len(axes) == 1 and (axes[0] == -1 or axes[0] == _rank(graph, node) - 1)
    return is_last and bool(node.attrs.get("keepdims", 1))


def _rank(graph: Graph, node: Node) -> int:
    kind = graph.types.get(node.inputs[0])
    return 0 if kind is None else len(kind.tensor_type.shape.dim)


def _is_number(graph: Graph, name: str, number: float) -> bool:
    value = graph.constant(name)
    return value is not None and value.size == 1 and float(value.reshape(-1)[0]) == number


def _is_square(graph: Graph, node: Node, source: str) -> bool:
    if node.domain or node.op not in ("Mul", "Pow"):
        return False
    if node.op == "Mul":
        return list(node.inputs) == [source, source]
    return node.inputs[0] == source and _is_number(graph, node.inputs[1], 2.0)


def _only(graph: Graph, name: str, *ops: str) -> Node | None:
    """The one node that reads a tensor, if it is of these operators and the tensor no output."""
    readers = graph.consumers.get(name, ())
    is_alone = len(readers) == 1 and readers[0].op in ops and not readers[0].domain
    return readers[0] if is_alone and all(o.name != name for o in graph.outputs) else None


def _centred(graph: Graph, mean: Node, source: str) -> Norm | None:
    """x - mean x, of which a norm takes the squares."""
    less = _only(graph, mean.outputs[0], "Sub")
    if less is None or list(less.inputs) != [source, mean.outputs[0]]:
        return None
    inner = less.outputs[0]
    squares = [node for node in graph.consumers.get(inner, ()) if _is_square(graph, node, inner)]
    norm = _pieces(graph, squares[0], inner, inner) if len(squares) == 1 else None
    if norm is None or {node.key for node in graph.consumers[inner]} != norm.nodes:
        return None
    nodes = frozenset({mean.key, less.key})
    return Norm("pieces", norm.key, source, norm.normed, True, nodes, norm.label, inner=inner, epsilon=norm.epsilon)


def _pieces(graph: Graph, square: Node, source: str, inner: str) -> Norm | None:
    """source / sqrt(mean source² + e), from the node that takes the squares."""
    mean = _only(graph, square.outputs[0], "ReduceMean")
    if mean is None or not _over_last(graph, mean):
        return None
    node, epsilon = _only(graph, mean.outputs[0], "Add", "Sqrt", "Pow"), None
    if node is not None and node.op == "Add":
        place = 1 - list(node.inputs).index(mean.outputs[0])
        value = graph.constant(node.inputs[place])
        if value is None or value.size != 1:
            return None
        epsilon, node = (node.key, place), _only(graph, node.outputs[0], "Sqrt", "Pow")
    if node is None:
        return None
    last = _divided(graph, node, source)
    if last is None:
        return None
    nodes = frozenset({square.key, last.key})
    label = last.label
    return Norm("pieces", last.key, source, last.outputs[0], False, nodes, label, inner=inner, epsilon=epsilon)


def _divided(graph: Graph, root: Node, source: str) -> Node | None:
    """The node that divides `source` by the root that `root` takes, or multiplies it by the inverse."""
    if root.op == "Pow" and _is_number(graph, root.inputs[1], -0.5):
        return _times(graph, root.outputs[0], source)
    if root.op == "Pow" and not _is_number(graph, root.inputs[1], 0.5):
        return None
    behind = _only(graph, root.outputs[0], "Div", "Reciprocal")
    if behind is None:
        return None
    if behind.op == "Div" and behind.inputs[0] == source:
        return behind
    is_inverse = behind.op == "Reciprocal" or _is_number(graph, behind.inputs[0], 1.0)
    return _times(graph, behind.outputs[0], source) if is_inverse else None


def _times(graph: Graph, inverse: str, source: str) -> Node | None:
    product = _only(graph, inverse, "Mul")
    return product if product is not None and set(product.inputs) == {inverse, source} else None


def unread(graph: Graph, norm: Norm) -> Iterator[Node]:
    """The nodes that read a norm's input and are no part of it."""
    return (node for node in graph.consumers.get(norm.source, ()) if node.key not in norm.nodes)
