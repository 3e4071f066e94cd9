"""What newer versions of ONNX can say and older ones cannot."""

from __future__ import annotations

import onnx
from onnx import helper, inliner, version_converter

from pcns_onnx.errors import InputError, first_line
from pcns_onnx.graph.isolation import all_nodes
from pcns_onnx.graph.model import Graph
from pcns_onnx.graph.protobuf import keep_only

_HALF_PIXELS = 11
"""The first opset whose Resize says where it samples; before it samples at x / scale."""

_LAST_AXIS = 13
"""The first opset in which Softmax and Hardmax take one axis; before they take the product of the last ones."""


def at_least_opset(graph: Graph, version: int) -> Graph:
    """The same model, converted where its opset is older; raises `InputError` where onnx cannot do that.

    Two meanings that onnx's converter loses are kept: an old Resize (or Upsample) is "asymmetric", and a Hardmax
    in front of the last axis takes all axes behind it, too.
    """
    if graph.opset >= version:
        return graph
    proto = graph.proto
    if graph.opset < _LAST_AXIS <= version:
        _flatten_hardmaxes(proto.graph)
    try:
        converted = version_converter.convert_version(proto, version)
    except Exception as error:  # the converter raises its own untyped family
        raise InputError(f"onnx cannot convert opset {graph.opset} to {version}: {first_line(error)}") from None
    if graph.opset < _HALF_PIXELS <= version:
        _keep_asymmetric(converted.graph)
    return Graph(converted)


def _keep_asymmetric(graph: onnx.GraphProto) -> None:
    """Make Resizes, in place, sample as onnxruntime does before opset 11: at x / scale, rounded down."""
    for node in all_nodes(graph):
        if node.op_type == "Resize" and not node.domain:
            mode = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "mode"), b"nearest")
            keep_only(node.attribute, lambda a: a.name not in ("coordinate_transformation_mode", "nearest_mode"))
            node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
            if mode == b"nearest":
                node.attribute.append(helper.make_attribute("nearest_mode", "floor"))


def _flatten_hardmaxes(graph: onnx.GraphProto) -> None:
    """Hardmax(x, axis) -> Reshape(Hardmax(Flatten(x, axis)), Shape(x)), in place, in the main graph."""
    nodes = []
    for node in graph.node:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        if node.op_type != "Hardmax" or node.domain or axis == -1:
            nodes.append(node)
            continue
        stem = f"{node.output[0]}.flat"
        names = [f"{stem}{part}" for part in (".in", ".shape", ".out")]
        nodes += [
            helper.make_node("Flatten", [node.input[0]], [names[0]], axis=axis),
            helper.make_node("Shape", [node.input[0]], [names[1]]),
            helper.make_node("Hardmax", [names[0]], [names[2]], axis=1),
            helper.make_node("Reshape", [names[2], names[1]], [node.output[0]]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


def inlined(graph: Graph) -> Graph:
    """The same model with its local functions written out where they are called, as far as onnx can do that."""
    if not graph.functions:
        return graph
    try:
        proto = inliner.inline_local_functions(graph.proto, convert_version=True)
    except Exception as error:  # it raises its own untyped family
        raise InputError(f"onnx cannot inline the model's local functions: {first_line(error)}") from None
    gone = {domain for domain, _ in graph.functions} - {f.domain for f in proto.functions}
    gone -= {node.domain for node in all_nodes(proto.graph)}
    keep_only(proto.opset_import, lambda entry: entry.domain not in gone)
    return Graph(proto)


def constant_weights(graph: Graph) -> Graph:
    """The same model, its initializers not listed as inputs: those that are may be overridden at run time."""
    proto = graph.proto
    stored = {tensor.name for tensor in proto.graph.initializer}
    keep_only(proto.graph.input, lambda value: value.name not in stored)
    proto.ir_version = max(proto.ir_version, 4)  # before that they have to be listed
    return Graph(proto)
