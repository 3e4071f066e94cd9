"""Where the states come from that a recurrent layer starts from."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.cells import DIRECTIONS, CellModel, drawn, samples
from builders.models import Array, relative
from pcns_onnx import inspect, shrink
from pcns_onnx.graph import Program
from pcns_onnx.runtime.engine import Engine

KINDS = {"float": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "double": TensorProto.DOUBLE}


def output(model: onnx.ModelProto, x: Array) -> Array:
    return np.asarray(Engine().session(Program(model.SerializeToString())).run({"x": x})["y"])


def filled(value: onnx.TensorProto) -> CellModel:
    """A cell that starts from ConstantOfShape of a size that the batch gives, as float."""
    nodes = [
        helper.make_node("Shape", ["t"], ["count"], start=1, end=2),
        helper.make_node("Constant", [], ["one"], value_ints=[1]),
        helper.make_node("Constant", [], ["h"], value_ints=[12]),
        helper.make_node("Concat", ["one", "count", "h"], ["dims"], axis=0),
        helper.make_node("ConstantOfShape", ["dims"], ["filled"], value=value),
        helper.make_node("Cast", ["filled"], ["s0"], to=TensorProto.FLOAT),
    ]
    return CellModel("GRU", planted=3, ends="last", more=nodes, extra={5: "s0"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_raw", [False, True])
def test_only_states_of_zeros_are_taken_for_zeros(kind: str, is_raw: bool) -> None:
    def value(number: float) -> onnx.TensorProto:
        tensor = helper.make_tensor("", KINDS[kind], [1], [number])
        return numpy_helper.from_array(numpy_helper.to_array(tensor)) if is_raw else tensor

    full = {layer.name: layer.reason for layer in inspect(filled(value(0.5)).build()).layers}
    assert full["cell"] == "GRU 'cell' starts from 's0', which no layer makes"
    empty = filled(value(0.0)).build()
    result = shrink(empty, samples(filled(value(0.0))), width=0.75, multiple="1", refine=0, threads=1)
    x = samples(filled(value(0.0)), 5, seed=2)
    assert relative(output(empty, x), output(result.model, x)) < 1e-5


@pytest.mark.parametrize("written", ["ones", "sizes"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_stored_state_that_is_repeated_for_every_sample_goes_along(direction: str, written: str) -> None:
    directions = 2 if direction == "bidirectional" else 1
    ends = ("directions", "units") if written == "sizes" else ("one", "one")
    nodes = [
        helper.make_node("Shape", ["t"], ["count"], start=1, end=2),
        helper.make_node("Constant", [], ["one"], value_ints=[1]),
        helper.make_node("Constant", [], ["units"], value_ints=[12]),
        helper.make_node("Constant", [], ["directions"], value_ints=[directions]),
        helper.make_node("Concat", [ends[0], "count", ends[1]], ["dims"], axis=0),
        helper.make_node("Expand", ["learned", "dims"], ["s0"]),
        helper.make_node("Expand", ["other", "dims"], ["c0"]),
    ]
    state = drawn(3, directions, 1, 12)
    for side in range(directions):  # as CellModel plants its copies
        for at in range(3):
            state[side, 0, (5 + 4 * side + at) % 12] = state[side, 0, (3 * side + at) % 12]
    cell = CellModel(
        "LSTM",
        direction,
        ends="last",
        planted=3,
        more=nodes,
        extra={5: "s0", 6: "c0"},
        stored={"learned": state, "other": state * 2},
    )
    model, x = cell.build(), samples(cell, 200)
    result = shrink(model, x, width=0.75, multiple="1", refine=0, threads=1)
    assert [group.kept for group in result.report.groups] == [9 * directions]
    fresh = samples(cell, 7, seed=4)
    assert relative(output(model, fresh), output(result.model, fresh)) < 1e-4


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_a_decoder_that_starts_from_an_encoders_states_goes_with_it(op: str, direction: str) -> None:
    names = ("W", "R", "B")
    encoder = CellModel(op, direction, planted=3, seed=50).weights()
    nodes = [
        helper.make_node(
            op, ["t", *(f"{name}e" for name in names)], ["", "he", "ce"][: 2 + (op == "LSTM")], name="encoder",
            hidden_size=12, direction=direction,
        )
    ]  # fmt: skip
    states = {5: "he"} | ({6: "ce"} if op == "LSTM" else {})
    stored = {f"{name}e": encoder[name] for name in names}
    cell = CellModel(op, direction, planted=3, more=nodes, extra=states, stored=stored)
    model = cell.build()
    result = shrink(model, samples(cell), width=0.75, multiple="1", refine=0, threads=1)
    assert [group.kept for group in result.report.groups] == [18 if direction == "bidirectional" else 9]
    x = samples(cell, 5, seed=2)
    assert relative(output(model, x), output(result.model, x)) < 1e-5


@pytest.mark.parametrize("reduce", ["ReduceSum", "ReduceMean", "ReduceMax"])
def test_directions_that_are_reduced_keep_the_same_units(reduce: str) -> None:
    cell = CellModel("GRU", "bidirectional", ends="steps")
    model = cell.build()
    weights = {name: array.copy() for name, array in cell.weights().items()}
    for side in range(2):  # the last three units of both directions do what the first three do
        for gate in range(6):
            for at in range(3):
                source, target = 12 * gate + at, 12 * gate + 9 + at
                weights["B"][side, target] = weights["B"][side, source]
                if gate < 3:
                    weights["W"][side, target] = weights["W"][side, source]
                    weights["R"][side, target] = weights["R"][side, source]
    kept = [node for node in model.graph.node if node.op_type in ("Transpose", "GRU") and "u" not in node.output]
    del model.graph.node[:]
    attribute: dict[str, Any] = {"axes": [1]} if reduce != "ReduceSum" else {}
    inputs = ["Y"] if attribute else ["Y", "axes"]
    model.graph.node.extend(
        [
            *kept,
            helper.make_node(reduce, inputs, ["s"], keepdims=0, **attribute),
            helper.make_node("Transpose", ["s"], ["v"], perm=[1, 0, 2]),
            helper.make_node("MatMul", ["v", "V"], ["y"], name="head"),
        ]
    )
    weights |= {"V": drawn(3, 12, 3), "axes": np.array([1])}
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.checker.check_model(model, full_check=True)
    result = shrink(model, samples(cell, 200), width=0.75, multiple="1", refine=0, threads=1)
    assert [(group.width, group.kept) for group in result.report.groups] == [(12, 9)]
    fresh = samples(cell, 7, seed=4)
    assert relative(output(model, fresh), output(result.model, fresh)) < 1e-4
