"""A recurrent layer that lost units is solved again: free-running, and refined with what reads it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from builders.cells import CellModel, drawn, samples
from builders.models import relative, run
from pcns_onnx import shrink
from pcns_onnx.dependency.dependency_graph import build_dependency_graph
from pcns_onnx.graph import Graph
from pcns_onnx.ops.recurrent import GATES
from pcns_onnx.reconstruction.recurrent.refinement import read_of
from pcns_onnx.rewrite.canonical import Canonical


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


@pytest.mark.parametrize("value", [0.0, 1.0, None])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("op", GATES)
def test_so_are_steps_that_tell_nothing_of_a_direction(op: str, direction: str, value: float | None) -> None:
    """Two sequences of one step: all units of a direction may follow from others."""
    cell = CellModel(op, direction, units=6, inputs=3, steps=1)
    x = samples(cell, 2) if value is None else np.full((2, 1, 3), value, dtype=np.float32)
    model = cell.build()
    result = shrink(model, x, width=0.5, multiple="1", refine=10, threads=1)
    assert np.isfinite(run(result.model, x)).all()
    assert value is None or relative(run(model, x), run(result.model, x)) < 1e-3


def test_what_is_read_counts_in_the_scale_of_the_readers_output() -> None:
    cell = lean("GRU")
    form = Canonical.of(Graph.load(cell.build()))
    dependencies = build_dependency_graph(form.twin, {"x": (2, 7, 5)})
    layer = next(layer for layer in dependencies.layers if layer.name == "cell")
    root = drawn(4, 16, 16).astype(np.float64)
    covariance = root @ root.T
    read = read_of(form.twin, dependencies, layer, covariance)
    assert np.trace(read @ covariance @ read.T) == pytest.approx(1.0, rel=1e-3)
    assert not len(read_of(form.twin, dependencies, layer, 0 * covariance))
