"""What carries a stream commutes with any matrix on its channels; what does not is not taken for one that does."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.models import Array
from pcns_onnx.dependency.streams.carriage import carriage
from pcns_onnx.graph import Graph, Program
from pcns_onnx.runtime.engine import Engine

N, S, D = 2, 5, 8
RNG = np.random.default_rng(0)
Case = tuple[str, list[Any], dict[str, Any]]


def ints(*numbers: int) -> Array:
    return np.array(numbers, dtype=np.int64)


CARRIED: dict[str, Case] = {
    "Identity": ("Identity", [], {}),
    "Neg": ("Neg", [], {}),
    "Cast": ("Cast", [], {"to": TensorProto.DOUBLE}),
    "Transpose": ("Transpose", [], {"perm": [2, 0, 1]}),
    "Reshape, positions joined": ("Reshape", [ints(-1, D)], {}),
    "Unsqueeze": ("Unsqueeze", [ints(1)], {}),
    "Slice of positions": ("Slice", [ints(-1), ints(99), ints(1)], {}),
    "Gather of a position": ("Gather", [np.array(-1)], {"axis": 1}),
    "Gather of positions": ("Gather", [ints(3, 1)], {"axis": 1}),
    "Expand": ("Expand", [ints(3, 1, 1, 1)], {}),
    "Pad of positions": ("Pad", [ints(0, 1, 0, 0, 0, 0)], {}),
    "Pad, edges": ("Pad", [ints(0, 1, 0, 0, 0, 0)], {"mode": "edge"}),
    "Mul by a number": ("Mul", [np.array(3, np.float32)], {}),
    "Mul by a number per position": ("Mul", [RNG.standard_normal((N, S, 1)).astype(np.float32)], {}),
    "Div by a number": ("Div", [np.array([2], np.float32)], {}),
    "mean over positions": ("ReduceMean", [], {"axes": [1], "keepdims": 0}),
    "sum over positions": ("ReduceSum", [ints(1)], {"keepdims": 1}),
}
NOT_CARRIED: dict[str, Case] = {
    "Relu": ("Relu", [], {}),
    "Cast to numbers that are whole": ("Cast", [], {"to": TensorProto.INT64}),
    "Mul by a number per channel": ("Mul", [RNG.standard_normal(D).astype(np.float32)], {}),
    "Reshape into heads": ("Reshape", [ints(0, 0, 2, D // 2)], {}),
    "Slice of channels": ("Slice", [ints(0), ints(4), ints(2)], {}),
    "channels in another order": ("Slice", [ints(-1), ints(-99), ints(2), ints(-1)], {}),
    "Gather of channels": ("Gather", [ints(*range(D))], {"axis": 2}),
    "Pad with ones": ("Pad", [ints(0, 1, 0, 0, 0, 0), np.array(1, np.float32)], {}),
    "mean over channels": ("ReduceMean", [], {"axes": [2]}),
    "Div of a number": ("Div", [np.array(2, np.float32), "x"], {}),
}


def graph_of(case: Case) -> Graph:
    op, others, attributes = case
    names = [other if isinstance(other, str) else f"c{at}" for at, other in enumerate(others)]
    inputs = names if "x" in names else ["x", *names]
    stored = [numpy_helper.from_array(v, n) for n, v in zip(names, others, strict=True) if not isinstance(v, str)]
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [N, S, D])],
        [helper.make_tensor_value_info("y", attributes.get("to", TensorProto.FLOAT), None)],
        stored,
    )
    return Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def run(graph: Graph, x: Array) -> Array:
    return np.asarray(Engine().session(Program(graph.serialize())).run({"x": x})["y"])


@pytest.mark.parametrize("name", CARRIED)
def test_it_commutes_with_a_matrix(name: str) -> None:
    graph = graph_of(CARRIED[name])
    sizes, node = graph.shapes(), graph.nodes[0]
    carried = carriage(graph, sizes, node, "x", 2)
    assert carried is not None and carried == carriage(graph, sizes, node, "y", carried.outputs[0])
    x = RNG.standard_normal((N, S, D)).astype(np.float32)
    matrix = RNG.standard_normal((D, D)).astype(np.float32)
    before = np.moveaxis(np.moveaxis(run(graph, x), carried.outputs[0], -1) @ matrix, -1, carried.outputs[0])
    assert np.allclose(before, run(graph, x @ matrix), atol=1e-4)


@pytest.mark.parametrize("name", NOT_CARRIED)
def test_what_does_not_is_not_followed(name: str) -> None:
    graph = graph_of(NOT_CARRIED[name])
    assert carriage(graph, graph.shapes(), graph.nodes[0], "x", 2) is None


def test_sums_carry_all_that_is_computed_and_write_what_is_stored() -> None:
    stored = numpy_helper.from_array(RNG.standard_normal((S, D)).astype(np.float32), "c")
    value: onnx.ValueInfoProto = helper.make_tensor_value_info("x", TensorProto.FLOAT, [N, S, D])
    graph = helper.make_graph(
        [helper.make_node("Sum", ["x", "c", "x"], ["y"])], "sum", [value],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [stored],
    )  # fmt: skip
    view = Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    carried = carriage(view, view.shapes(), view.nodes[0], "x", 2)
    assert carried is not None and (carried.inputs, carried.constants) == ({0: 2, 2: 2}, {1: 1})
