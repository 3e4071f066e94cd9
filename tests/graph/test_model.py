"""Edits of nodes leave nodes that every reader of ONNX understands."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pcns_onnx.graph import Graph

STEPS, WIDTH = 3, 4


def states() -> onnx.ModelProto:
    """An LSTM whose sequence lengths are left out and whose two states are zeros."""
    rng = np.random.default_rng(0)
    shapes = {"w": (1, 4 * WIDTH, 2), "r": (1, 4 * WIDTH, WIDTH), "b": (1, 8 * WIDTH)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    weights |= {name: np.zeros((1, 1, WIDTH), np.float32) for name in ("h", "c")}
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [STEPS, 1, 2]), ("y", [STEPS, 1, 1, WIDTH]))
    ]
    node = helper.make_node("LSTM", ["x", "w", "r", "b", "", "h", "c"], ["y"], hidden_size=WIDTH)
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph([node], "states", values[:1], values[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    "gone, left",
    [
        ((5, 6), ["x", "w", "r", "b"]),
        ((6, 5), ["x", "w", "r", "b"]),
        ((6, 5, 6, 5), ["x", "w", "r", "b"]),
        ((6,), ["x", "w", "r", "b", "", "h"]),
        ((5,), ["x", "w", "r", "b", "", "", "c"]),
    ],
)
def test_no_empty_names_are_left_at_the_end_of_a_node(gone: tuple[int, ...], left: list[str]) -> None:
    model = states()
    graph = Graph(model).copy()
    for position in gone:
        graph.read_same("y", position, "")
    assert list(graph.proto.graph.node[0].input) == left
    sample = {"x": np.ones((STEPS, 1, 2), np.float32)}
    before, after = (
        onnxruntime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, sample)[0]
        for each in (model, graph.proto)
    )
    np.testing.assert_array_equal(before, after)
