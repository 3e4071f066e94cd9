"""What is taken out of a tool's way comes back as it was."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.graph.lowering.isolation import (
    named_again,
    numbered,
    put_back_outputs,
    sort_nodes,
    tensor_names,
    with_flip,
    with_own_captures,
    without_flip,
    without_plain_outputs,
)
from pcns_onnx.runtime.engine import Engine

info = helper.make_tensor_value_info
X = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)


def branch(text: str) -> onnx.GraphProto:
    return helper.make_graph([onnx.parser.parse_node(text)], "branch", [], [info("t", TensorProto.FLOAT, None)])


def graph() -> Graph:
    """Every kind of output, a branch that reads tensors and a constant of the outside, and a name with an ending."""
    nodes = [
        onnx.parser.parse_node(line)
        for line in ("a = Relu(x)", "a_scale = Mul(a, k)", "m = ReduceMax <keepdims = 0> (x)")
    ]
    nodes += [onnx.parser.parse_node("is = Less(m, k)")]
    choice = helper.make_node(
        "If", ["is"], ["y"], then_branch=branch("t = Mul(a, k)"), else_branch=branch("t = Add(x, l)")
    )
    shapes: dict[str, list[int | str | None]] = {"k": [], "y": [None, 3], "x": ["N", 3], "a_scale": [None, 3]}
    outputs = [info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    stored = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("k", 2.0), ("l", 3.0))]
    proto = helper.make_graph([*nodes, choice], "test", [info("x", TensorProto.FLOAT, ["N", 3])], outputs, stored)
    return Graph(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def run(model: Graph, **feeds: object) -> dict[str, np.ndarray]:
    arrays = {name: np.asarray(value) for name, value in feeds.items()}
    return {
        name: np.asarray(value) for name, value in Engine().session(model.program()).run({"x": X, **arrays}).items()
    }


def same(before: Graph, after: Graph) -> None:
    assert before.outputs == after.outputs
    for name, value in run(before).items():
        np.testing.assert_array_equal(run(after)[name], value)


def test_names_become_numbers_and_names_again() -> None:
    numbers, names = numbered(graph(), ["_scale"])
    assert tensor_names(numbers.proto.graph, nested=False) == names.keys()
    proto = numbers.proto
    named_again(proto, names)
    assert proto == graph().proto


def test_names_stay_where_no_other_tensor_has_them_with_an_ending() -> None:
    before = graph()
    assert numbered(before, ["_quantized"]) == (before, {})


def test_a_name_that_was_taken_meanwhile_goes_to_its_owner() -> None:
    numbers, names = numbered(graph(), ["_scale"])
    proto = numbers.proto
    proto.graph.node.insert(0, helper.make_node("Neg", [proto.graph.input[0].name], ["a"]))
    named_again(proto, names)
    same(graph(), Graph(proto))


def test_plain_outputs_come_back_in_their_places() -> None:
    without, outputs = without_plain_outputs(graph())
    assert [spec.name for spec in without.outputs] == ["y", "a_scale"]
    proto = without.proto
    put_back_outputs(proto, outputs)
    same(graph(), Graph(proto))
    for tensor in proto.graph.initializer:
        if tensor.name == "k":
            tensor.CopyFrom(numpy_helper.from_array(np.array(2.0078125, np.float32), "k"))  # as a tool would round it
    del proto.graph.output[:]
    proto.graph.output.extend(without.proto.graph.output)
    put_back_outputs(proto, outputs)
    assert run(Graph(proto))["k"] == 2.0 and run(Graph(proto))["a_scale"] == pytest.approx(np.maximum(X, 0) * 2.0078125)


def test_subgraphs_read_copies() -> None:
    apart = with_own_captures(graph())
    same(graph(), apart)
    choice = next(node for node in apart.nodes if node.op == "If")
    assert set(choice.captures) == {"a.captured", "k.captured", "x.captured", "l"}


def test_a_flip_takes_the_other_branch_and_goes_without_a_trace() -> None:
    flippable, flip = with_flip(graph())
    chosen, other = (run(flippable, **{flip: value})["y"] for value in (False, True))
    np.testing.assert_array_equal(chosen, run(graph())["y"])
    assert not np.array_equal(chosen, other)
    proto = flippable.proto
    without_flip(proto, flip)
    assert proto == graph().proto


def test_nodes_stand_behind_what_they_and_their_subgraphs_read() -> None:
    proto = graph().proto
    sort_nodes(proto.graph)
    assert proto == graph().proto
    proto.graph.node.insert(0, proto.graph.node.pop())
    sort_nodes(proto.graph)
    onnx.checker.check_model(proto)
    same(graph(), Graph(proto))
    proto.graph.node[0].input[0] = "y"
    with pytest.raises(InputError, match="circle"):
        sort_nodes(proto.graph)
