"""The ONNX model as the rest of the house sees it: nodes, constants, shapes, edits, files.

This package is the only importer of onnx. A `Graph` wraps one `ModelProto`; its index (who
makes a tensor, who reads it) is rebuilt lazily after an edit. Nodes are addressed by their
*key*, the name of their first output: unique in a valid graph, present where node names are
not, and stable under every edit made here. Edits go straight to the protobuf, so whatever is
not touched (names, metadata, doc strings, opsets) survives to the byte. The contents of large
initializers are kept beside it, in memory or mapped from files, and shared by all copies.
"""

from __future__ import annotations

from pcns_onnx.graph.initializers import Program
from pcns_onnx.graph.layout import CarriedState, Layout
from pcns_onnx.graph.model import Graph
from pcns_onnx.graph.model_source import ModelSource
from pcns_onnx.graph.opset import at_least_opset, constant_weights, inlined
from pcns_onnx.graph.protobuf import Array, Node, Shape, TensorSpec

__all__ = [
    "Array", "CarriedState", "Graph", "Layout", "ModelSource", "Node", "Program", "Shape", "TensorSpec",
    "at_least_opset", "constant_weights", "inlined",
]  # fmt: skip
