"""Known activations are what onnxruntime makes of them, and their slopes are slopes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from builders.models import build, run
from pcns_onnx.graph import Graph
from pcns_onnx.reconstruction.nonlinearity import KNOWN, NONE, Nonlinearity, known_nonlinearity

ATTRIBUTES: dict[str, tuple[dict[str, Any], ...]] = {"LeakyRelu": ({}, {"alpha": 0.3})}
ROWS = np.random.default_rng(0).normal(0, 2, (50, 4)).astype(np.float32)


@pytest.mark.parametrize(("op", "attrs"), [(op, attrs) for op in KNOWN for attrs in ATTRIBUTES.get(op, ({},))], ids=str)
def test_a_known_nonlinearity_is_that_of_onnxruntime(op: str, attrs: dict[str, Any]) -> None:
    model = build([helper.make_node(op, ["x"], ["y"], **attrs)], {}, ["N", 4])
    known = known_nonlinearity(Graph.load(model).nodes[0])
    assert known is not None and known.slope is not None
    expected = run(model, ROWS)
    np.testing.assert_allclose(known.value(ROWS), expected, atol=1e-6)
    exact = ROWS.astype(np.float64)
    difference = Nonlinearity(known.value).slope_at(exact)
    smooth = np.abs(exact) > 0.01  # kinks have no slope
    np.testing.assert_allclose(known.slope_at(exact)[smooth], difference[smooth], atol=1e-5)
    assert known.value(ROWS).dtype == known.slope_at(ROWS).dtype == np.float32


def test_where_nothing_lies_between_the_slope_is_one() -> None:
    assert (NONE.value(ROWS) == ROWS).all() and (NONE.slope_at(ROWS) == 1).all()


def test_others_are_not_guessed() -> None:
    model = build([helper.make_node("HardSigmoid", ["x"], ["y"])], {}, ["N", 4])
    assert known_nonlinearity(Graph.load(model).nodes[0]) is None
