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
from operator import getitem
from typing import TYPE_CHECKING, Any

from pcns_onnx.errors import InputError, UnsupportedError
from pcns_onnx.graph import Graph, ModelSource, Node
from pcns_onnx.graph.protobuf import array_of

try:
    import torch  # noqa: F401
except ImportError:
    raise UnsupportedError("PyTorch is not installed: `pip install 'pcns-onnx[torch]'`") from None
from torch import fx, nn

from pcns_onnx.autograd.support import keywords_of, refusals
from pcns_onnx.autograd.weights import (
    attribute_names,
    live_nodes,
    operator_of,
    tensor_like,
    trained_names,
    write_weights,
)

if TYPE_CHECKING:
    from onnx import ModelProto


def to_torch(model: ModelSource, *, widen: bool = False) -> fx.GraphModule:
    """The model as a module: inputs in the model's order, one tensor out (a tuple where there are several).

    Parameters are named after their initializers. With `widen` half-precision weights and inputs are
    float32 in the module, so that small steps count; they go back in their own type all the same.
    Raises `UnsupportedError` with one line for what is not known here (`unknown_operators` gives
    all of it), `InputError` for a model that cannot be read.
    """
    graph = Graph.load(model)
    graph = graph.as_float32() if widen else graph
    unknown = refusals(graph)
    if unknown:
        others = f" (and {len(unknown) - 1} more of its nodes)" if len(unknown) > 1 else ""
        raise UnsupportedError(unknown[0] + others)
    return _Translation(graph).module()


def to_onnx(module: nn.Module, model: ModelSource) -> ModelProto:
    """`model` with the parameters that `module`, made from it by `to_torch`, has now.

    Nodes, names, metadata and all other constants stay. A module made from a part of the model
    brings the weights of that part. Raises `InputError` where the module does not fit the model, or holds NaN or Inf.
    """
    graph = Graph.load(model)
    state, names = module.state_dict(), attribute_names(graph)
    wanted = [names[name] for name in trained_names(graph)]
    sources = {attribute: name for name, attribute in names.items()}
    values = {}
    for attribute in dict.fromkeys((*wanted, *(name for name, _ in module.named_parameters()))):
        if attribute not in state or attribute not in sources:
            raise InputError(f"the module and the model do not both have '{attribute}': it was made from another")
        values[sources[attribute]] = state[attribute]
    return Graph.load(write_weights(graph, values)).proto


def unknown_operators(model: ModelSource) -> list[str]:
    """What of the model cannot train here: a line for each node, which names its operator and itself; [] if all can.

    Raises `InputError` for a model that cannot be read.
    """
    return refusals(Graph.load(model))


class _Translation:
    """One model on its way into an fx graph: tensor name -> the value that carries it."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._names = attribute_names(graph)
        self._trained = set(trained_names(graph))
        self._root = nn.Module()
        self._fx = fx.Graph()
        self._values: dict[str, Any] = {}

    def module(self) -> fx.GraphModule:
        for spec in self._graph.inputs:
            self._values[spec.name] = self._fx.placeholder(self._names[spec.name])
        for node in live_nodes(self._graph):
            self._call(node)
        outputs = [self._value(spec.name) for spec in self._graph.outputs]
        self._fx.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        return fx.GraphModule(self._root, self._fx)

    def _call(self, node: Node) -> None:
        rule = operator_of(node)
        assert rule is not None  # all that is not known was refused
        inputs = [
            self._setting(name) if position in rule.settings else self._value(name)
            for position, name in enumerate(node.inputs)
        ]
        keywords = keywords_of(self._graph, node, rule)
        for name, value in keywords.items():
            if hasattr(value, "raw_data"):
                attribute = re.sub(r"\W", "_", f"c_{node.key}_{name}")
                self._root.register_buffer(attribute, tensor_like(array_of(value)))
                keywords[name] = self._fx.get_attr(attribute)
        result = self._fx.call_function(rule.run, tuple(inputs), keywords)
        for index, name in enumerate(node.outputs):
            if name and (index < rule.outputs or not rule.outputs):
                is_tuple = rule.outputs != 1
                self._values[name] = self._fx.call_function(getitem, (result, index)) if is_tuple else result

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
                self._root.register_parameter(attribute, nn.Parameter(tensor_like(value)))
            else:
                self._root.register_buffer(attribute, tensor_like(value))
            self._values[name] = self._fx.get_attr(attribute)
        return self._values[name]

    def _setting(self, name: str) -> Any:
        """A constant as plain numbers; what is computed stays a tensor."""
        value = self._graph.constant(name) if name else None
        return self._value(name) if value is None else value.tolist()
