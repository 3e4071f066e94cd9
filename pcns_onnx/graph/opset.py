"""What newer versions of ONNX can say and older ones cannot."""

from __future__ import annotations

from onnx import version_converter

from pcns_onnx.errors import InputError, first_line
from pcns_onnx.graph.model import Graph
from pcns_onnx.graph.protobuf import keep_only


def at_least_opset(graph: Graph, version: int) -> Graph:
    """The same model, converted where its opset is older; raises `InputError` where onnx cannot do that."""
    if graph.opset >= version:
        return graph
    try:
        return Graph(version_converter.convert_version(graph.proto, version))
    except Exception as error:  # the converter raises its own untyped family
        raise InputError(f"onnx cannot convert opset {graph.opset} to {version}: {first_line(error)}") from None


def constant_weights(graph: Graph) -> Graph:
    """The same model, its initializers not listed as inputs: those that are may be overridden at run time."""
    proto = graph.proto
    stored = {tensor.name for tensor in proto.graph.initializer}
    keep_only(proto.graph.input, lambda value: value.name not in stored)
    proto.ir_version = max(proto.ir_version, 4)  # before that they have to be listed
    return Graph(proto)
