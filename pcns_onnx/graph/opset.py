"""What newer versions of ONNX can say and older ones cannot."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, version_converter

from pcns_onnx.errors import InputError, first_line
from pcns_onnx.graph.lowering.isolation import all_nodes
from pcns_onnx.graph.model import Graph
from pcns_onnx.graph.protobuf import Node, keep_only

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
        _keep_asymmetric(converted)
    return Graph(converted)


def _keep_asymmetric(model: onnx.ModelProto) -> None:
    """Make Resizes, in place, sample as onnxruntime does before opset 11: at x / scale, rounded down, or up where it
    makes the map smaller."""
    constants = Graph(model)
    for node in all_nodes(model.graph):
        if node.op_type == "Resize" and not node.domain:
            mode = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "mode"), b"nearest")
            keep_only(node.attribute, lambda a: a.name not in ("coordinate_transformation_mode", "nearest_mode"))
            node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
            if mode == b"nearest":
                scales = constants.constant(node.input[2]) if len(node.input) > 2 else None
                shrinks = scales is not None and bool((scales <= 1).all()) and bool((scales < 1).any())
                node.attribute.append(helper.make_attribute("nearest_mode", "ceil" if shrinks else "floor"))


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


def without_named_axes(graph: Graph) -> Graph:
    """The same model, its Resizes and Pads saying what becomes of every axis, as they all do below opset 18.

    Raises `InputError` where that cannot be told.
    """
    named = [node for node in graph.nodes if not node.domain and _axes_of(graph, node) is not None]
    if not named:
        return graph
    shapes, proto = graph.shapes(), graph.proto
    nodes = {node.output[0]: node for node in proto.graph.node if node.output}
    for node in named:
        rank = len(shapes.get(node.inputs[0], ()))
        if not rank or node.attrs.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
            raise InputError(f"{node.op} '{node.label}' names its axes in a way that cannot be written for all of them")
        axes = [int(axis) % rank for axis in np.asarray(_axes_of(graph, node)).reshape(-1)]
        written = _for_all_axes(node, nodes[node.key], axes, rank, graph.fresh_name(f"{node.key}.all_axes"))
        place = list(proto.graph.node).index(nodes[node.key])
        for new in reversed(written):
            proto.graph.node.insert(place, new)
    return Graph(proto)


def _axes_of(graph: Graph, node: Node) -> object:
    """The axes that a Resize or Pad names, None where it has to do with all of them."""
    if node.op == "Resize":
        return node.attrs.get("axes")
    if node.op != "Pad" or len(node.inputs) < 4 or not node.inputs[3]:
        return None
    axes = graph.constant(node.inputs[3])
    if axes is None:
        raise InputError(f"Pad '{node.label}' computes its axes, which onnxruntime's int8 layouts do not follow")
    return axes


def _for_all_axes(node: Node, proto: onnx.NodeProto, axes: list[int], rank: int, stem: str) -> list[onnx.NodeProto]:
    """Make `proto` say something of all axes, in place; the nodes that work that out, to stand in front of it."""
    nodes = []

    def scattered(position: int, everything: str, places: list[int]) -> None:
        if position < len(proto.input) and proto.input[position]:
            names = [f"{stem}.{position}{part}" for part in (".places", "")]
            nodes.append(_constant(names[0], places, TensorProto.INT64))
            nodes.append(
                helper.make_node("ScatterElements", [everything, names[0], proto.input[position]], [names[1]], axis=0)
            )
            proto.input[position] = names[1]

    both = [*axes, *(axis + rank for axis in axes)]
    if node.op == "Pad":
        nodes.append(_constant(f"{stem}.none", [0] * 2 * rank, TensorProto.INT64))
        scattered(1, f"{stem}.none", both)
        del proto.input[3:]
        return nodes
    nodes += [
        _constant(f"{stem}.roi", [0.0] * rank + [1.0] * rank, TensorProto.FLOAT),
        _constant(f"{stem}.ones", [1.0] * rank, TensorProto.FLOAT),
        helper.make_node("Shape", [proto.input[0]], [f"{stem}.shape"]),
    ]
    scattered(1, f"{stem}.roi", both)
    scattered(2, f"{stem}.ones", axes)
    scattered(3, f"{stem}.shape", axes)
    keep_only(proto.attribute, lambda attribute: attribute.name != "axes")
    return nodes


def _constant(name: str, value: list[float] | list[int], kind: int) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=helper.make_tensor(name, kind, [len(value)], value))


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
