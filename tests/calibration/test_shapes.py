"""`--shape`: sizes that a model leaves open, stated by the caller."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from builders.chains import node
from builders.mlp import mlp, rows
from builders.models import build
from pcns_onnx import InputError, inspect, shrink


def open_sizes() -> onnx.ModelProto:
    """Channels are joined with positions whose number is open: only a size tells how wide the last layer is."""
    rng = np.random.default_rng(0)
    weights = {
        "w0": rng.standard_normal((8, 3, 1, 1)).astype(np.float32),
        "w1": rng.standard_normal((8 * 16, 5)).astype(np.float32),
    }
    nodes = [
        node("Conv", "x w0", "h", name="a"),
        node("Relu", "h", "r"),
        node("Flatten", "r", "f"),
        node("Gemm", "f w1", "y", name="b"),
    ]
    return build(nodes, weights, ("N", 3, "H", "W"))


def test_without_sizes_costs_are_hidden_and_that_is_said() -> None:
    found = inspect(open_sizes())
    assert any("--shape" in warning for warning in found.warnings)
    assert found.layers[0].reason is not None


def test_with_sizes_costs_are_known_and_the_layer_can_shrink() -> None:
    found = inspect(open_sizes(), shape="x=1x3x4x4")
    assert [layer.macs for layer in found.layers] == [8 * 3 * 16, 8 * 16 * 5]
    assert found.layers[0].reason is None
    assert found.warnings == []


@pytest.mark.parametrize("text", ["x", "x=", "=1x3", "x=1x3x-4", "x=1x3x0", "x=ax3"])
def test_a_shape_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--shape .* is not understood"):
        inspect(open_sizes(), shape=text)


@pytest.mark.parametrize(
    ("text", "line"), [("z=1x3x4x4", "names 'z', which is no input: the model has x"), ("x=1x3", "gives 'x' 2 sizes")]
)
def test_a_shape_that_does_not_fit_the_model_is_refused(text: str, line: str) -> None:
    with pytest.raises(InputError, match=line):
        inspect(open_sizes(), shape=text)


@pytest.mark.parametrize("size", [-1, 0])
def test_a_size_below_one_is_an_open_size(size: int, tmp_path: Path) -> None:
    """Older exporters write it so, and onnxruntime runs -1 as if it were open (0 it refuses by itself)."""
    model = mlp()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = size
    layers = inspect(model, rows(40)).layers
    assert [layer.macs for layer in layers] == [layer.macs for layer in inspect(mlp(), rows(40)).layers]
    if size:
        shrink(model, rows(200), tmp_path / "o.onnx", width=0.5, refine=0, batch=8)
        assert (tmp_path / "o.onnx").exists()
