"""Small real models, built by hand, and sessions to run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pcns_onnx.graph import Program
from pcns_onnx.runtime.engine import Engine

Array = NDArray[Any]
MODELS = Path(__file__).parents[2] / "models"


def build(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Array],
    input_shape: Sequence[int | str],
    *,
    output: str = "y",
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """A checked model with one float input `x` and one output."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(input_shape))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    # The checker wants a shape on every output.
    model.graph.output[0].CopyFrom(onnx.shape_inference.infer_shapes(model).graph.output[0])
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, x: Array) -> Array:
    """The first output of a model in onnxruntime."""
    outputs = Engine().session(Program(model.SerializeToString())).run({"x": x})
    return np.asarray(next(iter(outputs.values())))


def relative(a: Array, b: Array) -> float:
    """Relative L2 distance of b from a."""
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), 1e-30))
