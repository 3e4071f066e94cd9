"""What onnxruntime takes is taken: repaired with a note where onnx's checker minds, functions and branches inlined."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.chains import ints, node, random
from builders.control_flow import WIDE, branch, called_twice, chosen, conditional, constant_if, doubled, rate_if, typed
from builders.models import Array, build, relative, run
from pcns_onnx import InputError, NothingToShrinkError, inspect, shrink
from pcns_onnx.graph import Graph, Program
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.runtime.engine import Engine

X = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)


def plain(ir_version: int = 8) -> onnx.ModelProto:
    weights = {"w": doubled(5, WIDE), "v": random(WIDE, 4)}
    nodes = [node("Gemm", "x w", "a"), node("Relu", "a", "b"), node("Gemm", "b v", "y")]
    model = build(nodes, weights, ["N", 5])
    model.ir_version = ir_version
    return model


# -- repairs -----------------------------------------------------------------------------------


def half_listed() -> onnx.ModelProto:
    model = plain(3)
    model.graph.input.append(typed("v", [WIDE, 4]))
    return model


def backwards() -> onnx.ModelProto:
    model = plain()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def changed(change: Callable[[onnx.GraphProto], object]) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        model = plain()
        change(model.graph)
        return model

    return make


def gelu() -> onnx.ModelProto:
    model = plain()
    model.graph.node[1].op_type, model.graph.node[1].domain = "Gelu", "com.microsoft"
    return model


def normalizer() -> onnx.ModelProto:
    model = plain()
    model.graph.node.extend([node("Normalizer", "z", "y", domain="ai.onnx.ml")])
    model.graph.node[2].output[0] = "z"
    return model


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "initializers that an old version would list": (lambda: plain(3), "not listed"),
    "some of them listed": (half_listed, "not listed"),
    "nodes in front of what they read": (backwards, "in front of"),
    "a graph without a name": (changed(lambda graph: graph.ClearField("name")), "no name"),
    "an output without a type": (changed(lambda graph: graph.output[0].ClearField("type")), "no type or shape"),
    "an output without a shape": (
        changed(lambda graph: graph.output[0].type.tensor_type.ClearField("shape")), "no type or shape"),
    "an initializer twice": (changed(lambda graph: graph.initializer.append(graph.initializer[0])), "initializer"),
    "an initializer without a name": (
        changed(lambda graph: graph.initializer.append(numpy_helper.from_array(np.ones(2, "f"), ""))), "initializer"),
    "a tensor said twice": (
        changed(lambda graph: graph.initializer[1].float_data.extend(numpy_helper.to_array(graph.initializer[1]).flat)),
        "initializer"),
    "an operator set that is not imported": (gelu, "not imported"),
    "one of onnx's own that is not imported": (normalizer, "not imported"),
}  # fmt: skip
"""Models that onnxruntime runs and onnx's checker refuses, and a word of what is said of them."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_only_the_checker_minds_is_put_right_and_said(name: str) -> None:
    make, word = REFUSED[name]
    model = make()
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    loaded = Graph.load(model)
    assert any(word in note for note in loaded.notes)
    onnx.checker.check_model(loaded.proto, full_check=True)
    assert np.array_equal(run(loaded.proto, X), run(model, X))
    if name != "one of onnx's own that is not imported":
        result = shrink(model, X, width=0.5, multiple="1", refine=0)
        onnx.checker.check_model(result.model, full_check=True)
        assert any(word in text for text in result.report.warnings)
        assert relative(run(model, X), run(result.model, X)) < 1e-3
    assert any(word in text for text in inspect(model).warnings)


def test_order_is_found_again_inside_branches_and_what_they_capture_counts() -> None:
    part = branch("t", 1, "r")
    nodes = list(part.node)[::-1]
    del part.node[:]
    part.node.extend(nodes)
    item = helper.make_node("If", ["c"], ["y"], then_branch=part, else_branch=branch("e", -1, "r"))
    makes_c = [node("ReduceMax", "x", "top", keepdims=0), node("Greater", "top zero", "c")]
    model = build([node("Relu", "x", "r"), *makes_c, chosen("c", "y", "r")], {"zero": random()}, ["N", 5])
    model.graph.node[3].CopyFrom(item)
    model.graph.node.insert(0, model.graph.node.pop())
    loaded = Graph.load(model).proto
    onnx.checker.check_model(loaded, full_check=True)
    assert [n.op_type for n in loaded.graph.node] == ["Relu", "ReduceMax", "Greater", "If"]


