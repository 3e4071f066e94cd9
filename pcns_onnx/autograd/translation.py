"""A graph as an fx.GraphModule, one call per ONNX node, and its trained weights back in the same nodes.

The module computes what the ONNX file says, at inference: BatchNormalization keeps its stored
statistics (its scale and shift train), Dropout does nothing. Weights keep their stored type;
going back writes them into the same nodes, so that a round trip without training gives the same
bits. Constants that are computed from weights (a Transpose, say) are computed here too, and what
shapes or bounds an operator is a plain number.

PyTorch is an extra (`pip install 'pcns-onnx[torch]'`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import Parameter, Signature, signature
from operator import getitem
from typing import TYPE_CHECKING, Any

import numpy as np

from pcns_onnx.errors import InputError, UnsupportedError
from pcns_onnx.graph import Array, Graph, ModelSource, Node

try:
    import torch
except ImportError:
    raise UnsupportedError("PyTorch is not installed: `pip install 'pcns-onnx[torch]'`") from None
from torch import Tensor, fx, nn

from pcns_onnx.autograd.operators import OPERATORS, Operator

if TYPE_CHECKING:
    from onnx import ModelProto


def to_torch(model: ModelSource) -> fx.GraphModule:
    """The model as a module: inputs in the model's order, one tensor out (a tuple where there are several).

    Parameters are named after their initializers. Raises `UnsupportedError` with one line for an
    operator, or an attribute of one, that is not known here, `InputError` for a model that cannot be read.
    """
    return _Translation(Graph.load(model)).module()


def to_onnx(module: nn.Module, model: ModelSource) -> ModelProto:
    """`model` with the parameters that `module`, made from it by `to_torch`, has now.

    Nodes, names, metadata and all other constants stay. Raises `InputError` where the module does
    not fit the model, or holds NaN or Inf.
    """
    graph = Graph.load(model)
    state = module.state_dict()
    names = _attribute_names(graph)
    trained = {names[name]: state.get(names[name]) for name in _translated(graph)}
    proto = graph.proto
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name in _translated(graph):
        value, old = trained[names[name]], graph.constant(name)
        if value is None or old is None or tuple(value.shape) != old.shape:
            raise InputError(f"the module has no '{names[name]}' like the model's '{name}': it was made from another")
        new = _array(value, old)
        if new.tobytes() != old.tobytes():
            for field in ("float_data", "double_data", "int32_data"):
                tensors[name].ClearField(field)
            tensors[name].raw_data = new.tobytes()
    return Graph.load(proto).proto


def _array(value: Tensor, like: Array) -> Array:
    """A tensor in the stored type of `like`."""
    value = value.detach().cpu()
    if value.dtype == torch.bfloat16:
        value = value.float()
    return np.ascontiguousarray(value.numpy().astype(like.dtype)).reshape(like.shape)


def _tensor(value: Array) -> Tensor:
    """A constant as a tensor of the same type."""
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(value.astype(np.float32))).bfloat16()
    return torch.from_numpy(np.array(value))


def _attribute_names(graph: Graph) -> dict[str, str]:
    """A Python name for every constant and input, all different: 'fc1.weight' -> 'fc1_weight'."""
    unique_names: dict[str, str] = {}
    taken: set[str] = set()
    for name in (*(spec.name for spec in graph.inputs), *(n for node in graph.nodes for n in node.inputs if n)):
        if name in unique_names or (name in graph.producers and not graph.is_constant(name)):
            continue
        stem = re.sub(r"\W", "_", name)
        stem = f"c_{stem}" if not stem[:1].isalpha() or hasattr(nn.Module, stem) else stem
        unique = next(s for i in range(len(taken) + 1) if (s := stem if not i else f"{stem}_{i}") not in taken)
        unique_names[name] = unique
        taken.add(unique)
    return unique_names


def _is_weight(graph: Graph, name: str) -> bool:
    """Whether this is stored as floats in an initializer, and so can be trained and written back."""
    value = None if name in graph.producers else graph.constant(name)
    return value is not None and (value.dtype.kind == "f" or value.dtype.name == "bfloat16")


def _operator(node: Node) -> Operator:
    operator = None if node.domain else OPERATORS.get(node.op)
    if operator is None:
        where = f"{node.domain}.{node.op}" if node.domain else node.op
        raise UnsupportedError(f"{where} '{node.label}' is not known to the PyTorch interop: it cannot train there")
    return operator


def _translated(graph: Graph) -> list[str]:
    """Initializers that become parameters: weights of layers, and constants of more than one element elsewhere."""
    names: dict[str, None] = {}
    for node in _live(graph):
        rule = _operator(node)
        for position, name in enumerate(node.inputs):
            if not name or position in rule.frozen or position in rule.settings or not _is_weight(graph, name):
                continue
            value = graph.constant(name)
            if value is not None and (rule.layer or value.size > 1):
                names.setdefault(name)
    return list(names)


def _live(graph: Graph) -> Iterator[Node]:
    """Nodes that must run: those that make constants only where floats are made of stored weights."""
    for node in graph.nodes:
        if not graph.is_constant(node.key):
            yield node
        elif node.key in graph.derived:
            value = graph.constant(node.key)
            floats = value is not None and value.dtype.kind == "f" and value.size > 1
            if floats and any(_is_weight(graph, name) or name in graph.derived for name in node.inputs):
                yield node


class _Translation:
    """One model on its way into an fx graph: tensor name -> the value that carries it."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._names = _attribute_names(graph)
        self._trained = set(_translated(graph))
        self._root = nn.Module()
        self._fx = fx.Graph()
        self._values: dict[str, Any] = {}
        self._read = {name for node in graph.nodes for name in (*node.inputs, *node.captures)}
        self._read |= {spec.name for spec in graph.outputs}

    def module(self) -> fx.GraphModule:
        for spec in self._graph.inputs:
            self._values[spec.name] = self._fx.placeholder(self._names[spec.name])
        for node in _live(self._graph):
            self._call(node)
        outputs = [self._value(spec.name) for spec in self._graph.outputs]
        self._fx.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        return fx.GraphModule(self._root, self._fx)

    def _call(self, node: Node) -> None:
        rule = _operator(node)
        inputs = [
            self._setting(name) if position in rule.settings else self._value(name)
            for position, name in enumerate(node.inputs)
        ]
        attrs = _attributes(node, rule)
        accepted = _signature(rule)
        if "opset" in accepted.parameters:
            attrs["opset"] = self._graph.opset
        several = "outputs" in accepted.parameters
        if several:
            attrs["outputs"] = len(node.outputs)
        elif self._read.intersection(node.outputs[1:]):
            raise UnsupportedError(f"{node.op} '{node.label}' has outputs that the PyTorch interop does not make")
        try:
            accepted.bind(*inputs, **attrs)
        except TypeError as error:
            message = f"{node.op} '{node.label}' is used in a way that the PyTorch interop does not know: {error}"
            raise UnsupportedError(message) from None
        result = self._fx.call_function(rule.run, tuple(inputs), attrs)
        for index, name in enumerate(node.outputs):
            self._values[name] = self._fx.call_function(getitem, (result, index)) if several else result

    def _value(self, name: str) -> Any:
        """The fx node that carries a tensor; constants are registered when they are first read."""
        if not name:
            return None
        if name not in self._values:
            value = self._graph.constant(name)
            if value is None:
                raise UnsupportedError(f"'{name}' is made in a way that the PyTorch interop does not know")
            attribute = self._names.get(name) or re.sub(r"\W", "_", f"c_{name}")
            if name in self._trained:
                self._root.register_parameter(attribute, nn.Parameter(_tensor(value)))
            else:
                self._root.register_buffer(attribute, _tensor(value))
            self._values[name] = self._fx.get_attr(attribute)
        return self._values[name]

    def _setting(self, name: str) -> Any:
        """A constant as plain numbers; what is computed stays a tensor."""
        value = self._graph.constant(name) if name else None
        return self._value(name) if value is None else value.tolist()


def _signature(rule: Operator) -> Signature:
    """What an operator's function takes; PyTorch's built-in ones take tensors and no attributes."""
    try:
        return signature(rule.run)
    except ValueError:
        return Signature([Parameter("inputs", Parameter.VAR_POSITIONAL)])


def _attributes(node: Node, rule: Operator) -> dict[str, Any]:
    """Attributes with texts decoded, less those that have the one value that is known."""
    plain = {name: value.decode() if isinstance(value, bytes) else value for name, value in node.attrs.items()}
    for name, value in rule.only.items():
        if plain.pop(name, value) != value:
            raise UnsupportedError(f"{node.op} '{node.label}' with another {name} than {value} is not known here")
    return plain
