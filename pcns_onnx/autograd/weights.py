"""Which stored numbers of a graph train, what they are called in Python, and how they go back.

A weight trains where a gradient of some output can reach it: not behind an ArgMax or a comparison.
Of layers every weight does; elsewhere a constant of more than one number does unless it is a mask
or a filler.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from pcns_onnx.autograd.operators.elementwise import TYPES
from pcns_onnx.autograd.operators.operator import Operator
from pcns_onnx.autograd.operators.registry import OPERATORS
from pcns_onnx.data.conform import is_floating
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Array, Graph, Node
from pcns_onnx.graph.protobuf import constant_tensor

MASK = 1e4
"""A constant outside layers that has such a number in it hides positions from a Softmax."""


def full_name(node: Node) -> str:
    """The operator's name, with its domain where that is not ONNX's."""
    return f"{node.domain}.{node.op}" if node.domain else node.op


def operator_of(node: Node) -> Operator | None:
    """How the node runs; None if that is not known."""
    return OPERATORS.get(full_name(node))


def has_floats(value: Array | None) -> bool:
    """Whether this is a constant of a floating-point type."""
    return value is not None and is_floating(value.dtype)


def is_weight(graph: Graph, name: str) -> bool:
    """Whether this is stored as floats, in an initializer or a Constant node: it can be trained and written back."""
    maker = graph.producers.get(name)
    is_stored = maker is None or (maker.op == "Constant" and not maker.domain)
    return is_stored and name not in graph.sparse and has_floats(graph.constant(name))


def live_nodes(graph: Graph) -> Iterator[Node]:
    """Nodes that must run for the outputs: those that make constants only where floats are made of stored weights."""
    reaching, of_weights = graph.reaching, set[str]()
    for node in graph.nodes:
        if node.key not in reaching:
            continue
        if not graph.is_constant(node.key):
            yield node
        elif node.key in graph.derived and any(name in of_weights or is_weight(graph, name) for name in node.inputs):
            value = graph.constant(node.key)
            if value is not None and has_floats(value) and value.size > 1:
                of_weights.add(node.key)
                yield node


def trained_names(graph: Graph) -> list[str]:
    """Initializers and Constants that become parameters, in the order in which they are first read."""
    nodes = list(live_nodes(graph))
    carrying = {spec.name for spec in graph.outputs if spec.dtype.kind in "fVO"}
    layered, names = set[str](), set[str]()  # what a layer reads as its weight; what trains
    for node in reversed(nodes):
        rule = operator_of(node)
        if rule is None or not _has_gradient(node, rule) or carrying.isdisjoint(node.outputs):
            continue
        is_on_its_way = node.key in graph.derived and node.key in layered
        for position, name in enumerate(node.inputs):
            if not name or position in rule.frozen or position in rule.settings:
                continue
            carrying.add(name)
            if rule.layer or is_on_its_way:
                layered.add(name)
            if is_weight(graph, name):
                value = graph.constant(name)
                is_of_layer = rule.layer or (is_on_its_way and value is not None and value.size > 1)
                if is_of_layer or _is_learnt(value, node.op):
                    names.add(name)
    return [name for name in dict.fromkeys(n for node in nodes for n in node.inputs) if name in names]


def _has_gradient(node: Node, rule: Operator) -> bool:
    """A Cast has one where it gives floats."""
    return rule.has_gradient and (node.op != "Cast" or TYPES.get(node.attrs["to"], torch.int64).is_floating_point)


def _is_learnt(value: Array | None, op: str) -> bool:
    """Whether a constant of no layer looks like a weight: it is no single number, no mask, and no filler.

    A mask has a number that hides a position from a Softmax, or only zeros and ones. A filler has the same number
    throughout. What lies along one axis and is added or multiplied is a scale or a shift, though it has just these.
    """
    if value is None or value.size < 2 or float(np.abs(value.astype(np.float64)).max()) >= MASK:
        return False
    if op in ("Add", "Sub", "Mul", "Div") and value.size == max(value.shape):
        return True
    return not ((value == value.flat[0]).all() or ((value == 0) | (value == 1)).all())


def attribute_names(graph: Graph) -> dict[str, str]:
    """A Python name for every constant and input, all different: 'fc1.weight' -> 'fc1_weight'."""
    unique_names: dict[str, str] = {}
    taken: set[str] = set()
    read = (name for node in graph.nodes for name in node.inputs if name)
    for name in (*(spec.name for spec in graph.inputs), *read, *(spec.name for spec in graph.outputs)):
        if name in unique_names or (name in graph.producers and not graph.is_constant(name)):
            continue
        stem = re.sub(r"\W", "_", name)
        is_taken = hasattr(fx.GraphModule, stem) or keyword.iskeyword(stem) or stem == "training"
        stem = f"c_{stem}" if not stem[:1].isalpha() or is_taken else stem
        unique = next(s for i in range(len(taken) + 1) if (s := stem if not i else f"{stem}_{i}") not in taken)
        unique_names[name] = unique
        taken.add(unique)
    return unique_names


def tensor_like(value: Array) -> Tensor:
    """A constant as a tensor of the same type."""
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(value.astype(np.float32))).bfloat16()
    return torch.from_numpy(np.array(value))


def _array_like(value: Tensor, like: Array) -> Array:
    """A tensor in the stored type of `like`."""
    value = value.detach().cpu()
    if value.dtype == torch.bfloat16:
        value = value.float()
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(value.numpy().astype(like.dtype)).reshape(like.shape)


def write_weights(graph: Graph, values: dict[str, Tensor]) -> Any:
    """The model of `graph` with these values (by name of the stored tensor); raises `InputError` where one misfits."""
    proto = graph.proto
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    stored |= {
        node.output[0]: constant_tensor(node)
        for node in proto.graph.node
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and node.output[0] in values
    }
    makers = {node.output[0]: node for node in proto.graph.node if node.op_type == "Constant"}
    for name, value in values.items():
        old = graph.constant(name)
        if old is None or tuple(value.shape) != old.shape:
            raise InputError(f"the module's weight '{name}' is not shaped like the model's: it was made from another")
        new = _array_like(value, old)
        if new.tobytes() == old.tobytes():
            continue
        if not np.isfinite(new.astype(np.float64)).all():
            raise InputError(f"the module's weight '{name}' has NaN or Inf, or is too large for {old.dtype.name}")
        attribute = makers[name].attribute[0] if name in makers else None
        if attribute is not None and attribute.name == "value_floats":
            attribute.floats[:] = new.tolist()
            continue
        for field in ("float_data", "double_data", "int32_data"):
            stored[name].ClearField(field)
        stored[name].raw_data = new.tobytes()
    return proto
