"""`quantize`: int8 and float16 of a model as it is, checked as everything else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from builders.commands import Ran
from builders.mlp import mlp, rows, saved
from builders.models import run as outputs
from pcns_onnx import GateError, UnsupportedError, quantize


def wide() -> onnx.ModelProto:
    """Large enough that its weights outweigh the scales."""
    return mlp(widths=(6, 64, 48, 3))


def test_int8_is_smaller_computes_the_same_and_is_as_wide(tmp_path: Path) -> None:
    model, x = wide(), rows()
    result = quantize(model, x, tmp_path / "q.onnx")
    small = onnx.load(tmp_path / "q.onnx")
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in small.graph.node}
    assert [(i.name, o.name) for i, o in zip(small.graph.input, small.graph.output, strict=True)] == [("x", "y")]
    error = np.linalg.norm(outputs(model, x) - outputs(small, x)) / np.linalg.norm(outputs(model, x))
    assert error < 0.05
    report = result.report
    assert report.after.macs == report.before.macs and report.after.bytes < report.before.bytes
    assert report.after.bytes == (tmp_path / "q.onnx").stat().st_size
    assert report.agreement.samples == 30  # the tenth that is held out
    assert result.model.SerializeToString() == quantize(model, x).model.SerializeToString()


def test_float16_instead() -> None:
    result = quantize(wide(), rows(), fp16=True)
    kinds = {tensor.data_type for tensor in result.model.graph.initializer if tensor.dims}
    assert onnx.TensorProto.FLOAT16 in kinds and result.report.options["precision"] == "fp16"


def test_it_is_what_shrink_makes_beside_its_own_model(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = saved(tmp_path, wide())
    assert run("shrink", model, "--data", data, "--width", 0.5, "--int8", "-o", "small.onnx", "-q").code == 0
    assert run("quantize", "small.onnx", "--data", data, "-o", "again.onnx", "-q").code == 0
    x = rows()
    assert np.array_equal(outputs(onnx.load("small.int8.onnx"), x), outputs(onnx.load("again.onnx"), x))


def test_a_gate_that_fails_leaves_a_report_and_no_model(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = saved(tmp_path, wide())
    ran = run("quantize", model, "--data", data, "--max-error", 1e-9, "--report", "r.json", "-o", "q.onnx")
    assert ran.code == 4 and not Path("q.onnx").exists()
    (gate,) = json.loads(Path("r.json").read_text())["gates"]
    assert gate["name"] == "int8 max-error"
    with pytest.raises(GateError):
        quantize(wide(), rows(), max_error=1e-9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "nowhere.npz", "-o", "q.onnx"], "nowhere.npz"),
        (["--data", "data.npz"], "Missing option '-o'"),
        (["--data", "data.npz", "-o", "model.onnx"], "model.onnx"),
    ],
)
def test_bad_input_is_one_line(run: Callable[..., Ran], tmp_path: Path, words: list[str], message: str) -> None:
    saved(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    ran = run("quantize", "model.onnx", *words)
    (line,) = ran.err.strip().splitlines()
    assert ran.code == 2 and message in line
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_is_not_in_float32_is_refused() -> None:
    half = quantize(wide(), rows(), fp16=True).model
    with pytest.raises(UnsupportedError, match="int8"):
        quantize(half, rows())