def test_a_sound_model_is_taken_as_it_is() -> None:
    model = plain()
    assert Graph.load(model).proto == model and not Graph.load(model).notes


@pytest.mark.parametrize("size", [2, 64, 4096])
def test_of_two_initializers_of_a_name_none_is_chosen(size: int) -> None:
    """onnxruntime takes one or the other, depending on their size."""
    model = build([node("Add", "x w", "y")], {"w": np.ones(size, np.float32)}, ["N", size])
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(size, np.float32), "w"))
    with pytest.raises(InputError, match=r"not a valid ONNX model: .*w"):
        Graph.load(model)


def test_what_cannot_be_put_right_is_refused_with_its_own_error() -> None:
    model = backwards()
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(InputError, match=r"not a valid ONNX model: .*"):
        Graph.load(model)


@pytest.mark.parametrize("dims", [["N", 7], [1, 2, 3]], ids=["size", "rank"])
def test_an_output_gets_a_shape_that_it_can_have(dims: list[str | int]) -> None:
    model = plain()
    model.graph.output[0].CopyFrom(typed("y", dims))
    small = shrink(model, X, width=0.5, multiple="1", refine=0).model
    onnx.checker.check_model(small, full_check=True)


def test_a_constant_without_a_value_is_refused_in_one_line() -> None:
    model = plain()
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"]))
    with pytest.raises(InputError, match="Constant 'k' has no value"):
        Graph.load(model)


# -- branches ----------------------------------------------------------------------------------

YES, NO = np.array(True), np.array(False)


def captured_output() -> onnx.ModelProto:
    """The branch puts out what was computed in front of it, and a constant of its own, both through nothing."""
    own = numpy_helper.from_array(random(1, 4), "own")
    then = helper.make_graph([node("Identity", "r", "k")], "then", [], [typed("k", None), typed("own", [1, 4])], [own])
    other = helper.make_graph(
        [node("Neg", "r", "k"), node("Neg", "z", "o")], "else", [], [typed("k", None), typed("o", None)]
    )
    for part in (then, other):
        for output in part.output:
            output.CopyFrom(typed(output.name, ["N", 4]))
    item = helper.make_node("If", ["c"], ["p", "q"], then_branch=then, else_branch=other)
    ends = [node("Gemm", "x w", "r"), item, node("Add", "p q", "y")]
    return build(ends, {"w": random(5, 4), "c": YES, "z": random(1, 4)}, ["N", 5])


def nested() -> onnx.ModelProto:
    """A constant If inside the branch that another takes; the inner condition is made in the branch."""
    outer = helper.make_graph([node("Not", "no", "inside"), chosen("inside", "t2")], "outer", [], [typed("t2")])
    item = helper.make_node("If", ["c"], ["y"], name="outer", then_branch=outer, else_branch=branch("e2", -1))
    return build([item], {"c": YES, "no": NO}, ["N", 5])


def two() -> onnx.ModelProto:
    """Two Ifs in turn, with the same names inside, which the graph around them has too."""
    nodes = [node("Gemm", "x s", "a"), chosen("c", "u", "a"), node("Gemm", "u s2", "b"), chosen("d", "y", "b")]
    return build(nodes, {"s": random(5, 5), "s2": random(4, 5), "c": YES, "d": NO}, ["N", 5])


def from_a_shape() -> onnx.ModelProto:
    nodes = [node("Shape", "x", "s"), node("Gather", "s one", "n"), node("Equal", "n five", "c")]
    return conditional(nodes, {"one": np.array(1), "five": np.array(5)})


def needed_by_one() -> onnx.ModelProto:
    """A layer in front of the If that only the other branch reads."""
    then, other = branch("t", 1), branch("e", -1, "h")
    item = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    return build([node("MatMul", "x first", "h"), item], {"c": YES, "first": random(5, 5)}, ["N", 5])


