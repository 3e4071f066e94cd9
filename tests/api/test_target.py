"""`--target`: what is measured in a runtime that is here, and what is said where it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from builders.chains import random
from builders.commands import Ran
from builders.mlp import mlp, rows, saved
from builders.models import build
from pcns_onnx import InputError, advise, compare, shrink
from pcns_onnx.api.explore.exploration import explore
from pcns_onnx.api.options import FIELDS
from pcns_onnx.api.plan import plan
from pcns_onnx.runtime.targets.registry import CHOICES, DEVICES, TARGETS
from pcns_onnx.runtime.targets.timer import missing

OTHERS = [name for name in CHOICES if name not in DEVICES]
COMMANDS = FIELDS["target"][1].metadata["commands"].split()


@pytest.fixture(params=OTHERS)
def installed(request: pytest.FixtureRequest) -> str:
    """A target beside onnxruntime; skips where it is not installed."""
    name: str = request.param
    if (why := missing(TARGETS[name])) is not None:
        pytest.skip(why)
    return name


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A target that is not here: there is no Node."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return "onnxruntime-web"


def chain() -> onnx.ModelProto:
    """Two Convs wide enough for their times to be told from those of nothing."""
    nodes = [
        helper.make_node("Conv", ["x", "A"], ["a"], pads=[1] * 4, name="first"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "B"], ["b"], pads=[1] * 4, name="second"),
        helper.make_node("Relu", ["b"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "D"], ["y"], name="last"),
    ]
    weights = {"A": random(48, 3, 3, 3), "B": random(48, 48, 3, 3), "D": random(48, 4)}
    return build(nodes, weights, ("N", 3, 20, 20))


def images(count: int = 60) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(1).standard_normal((count, 3, 20, 20)).astype(np.float32)


def title(name: str) -> str:
    return TARGETS[name].title


def test_a_plan_for_a_latency_is_measured_there(installed: str) -> None:
    report = plan(chain(), images(), budget="latency=0.8", batch_latency=1, threads=1, target=installed).report
    assert report.provider.startswith(f"{title(installed)} ") and report.threads == 1
    (point,) = report.points
    assert 0 < point.costs["latency"] <= 0.8 * 1.02


def test_a_shrunk_model_is_timed_there(installed: str) -> None:
    result = shrink(chain(), images(), budget="macs=0.6", effort="low", batch=1, threads=1, target=installed)
    assert result.report.latency.provider.startswith(f"{title(installed)} ")
    assert result.report.options["target"] == installed
    latency = compare(chain(), result.model, images(20), batch=1, threads=1, target=installed).latency
    assert latency.provider == result.report.latency.provider


def test_advice_and_the_page_are_measured_there(installed: str) -> None:
    advice = advise(mlp(), rows(), threads=1, target=installed)
    assert advice.target == installed and advice.provider.startswith(f"{title(installed)} ")
    shrunk = [row.command for row in advice.rows if row.command.startswith("pcns-onnx shrink")]
    assert shrunk and all(f"--target {installed}" in command for command in shrunk)
    assert explore(mlp(), rows(), threads=1, target=installed).provider == advice.provider


def test_what_a_target_cannot_run_is_timed_in_onnxruntime() -> None:
    """An operator of onnxruntime's: a budget on latency is refused, and what is solved without one is not lost."""
    pytest.importorskip("openvino")
    model = chain()
    model.graph.node[-1].output[0] = "z"
    model.graph.node.append(helper.make_node("SampleOp", ["z"], ["y"], domain="com.microsoft"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    result = shrink(model, images(), budget="macs=0.6", effort="low", threads=1, target="openvino", int8=True)
    assert "int8" in result.lowered
    assert result.report.latency.provider == "CPUExecutionProvider"
    (warning,) = [text for text in result.report.warnings if text.startswith("latency is onnxruntime's")]
    assert "not OpenVINO's: OpenVINO cannot load the model: " in warning and "\n" not in warning
    with pytest.raises(InputError, match="OpenVINO cannot load the model: "):
        plan(model, images(), budget="latency=0.7", threads=1, target="openvino")


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "--budget", "macs=0.5", "-o", "plan.json"],
        ["shrink", "--budget", "latency=0.7", "-o", "small.onnx"],
        ["shrink", "--budget", "macs=0.7", "--low-rank", "-o", "small.onnx"],
        ["shrink", "--budget", "error=0.5", "-o", "small.onnx"],
        ["explore", "-o", "page.html"],
        ["advise"],
    ],
)
def test_times_without_the_runtime_are_one_line(
    run: Callable[..., Ran], tmp_path: Path, absent: str, words: list[str]
) -> None:
    model, data = saved(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    ran = run(words[0], model, "--data", data, *words[1:], "--target", absent)
    assert ran.code == 2 and ran.out == ""
    (line,) = ran.err.strip().splitlines()
    assert f"--target {absent}" in line and "`npm install onnxruntime-web`" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_without_the_runtime_its_multiples_are_taken_all_the_same(
    run: Callable[..., Ran], tmp_path: Path, absent: str
) -> None:
    model, data = saved(tmp_path)
    ran = run("shrink", model, "--data", data, "--budget", "macs=0.7", "--effort", "low", "--target", absent, "-o",
              "small.onnx", "--report", "report.json")  # fmt: skip
    assert ran.code == 0 and Path("small.onnx").exists()
    report = json.loads(Path("report.json").read_text())
    assert report["latency"]["provider"] == "CPUExecutionProvider"
    assert any("latency is onnxruntime's" in text and "npm install" in text for text in report["warnings"])


def test_openvino_that_is_not_installed_is_said(run: Callable[..., Ran], tmp_path: Path) -> None:
    if missing(TARGETS["openvino"]) is None:
        pytest.skip("OpenVINO is installed here")
    model, data = saved(tmp_path)
    ran = run("plan", model, "--data", data, "--budget", "latency=0.7", "--target", "openvino")
    assert ran.code == 2 and "pip install 'pcns-onnx[openvino]'" in ran.err


@pytest.mark.parametrize("command", ["shrink", "plan", "explore", "compare"])
def test_a_device_is_a_target_and_may_not_contradict(run: Callable[..., Ran], tmp_path: Path, command: str) -> None:
    model, data = saved(tmp_path)
    others: dict[str, list[object]] = {
        "compare": [model],
        "explore": [],
        "plan": ["--width", 0.5],
        "shrink": ["--width", 0.5, "-o", "s.onnx"],
    }
    ran = run(command, model, *others[command], "--data", data, "--target", "cuda", "--device", "cpu")
    assert ran.code == 2 and "--target cuda and --device cpu contradict each other" in ran.err
    assert command in COMMANDS


def test_a_target_that_is_this_device_changes_nothing() -> None:
    plain, aimed = (
        shrink(mlp(), rows(), width=0.5, effort="low", threads=1, target=target) for target in ("auto", "cpu")
    )
    assert plain.model.graph.initializer == aimed.model.graph.initializer
    assert aimed.report.options["device"] == "cpu"
