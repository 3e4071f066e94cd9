"""MACs and parameters of an ONNX model, counted one way for everybody.

    Conv: output positions x outputs x inputs / groups x taps;   Gemm, MatMul: rows x inputs x outputs

for one sample. Shapes are inferred, so that weights behind DequantizeLinear count like any others. Parameters
are the elements of all weights, float or quantised; scales, zero points and shapes are none.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import onnx

_WEIGHTS = (onnx.TensorProto.FLOAT, onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT32)


class Cost(NamedTuple):
    """What one sample costs, and what is stored."""

    macs: int
    parameters: int


def shapes_of(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Every tensor's inferred shape; open sizes (the batch) count as 1."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    known = {
        value.name: [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.value_info, *graph.output]
    }
    return {**known, **{tensor.name: list(tensor.dims) for tensor in graph.initializer}}


def cost(model: onnx.ModelProto) -> Cost:
    """Count a model; raises `KeyError` where a shape that is needed cannot be inferred."""
    shapes = shapes_of(model)
    macs = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            macs += math.prod(shapes[node.output[0]][2:]) * math.prod(shapes[node.input[1]])
        elif node.op_type == "Gemm":
            macs += math.prod(shapes[node.input[1]])
        elif node.op_type == "MatMul":
            macs += math.prod(shapes[node.input[0]][1:-1]) * math.prod(shapes[node.input[1]])
    scales = {
        name for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for name in node.input[1:]
    }  # fmt: skip
    parameters = sum(
        math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type in _WEIGHTS and tensor.name not in scales and len(tensor.dims)
    )
    return Cost(macs, parameters)
