"""What of a model cannot train here: everything is named, in one line each, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, Signature, signature
from typing import Any

import numpy as np

from pcns_onnx.autograd.operators.operator import Operator
from pcns_onnx.autograd.weights import full_name, live_nodes, operator_of
from pcns_onnx.graph import Graph, Node

CONTROL_FLOW = ("If", "Loop", "Scan")
_QUANTISED = (
    "Quantize",
    "Dequantize",
    "QLinear",
    "Integer",
    "QGemm",
    "QAttention",
    "QMoE",
    "QEmbed",
    "NBits",
    "Bnb4",
    "FpQ4",
)


def refusals(graph: Graph) -> list[str]:
    """One line for each node that is not known, or is used in a way that is not."""
    read = {name for node in graph.nodes for name in (*node.inputs, *node.captures)}
    read |= {spec.name for spec in graph.outputs}
    lines = dict.fromkeys(line for node in live_nodes(graph) if (line := _refusal(graph, node, read)))
    return list(lines)


def _refusal(graph: Graph, node: Node, read: set[str]) -> str | None:
    name, rule = full_name(node), operator_of(node)
    if rule is None:
        if any(part in node.op for part in _QUANTISED):
            return f"{name} '{node.label}' is of quantised numbers, which do not train: take the model in floats"
        if node.op in CONTROL_FLOW and not node.domain:
            return f"{name} '{node.label}' is control flow, which does not train: settle its condition by a constant"
        return f"{name} '{node.label}' is not known to the PyTorch interop: it cannot train there"
    for attribute, value in rule.only.items():
        if plain_attributes(node.attrs).get(attribute, value) != value:
            return f"{name} '{node.label}' with another {attribute} than {value} is not known here"
    if rule.refuse is not None and (why := rule.refuse(plain_attributes(node.attrs))):
        return f"{name} '{node.label}' {why} is not known to the PyTorch interop: it cannot train there"
    if rule.outputs and read.intersection(node.outputs[rule.outputs :]):
        return f"{name} '{node.label}' has outputs that the PyTorch interop does not make"
    for source in node.inputs:
        value = graph.constant(source) if source else None
        if source in graph.sparse:
            return f"{name} '{node.label}' reads '{source}', which is stored sparsely: store it densely"
        if value is not None and value.dtype.name not in _ELEMENTS:
            return f"{name} '{node.label}' reads '{source}' of type {value.dtype.name}, which PyTorch does not have"
    try:
        signature_of(rule).bind(*node.inputs, **keywords_of(graph, node, rule))
    except TypeError as error:
        return f"{name} '{node.label}' is used in a way that the PyTorch interop does not know: {error}"
    return None


_ELEMENTS = {
    *(np.dtype(kind).name for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")), "bfloat16",
}  # fmt: skip
"""Element types that PyTorch has, too."""


def signature_of(rule: Operator) -> Signature:
    """What an operator's function takes; PyTorch's built-in ones take tensors and no attributes."""
    try:
        return signature(rule.run)
    except ValueError:
        return Signature([Parameter("inputs", Parameter.VAR_POSITIONAL)])


def keywords_of(graph: Graph, node: Node, rule: Operator) -> dict[str, Any]:
    """Attributes with texts decoded, less those that have the one value that is known; opset, number of outputs."""
    accepted = signature_of(rule).parameters
    keywords = {name: value for name, value in plain_attributes(node.attrs).items() if name not in rule.only}
    if "opset" in accepted:
        keywords["opset"] = graph.opset
    if "outputs" in accepted:
        keywords["outputs"] = len(node.outputs)
    return keywords


def plain_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes with texts as texts."""
    return {name: _text(value) for name, value in attributes.items()}


def _text(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_text(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value