CONSTANT: dict[str, Callable[[], onnx.ModelProto]] = {
    "stored": lambda: conditional([], {"c": YES}),
    "stored, not taken": lambda: conditional([], {"c": NO}),
    "a list of one": lambda: conditional([], {"c": np.array([True])}),
    "a Constant": lambda: conditional([helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(NO))], {}),
    "computed": constant_if,
    "of several": lambda: conditional(
        [node("Not", "a", "b"), node("And", "b d", "f"), node("Or", "f a", "c")], {"a": NO, "d": YES}),
    "compared": lambda: conditional([node("GreaterOrEqual", "a b", "c")], {"a": random() * 0, "b": random() * 0}),
    "cast": lambda: conditional([node("Cast", "a", "c", to=TensorProto.BOOL)], {"a": np.array(1.0, np.float32)}),
    "nested": nested,
    "two of the same names": two,
    "what is put out comes from outside": captured_output,
    "from a shape that is fixed": from_a_shape,
    "a layer for the other branch": needed_by_one,
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTANT)
def test_a_branch_that_is_always_taken_stands_in_the_graph(name: str) -> None:
    model = CONSTANT[name]()
    graph = (
        Canonical.of(Graph.load(model)).original
        if name != "from a shape that is fixed"
        else Canonical.of(Graph.load(model)).typed
    )
    assert "If" not in {n.op for n in graph.nodes}
    onnx.checker.check_model(graph.proto, full_check=True)
    names = [n.name for n in graph.nodes if n.name]
    assert len(names) == len(set(names))
    assert relative(run(model, X), run(graph.proto, X)) < 1e-6
    assert not any(layer.kind == "MatMul" for layer in inspect(model).layers), "what only the other branch read is gone"
    if name != "what is put out comes from outside":
        result = shrink(model, X, width=0.5, multiple="1", refine=0)
        onnx.checker.check_model(result.model, full_check=True)
        if name != "two of the same names":
            assert relative(run(model, X), run(result.model, X)) < 1e-3


def test_old_models_list_what_comes_out_of_a_branch() -> None:
    model = conditional([], {"c": YES}, opset=11)
    model.ir_version = 3
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    onnx.checker.check_model(Graph.load(model).proto, full_check=True)


def test_an_input_may_be_made_the_constant_that_steers() -> None:
    model = rate_if()
    reasons = {layer.name: layer.reason for layer in inspect(model).layers}
    assert reasons == {"choice": "If 'choice' chooses by input 'rate': fix it with --constant rate=16000"}
    for rate in (16000, 8000):
        fixed = Graph.load(model).with_constants({"rate": np.array(rate, np.int32)})
        assert [spec.name for spec in fixed.inputs] == ["x"] and "If" not in {n.op for n in fixed.nodes}
        onnx.checker.check_model(fixed.proto, full_check=True)
        session = Engine().session(Program(model.SerializeToString()))
        assert relative(session.run({"x": X, "rate": np.array(rate)})["y"], run(fixed.proto, X)) < 1e-6


@pytest.mark.parametrize(
    ("values", "line"), [({"speed": ints(1)}, "'speed' is no input"), ({"rate": np.array("fast")}, "not of its type")]
)
def test_a_constant_that_does_not_fit_is_refused(values: dict[str, Array], line: str) -> None:
    with pytest.raises(InputError, match=line):
        Graph.load(rate_if()).with_constants(values)


def test_a_choice_by_a_shape_is_said() -> None:
    nodes = [node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Greater", "n five", "c")]
    model = conditional(nodes, {"zero": np.array(0), "five": np.array(5)})
    (layer,) = inspect(model).layers
    assert layer.reason == "If 'choice' chooses by the shape of 'x': fixed sizes there would settle it"
    with pytest.raises(NothingToShrinkError):
        shrink(model, X, width=0.5)


# -- functions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [16, 17, 18])
def test_layers_inside_functions_are_layers(version: int) -> None:
    """Also where the function says another version in which its operators are the same."""
    model = called_twice(version)
    loaded = Graph.load(model)
    assert not loaded.functions and "my.own" not in {o.domain for o in loaded.proto.opset_import}
    names = [n.name for n in loaded.nodes if n.name]
    assert len(names) == len(set(names)) >= 4
    result = shrink(model, X, width=0.5, multiple="1", refine=0)
    assert [plan.width for plan in result.plan.groups.values()] == [WIDE // 2, WIDE // 2]
    onnx.checker.check_model(result.model, full_check=True)
    assert relative(run(model, X), run(result.model, X)) < 1e-3
