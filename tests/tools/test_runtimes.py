"""The benchmark of runtimes without installing any: its table, and the worker in onnxruntime as it is here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx

from benchmarks.runtime_cases.runtimes import RUNTIMES
from benchmarks.runtimes import WORKER, cell, difference, outputs_of, table
from builders.mlp import mlp


def test_every_runtime_has_a_name_of_its_own_and_versions() -> None:
    assert len({runtime.name for runtime in RUNTIMES}) == len(RUNTIMES)
    for runtime in RUNTIMES:
        assert runtime.pins and (runtime.opener is None) == bool(runtime.browser)
        assert all("==" in pin or "@" in pin for pin in runtime.pins)


def test_the_worker_says_what_runs_and_why_the_rest_does_not(tmp_path: Path) -> None:
    model, x = mlp(widths=(6, 8, 3)), np.ones((1, 6), np.float32)
    (name,), (output,) = ([spec.name for spec in specs] for specs in (model.graph.input, model.graph.output))
    onnx.save(model, tmp_path / "good.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    x.tofile(tmp_path / "x.bin")
    inputs = [{"name": name, "file": str(tmp_path / "x.bin"), "dtype": "float32", "shape": x.shape}]
    told = {"runtime": "onnxruntime", "inputs": inputs, "outputs": [output], "seconds": 0.01}
    for second in ("good", "bad"):
        files = [str(tmp_path / f"{stem}.onnx") for stem in ("good", second)]
        (tmp_path / "job.json").write_text(json.dumps(told | {"files": files}))
        subprocess.run([sys.executable, str(WORKER), str(tmp_path / "job.json")], check=True)
        found = json.loads((tmp_path / "outcome.json").read_text())
        assert "outputs" in found["files"][0]
        if second == "bad":
            assert found["files"][1]["stage"] == "open" and "ratio" not in found
        else:
            first, again = (outputs_of(file, tmp_path) for file in found["files"])
            assert difference(first, again) == 0 and found["ratio"] > 0 and len(found["ms"]) == 2


def test_differences_are_a_share_of_the_largest_value() -> None:
    here = [np.array([1.0, -4.0])]
    assert difference([np.array([[1.0, -3.0]])], here) == 0.25
    assert difference([np.array([1.0])], here) == float("inf")


def test_a_cell_says_how_fast_and_how_equal_or_which_file_fails() -> None:
    fine = {
        "pair": "m, int8",
        "runtime": "openvino",
        "files": [{"difference": 0.0}, {"difference": 3e-7}],
        "ratio": 0.5,
    }
    failed = fine | {"runtime": "tract", "files": [{"difference": 0.0}, {"stage": "run", "why": "a | b\nc"}]}
    assert cell(fine) == "0.50 (3e-7)" and cell(failed) == "run: shrunk"
    text = table([fine, failed], [each for each in RUNTIMES if each.name in ("openvino", "tract")])
    assert "| m, int8 | 0.50 (3e-7) | run: shrunk |" in text and "`a / b c`" in text
