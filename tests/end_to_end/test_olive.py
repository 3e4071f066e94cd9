"""The pass for Olive, in a workflow that the real Olive runs: shrink, then its own cast to float16."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from builders.models import MODELS
from pcns_onnx.graph import Graph

pytestmark = pytest.mark.slow


@pytest.fixture
def package(tmp_path: Path) -> Path:
    pytest.importorskip("olive")
    command = [sys.executable, "-m", "pcns_onnx.interop.olive"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    (tmp_path / "package.json").write_text(said.stdout[said.stdout.index("{") :])
    return tmp_path / "package.json"


def run_workflow(passes: dict[str, Any], package: Path) -> None:
    """`olive run`, as README has it."""
    folder = package.parent
    workflow = {
        "input_model": {"type": "ONNXModel", "model_path": str(MODELS / "digits_cnn.onnx")},
        "passes": passes,
        "output_dir": str(folder / "out"),
        "cache_dir": str(folder / "cache"),
        "no_artifacts": False,
    }
    (folder / "workflow.json").write_text(json.dumps(workflow))
    said = subprocess.run(
        [sys.executable, "-m", "olive", "run", "--config", "workflow.json", "--package-config", str(package)],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert said.returncode == 0, said.stdout + said.stderr


def test_shrinking_is_a_step_of_a_workflow(package: Path) -> None:
    options = {"refine": 0, "threads": 1}
    shrinking = {"type": "PcnsShrink", "data": str(MODELS / "digits_images.npz"), "macs": 0.5, "options": options}
    run_workflow({"shrink": shrinking, "half": {"type": "OnnxFloatToFloat16"}}, package)
    (made,) = (package.parent / "out").rglob("*.onnx")
    assert Graph.load(made).storage == "float16"
    assert Graph.load(made).parameters < 0.7 * Graph.load(MODELS / "digits_cnn.onnx").parameters
    with np.load(MODELS / "digits_images_test.npz") as file:
        session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
        logits = session.run(None, {"input": file["input"].astype(np.float16)})
        assert np.mean(np.asarray(logits[0]).argmax(1) == file["labels"]) > 0.95
