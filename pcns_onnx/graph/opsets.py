"""Newer operator sets, for what older ones cannot say."""

from __future__ import annotations

from onnx import version_converter

from pcns_onnx.errors import InputError
from pcns_onnx.graph.files import first_line
from pcns_onnx.graph.model import Graph


def at_least_opset(graph: Graph, version: int) -> Graph:
    """The same model, converted where its opset is older; raises `InputError` where onnx cannot do that."""
    if graph.opset >= version:
        return graph
    try:
        return Graph(version_converter.convert_version(graph.proto, version))
    except Exception as error:  # the converter raises its own untyped family
        raise InputError(f"onnx cannot convert opset {graph.opset} to {version}: {first_line(error)}") from None
