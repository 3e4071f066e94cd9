"""A recurrent layer that lost units is solved again: free-running, and refined with what reads it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from builders.cells import CellModel, drawn, samples
from builders.models import relative, run
from pcns_onnx import shrink
from pcns_onnx.ops.recurrent import GATES


def lean(op: str, direction: str = "forward") -> CellModel:
    return CellModel(op, direction, units=16, seed=6)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("op", GATES)
def test_refinement_never_makes_it_worse_and_mostly_better(op: str, direction: str) -> None:
    cell = lean(op, direction)
    model, x = cell.build(), samples(cell, 256)
    results = [shrink(model, x, width=0.5, multiple="1", refine=steps, threads=1, include="cell") for steps in (0, 150)]
    fresh = samples(cell, 60, seed=77)
    losses = [relative(run(model, fresh), run(result.model, fresh)) for result in results]
    assert losses[1] < losses[0] < 0.8
    info = results[1].report.groups[0].refined["cell"]
    assert info.after < info.before


@pytest.mark.parametrize("op", GATES)
def test_a_cell_that_has_lost_nothing_is_left_as_it_was(op: str) -> None:
    """What stands in front is twice there: the cell reads half of it, and does the same."""
    cell = CellModel(op, front=8, seed=3)
    first = drawn(9, 5, 8)
    first[:, 4:] = first[:, :4]
    model = cell.build()
    for tensor in model.graph.initializer:
        if tensor.name == "W0":
            tensor.CopyFrom(onnx.numpy_helper.from_array(first, "W0"))
    result = shrink(model, samples(cell), width=0.5, multiple="1", refine=30, threads=1, exclude="cell")
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer}
    before = cell.weights()
    assert np.allclose(weights["R"], before["R"], atol=1e-6)
    fresh = samples(cell, 20, seed=5)
    assert relative(run(model, fresh), run(result.model, fresh)) < 1e-5


def test_the_same_samples_give_the_same_bytes() -> None:
    cell = lean("GRU")
    twice = [
        shrink(cell.build(), samples(cell), width=0.5, multiple="1", refine=10, threads=1).model.SerializeToString()
        for _ in range(2)
    ]
    assert twice[0] == twice[1]


def test_few_samples_are_enough_to_go_on() -> None:
    """None to keep aside, and one at a time."""
    cell = lean("LSTM")
    result = shrink(cell.build(), samples(cell, 3), width=0.5, multiple="1", refine=10, threads=1, batch=1)
    assert np.isfinite(run(result.model, samples(cell, 2))).all()
