"""The cells that are differentiated are onnxruntime's, and their slopes are what the error changes by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper

from builders.cells import CellModel, drawn, samples
from builders.models import Array
from pcns_onnx.graph import Graph, Program
from pcns_onnx.ops.recurrent import GATES
from pcns_onnx.reconstruction.recurrent.gradient import CellGradient, DirectionWeights, Sequences, is_differentiable
from pcns_onnx.runtime.engine import Engine

DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
LENGTHS = np.array([7, 3, 5, 1], dtype=np.int32)
KINDS = [
    (op, direction, last) for op in GATES for direction in DIRECTIONS for last in ((0, 1) if op == "GRU" else (0,))
]


def sides_of(weights: dict[str, Array], op: str, is_reset_last: bool) -> list[DirectionWeights]:
    sides = []
    for w, r, both in zip(weights["W"], weights["R"], weights["B"], strict=True):
        size, (wb, rb) = r.shape[1], np.split(both, 2)
        b, inner = wb + rb, np.zeros(size, dtype=np.float32)
        if is_reset_last:
            b[2 * size :], inner = wb[2 * size :], rb[2 * size :]
        sides.append(DirectionWeights(w, r, b, inner))
    return sides


@pytest.mark.parametrize("op, direction, last", KINDS)
def test_it_runs_as_onnxruntime_does(op: str, direction: str, last: int) -> None:
    count = len(DIRECTIONS[direction])
    lengths = helper.make_tensor_value_info("lengths", TensorProto.INT32, ["N"])
    states = {5: drawn(5, count, 4, 12)} | ({6: drawn(6, count, 4, 12)} if op == "LSTM" else {})
    attributes = {"linear_before_reset": last} if op == "GRU" else {}
    cell = CellModel(op, direction, extra={4: "lengths", **states}, graph_inputs=[lengths], attributes=attributes)
    x = samples(cell, 4)
    session = Engine().session(Program(Graph(cell.build()).exposing(["Y"]).proto.SerializeToString()))
    expected = np.asarray(session.run({"x": x, "lengths": LENGTHS})["Y"])
    mask = np.arange(7)[:, None] < LENGTHS
    sequences = Sequences(x.transpose(1, 0, 2), states[5], states.get(6, states[5]), mask)
    y, _ = CellGradient(op, DIRECTIONS[direction], bool(last)).run(sides_of(cell.weights(), op, bool(last)), sequences)
    flat = expected.transpose(0, 2, 1, 3).reshape(7, 4, -1)
    assert np.abs((y - flat)[mask]).max() < 1e-5


@pytest.mark.parametrize("op, direction, last", KINDS)
def test_slopes_are_what_the_error_changes_by(op: str, direction: str, last: int) -> None:
    generator = np.random.default_rng(3)
    count, gates, size = len(DIRECTIONS[direction]), GATES[op], 4

    def some(*shape: int) -> Array:
        return generator.standard_normal(shape) * 0.5

    sides = [
        DirectionWeights(some(gates * size, 3), some(gates * size, size), some(gates * size), some(size))
        for _ in range(count)
    ]
    mask = np.arange(7)[:, None] < LENGTHS
    sequences = Sequences(some(7, 4, 3), some(count, 4, size), some(count, 4, size), mask)
    cell, aim = CellGradient(op, DIRECTIONS[direction], bool(last)), some(7, 4, count * size)

    def error() -> float:
        return 0.5 * float((((cell.run(sides, sequences)[0] - aim) ** 2) * mask[:, :, None]).sum())

    y, kept = cell.run(sides, sequences)
    slopes = cell.gradients(sides, sequences, kept, (y - aim) * mask[:, :, None])
    for side, own in zip(sides, slopes, strict=True):
        for array, slope in zip(side.all, own, strict=True):
            place = tuple(int(generator.integers(n)) for n in array.shape)
            before, errors = array[place], []
            for step in (1e-5, -1e-5):
                array[place] = before + step
                errors.append(error())
            array[place] = before
            assert (errors[0] - errors[1]) / 2e-5 == pytest.approx(float(slope[place]), abs=1e-4)


def test_what_has_functions_of_its_own_is_left_as_it_was_solved() -> None:
    plain = CellModel("LSTM")
    others = [
        replace(plain, attributes={"clip": 1.0}),
        replace(plain, attributes={"activations": ["Sigmoid", "Relu", "Tanh"]}),
        replace(plain, extra={7: drawn(1, 1, 36)}),
    ]
    nodes = [Graph(cell.build()).node("Y") for cell in (plain, *others)]
    assert [is_differentiable(node) for node in nodes] == [True, False, False, False]
