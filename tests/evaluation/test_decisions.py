"""What an output decides is read off the graph, and decisions that flip are counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pcns_onnx import compare
from pcns_onnx.data.columns import Array
from pcns_onnx.evaluation.decisions import DecisionRule, DecisionTally, decision_rules
from pcns_onnx.graph import Graph

X = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)


def net(nodes: Sequence[onnx.NodeProto], kind: int = TensorProto.FLOAT, opset: int = 17, **constants: Any) -> Any:
    """X (N, 6) through `nodes` to y."""
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        [helper.make_tensor_value_info("y", kind, ["A"] * (3 if "s" in constants else 2))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(op: str, inputs: str, output: str, **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attrs)


F = np.float32
CASES: dict[str, tuple[Any, DecisionRule | None]] = {
    "sigmoid": (net([node("Sigmoid", "x", "y")]), DecisionRule("threshold")),
    "hard sigmoid behind an identity": (
        net([node("HardSigmoid", "x", "a"), node("Identity", "a", "y")]), DecisionRule("threshold")),
    "clip": (net([node("Clip", "x lo hi", "y")], lo=F(0), hi=F(1)), DecisionRule("threshold")),
    "clip of six": (net([node("Clip", "x lo hi", "y")], lo=F(0), hi=F(6)), None),
    "softmax": (net([node("Softmax", "x", "y", axis=1)]), DecisionRule("arg-max", 1)),
    "softmax of an old opset": (net([node("Softmax", "x", "y")], opset=11), DecisionRule("arg-max", 1)),
    "softmax, transposed": (
        net([node("Softmax", "x", "a", axis=-1), node("Transpose", "a", "y", perm=[1, 0])]),
        DecisionRule("arg-max", 0)),
    "softmax, reshaped": (
        net([node("Softmax", "x", "a"), node("Reshape", "a s", "y")], s=np.array([-1, 2, 3])),
        DecisionRule("threshold")),
    "score times presence": (
        net([node("Sigmoid", "x", "a"), node("Softmax", "x", "b"), node("Mul", "a b", "y")]),
        DecisionRule("threshold")),
    "sigmoid times its input": (net([node("Sigmoid", "x", "a"), node("Mul", "x a", "y")]), None),
    "boxes beside scores": (
        net([node("Sigmoid", "x", "a"), node("Concat", "x a", "y", axis=1)]),
        DecisionRule("threshold", part=(1, 6, 12))),
    "two scores": (
        net([node("Sigmoid", "x", "a"), node("HardSigmoid", "x", "b"), node("Concat", "a b", "y", axis=1)]),
        DecisionRule("threshold")),
    "a mask, handed on": (
        net([node("Greater", "x t", "m"), node("Not", "m", "n"), node("Unsqueeze", "n one", "u"),
             node("Squeeze", "u one", "y")], TensorProto.BOOL, t=F(0), one=np.array([1])), None),
    "a mask of what a layer makes": (
        net([node("MatMul", "x w", "h"), node("Greater", "h t", "y")], TensorProto.BOOL, t=F(0), w=np.eye(6, dtype=F)),
        DecisionRule("equal")),
    "logits": (net([node("Identity", "x", "y")]), None),
    "classes": (net([node("ArgMax", "x", "y", axis=1)], TensorProto.INT64), DecisionRule("equal")),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_producer_tells_what_is_decided(case: str) -> None:
    model, rule = CASES[case]
    assert decision_rules(Graph.load(model)).get("y") == rule


def scaled(scale: Array, *then: onnx.NodeProto) -> Any:
    return net([node("Mul", "x w", "h"), *then], w=scale.astype(np.float32))


def test_decisions_that_flip_are_counted() -> None:
    a, b = np.ones(6), np.array([1, 1, 1, -1, 1, 1])
    before, after = (scaled(w, node("Sigmoid", "h", "y")) for w in (a, b))
    output = compare(before, after, X, threads=1).agreement.outputs[0]
    assert output.decision == "threshold" and output.flips == pytest.approx(1 / 6)
    before, after = (scaled(w, node("Softmax", "h", "y")) for w in (a, b))
    soft = compare(before, after, X, threads=1).agreement.outputs[0]
    expected = (X.argmax(1) != (X * b).argmax(1)).mean()
    assert soft.decision == "arg-max" and soft.flips == pytest.approx(expected)
    assert soft.argmax_agreement == pytest.approx(1 - expected)


def test_one_yes_or_no_per_sample_has_a_bound() -> None:
    def net_of(shift: float) -> Any:
        weight = np.random.default_rng(0).standard_normal((6, 1)) + shift
        return net([node("MatMul", "x w", "h"), node("Sigmoid", "h", "y")], w=weight.astype(np.float32))

    output = compare(net_of(0.0), net_of(0.3), X, threads=1).agreement.outputs[0]
    assert output.flips is not None and output.flip_bound is not None and output.flips < output.flip_bound < 1
    assert output.argmax_bound is None and output.argmax_agreement is None


def test_of_a_detector_the_unusual_decisions_are_counted_apart() -> None:
    tally = DecisionTally(DecisionRule("threshold"))
    a = np.zeros((10, 100))
    a[:, 0] = 0.9
    b = a.copy()
    b[:5, 0] = 0.1
    tally.update(a, b)
    assert tally.share == pytest.approx(5 / 1000) and tally.share_of_unusual == pytest.approx(5 / 10)
    alike = DecisionTally(DecisionRule("arg-max"))
    alike.update(a, a)
    assert alike.share == alike.share_of_unusual == 0 or alike.share_of_unusual is None
