"""Where the states come from that a recurrent layer starts from."""

from __future__ import annotations

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


def test_a_stored_state_of_every_sample_is_no_input_of_the_model() -> None:
    nodes = [
        helper.make_node("Shape", ["t"], ["count"], start=1, end=2),
        helper.make_node("Constant", [], ["one"], value_ints=[1]),
        helper.make_node("Concat", ["one", "count", "one"], ["dims"], axis=0),
        helper.make_node("Expand", ["learned", "dims"], ["s0"]),
    ]
    cell = CellModel("LSTM", ends="last", more=nodes, extra={5: "s0"}, stored={"learned": drawn(3, 1, 1, 12)})
    reasons = {layer.name: layer.reason for layer in inspect(cell.build()).layers}
    assert reasons["cell"] == "LSTM 'cell' starts from 'learned', which is stored and repeated for every sample"


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
