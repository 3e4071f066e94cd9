"""Healing is asked for by name: without PyTorch one line says what to install, and nobody else ever imports it."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from builders.mlp import mlp, rows, saved
from builders.students import disturbed
from pcns_onnx import InputError, UnsupportedError, heal, shrink
from pcns_onnx.cli.main import main


def test_nothing_else_imports_pytorch() -> None:
    names = "pcns_onnx.cli.main, pcns_onnx.api.shrink, pcns_onnx.api.heal, pcns_onnx.report.schema"
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(find_spec("torch") is not None, reason="PyTorch is installed here")
def test_without_pytorch_one_line_says_what_to_install(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = saved(tmp_path)
    out = tmp_path / "out.onnx"
    words = ["heal", str(model), "--original", str(model), "--data", str(data), "-o", str(out)]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "pip install 'pcns-onnx[heal]'" in error and error.count("\n") == 1 and not out.exists()
    with pytest.raises(UnsupportedError, match=r"pcns-onnx\[heal\]"):
        shrink(mlp(), {"x": rows()}, width=0.5, heal=0)
    with pytest.raises(UnsupportedError, match=r"pcns-onnx\[heal\]"):
        heal(disturbed(mlp()), mlp(), {"x": rows()})


@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed here")
def test_healing_needs_samples() -> None:
    with pytest.raises(InputError, match="--heal learns from the original on samples"):
        shrink(mlp(), None, width=0.5, method="min-weight", heal=0)


@pytest.mark.parametrize(
    ("option", "value"), [("freeze", "*"), ("heal_batch", 8), ("heal_loss", "mse"), ("heal_curve", True), ("rounds", 2)]
)
def test_what_says_how_to_heal_is_refused_where_nothing_heals(option: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"--{option.replace('_', '-')} .*: give --heal, too"):
        shrink(mlp(), {"x": rows(40)}, width=0.5, **{option: value})


@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed here")
def test_what_names_no_layer_is_refused_before_the_solve() -> None:
    with pytest.raises(InputError, match="--freeze 'w9' matches no layer"):
        shrink(mlp(), {"x": rows(40)}, width=0.5, heal=64, freeze=["w0", "w9"])


def test_the_number_of_samples_may_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = saved(tmp_path)
    words = ["shrink", str(model), "--data", str(data), "-o", str(tmp_path / "out.onnx"), "--width", "7"]
    for more in (["--heal"], ["--heal", "4000"], ["--heal", "--seed", "2"]):
        assert main([*words, *more]) == 2
        assert "--width 7 is out of range" in capsys.readouterr().err  # it came to that: --heal was understood
    assert main([*words, "--heal", "many"]) == 2
    assert "'many' is not a valid integer" in capsys.readouterr().err
