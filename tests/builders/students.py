"""Students for healing: an original whose weights have been disturbed, so that there is something to learn back."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from builders.mlp import mlp
from builders.models import Array


def disturbed(model: onnx.ModelProto, amount: float = 0.3, seed: int = 3) -> onnx.ModelProto:
    """The same model, every stored float of more than one number multiplied by about one."""
    twin, rng = onnx.ModelProto(), np.random.default_rng(seed)
    twin.CopyFrom(model)
    for tensor in twin.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and values.size > 1:
            noisy = (values * (1 + amount * rng.standard_normal(values.shape))).astype(values.dtype)
            tensor.CopyFrom(numpy_helper.from_array(noisy, tensor.name))
    return twin


def ending(op: str, **attributes: Any) -> onnx.ModelProto:
    """The small perceptron with a node behind its three scores."""
    model = mlp()
    model.graph.node[-1].output[0] = "scores"
    model.graph.node.append(helper.make_node(op, ["scores"], ["y"], name="end", **attributes))
    return model


def weights_of(model: onnx.ModelProto) -> dict[str, Array]:
    """All initializers, by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
