"""Taps that are compressed: the directions are the same whatever part of the rows is multiplied at a time."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.chains import node, random
from builders.contract import surveyed
from pcns_onnx.calibration import layer_inputs
from pcns_onnx.calibration.layer_inputs import InputObserver

TAPS, CHANNELS = 40, 30


def observer() -> InputObserver:
    """Of a Conv of so many taps behind another one."""
    weights = {"W0": random(CHANNELS, 2, 1), "W1": random(5, CHANNELS, TAPS)}
    graph = helper.make_graph(
        [node("Conv", "x W0", "h"), node("Conv", "h W1", "y")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 60])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5, 21])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    loaded, dependencies = surveyed(model)
    layer = dependencies.layer("y")
    return InputObserver(loaded, dependencies.groups[0], layer, next(iter(layer.parts)), np)


def test_taps_are_compressed_alike_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_inputs, "COLUMNS", 8 * CHANNELS)
    rows = np.random.default_rng(0).standard_normal((50, TAPS * CHANNELS)).astype(np.float32)
    rows *= np.repeat(np.linspace(0.1, 3, TAPS), CHANNELS).astype(np.float32)
    bases = []
    for products in (1 << 24, 7 * TAPS**2, 1):
        monkeypatch.setattr(layer_inputs, "_PRODUCTS", products)
        one = observer()
        assert one.is_open
        one.begin(rows)
        assert one._basis is not None
        bases.append(np.asarray(one._basis))
    for basis in bases[1:]:
        np.testing.assert_allclose(np.abs(bases[0].T @ basis), np.eye(8), atol=1e-3)
