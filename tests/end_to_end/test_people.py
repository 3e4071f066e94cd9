"""What a person at a terminal gets: progress, silence, JSON, `doctor` and `diff`."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

import pcns_onnx
from builders.commands import Ran
from builders.mlp import mlp, saved
from builders.models import MODELS, build
from pcns_onnx import diff, shrink
from pcns_onnx.api import doctor
from pcns_onnx.cli.terminal import bars

Run = Callable[..., Ran]
SMALL = ("--width", "0.5", "--refine", "0", "--threads", "1")


class Screen(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


# -- voices ------------------------------------------------------------------------------------


def test_quiet_says_nothing_and_writes_all_the_same(run: Run, tmp_path: Path) -> None:
    model, data = saved(tmp_path)
    done = run("shrink", model, "--data", data, *SMALL, "-o", "small.onnx", "-q")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert (tmp_path / "small.onnx").exists()
    assert run("compare", model, "small.onnx", "--data", data, "--quiet").out == ""


def test_quiet_is_not_silent_about_errors(run: Run, tmp_path: Path) -> None:
    model, data = saved(tmp_path)
    done = run("shrink", model, "--data", data, *SMALL, "-o", "small.onnx", "-q", "--max-error", "1e-9")
    assert done.code == 4
    assert done.out == ""
    assert done.err.startswith("pcns-onnx: error: gate failed")
    assert len(done.err.splitlines()) == 1


def test_quiet_and_verbose_contradict_each_other(run: Run, tmp_path: Path) -> None:
    model, data = saved(tmp_path)
    done = run("shrink", model, "--data", data, *SMALL, "-o", "small.onnx", "-q", "-v")
    assert done.code == 2
    assert "contradict" in done.err


def test_verbose_says_what_each_stage_took(run: Run, tmp_path: Path) -> None:
    model, data = saved(tmp_path)
    done = run("shrink", model, "--data", data, *SMALL, "-o", "small.onnx", "-v")
    assert done.code == 0
    assert re.search(r"^verify: \d+ in \d+\.\d+ s, [\d.e+]+/s$", done.err, re.MULTILINE)
    assert "passes of the original" in done.out
    assert "passes of the original" not in run("shrink", model, "--data", data, *SMALL, "-o", "small.onnx").out


def test_json_of_shrink_is_the_report(run: Run, tmp_path: Path) -> None:
    model, data = saved(tmp_path)
    done = run("shrink", model, "--data", data, *SMALL, "-o", "small.onnx", "--json", "--report", "report.json")
    assert json.loads(done.out) == json.loads((tmp_path / "report.json").read_text())


def test_json_comes_from_compare_and_a_failed_gate_too(run: Run, tmp_path: Path) -> None:
    model, data = saved(tmp_path)
    run("shrink", model, "--data", data, *SMALL, "-o", "small.onnx")
    done = run("compare", model, "small.onnx", "--data", data, "--json", "-q", "--max-error", "1e-9")
    assert done.code == 4
    found = json.loads(done.out)
    assert found["gates"][0]["value"] > found["gates"][0]["limit"]
    assert found["origin"]["hashes"].keys() == {"model a", "model b", "data"}


def test_the_page_says_the_command_that_was_given(run: Run, tmp_path: Path) -> None:
    model, data = saved(tmp_path)
    done = run("shrink", model, "--data", data, *SMALL, "-o", "a small.onnx", "--html", "r.html")
    assert done.code == 0, done.err
    text = (tmp_path / "r.html").read_text()
    assert f"pcns-onnx shrink {model}" in text
    assert "&#39;a small.onnx&#39; --html r.html" in text


# -- progress ----------------------------------------------------------------------------------


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, **console: bool) -> tuple[str, list[int]]:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with bars(**console) as progress:
        items = list(progress.track(iter(range(5)), "capture", 5))
    assert progress.seconds["capture"] >= 0
    return stream.getvalue(), items


def test_a_terminal_sees_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    text, items = shown(monkeypatch, Screen())
    assert items == list(range(5))
    assert "capture" in text
    assert "5/5" in text
    assert re.search(r"[\d.]+(e\+\d+)?/s", text)
    assert "left" in text


def test_no_terminal_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, io.StringIO()) == ("", list(range(5)))


def test_quiet_keeps_a_terminal_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, Screen(), quiet=True) == ("", list(range(5)))


def test_verbose_without_a_terminal_has_one_line_per_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    text, _ = shown(monkeypatch, io.StringIO(), verbose=True)
    assert re.fullmatch(r"capture: 5 in \d+\.\d\d s(, [\d.e+]+/s)?\n", text)


# -- doctor ------------------------------------------------------------------------------------


def test_doctor_knows_what_is_here(run: Run) -> None:
    done = run("doctor", "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert found["can_run"]
    assert "CPUExecutionProvider" in found["providers"]
    assert found["versions"]["onnx"] == onnx.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert 1 <= found["usable_cpus"] <= found["cpus"]
    assert (found["gpu"] is None) == bool(found["no_gpu"])


def test_doctor_lists_every_extra_of_the_package(run: Run) -> None:
    project = (MODELS.parent / "pyproject.toml").read_text()
    block = project.split("[project.optional-dependencies]")[1].split("\n[")[0]
    named = set(re.findall(r"^([\w-]+) = \[", block, re.MULTILINE))
    found = {extra["name"] for extra in json.loads(run("doctor", "--json").out)["extras"]}
    assert found == named - {"test", "train", "paper"}
    text = run("doctor").out
    assert all(name in text for name in found)


def test_doctor_says_how_to_get_what_is_missing(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "matplotlib" else real(name))
    text = run("doctor").out
    assert "matplotlib (missing)" in text
    assert "pip install 'pcns-onnx[plots]'" in text


def test_doctor_fails_where_nothing_can_run(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = run("doctor")
    assert done.code == 2
    assert "onnxruntime is not installed" in done.err
    assert "Traceback" not in done.err


# -- diff --------------------------------------------------------------------------------------


def changes(found: pcns_onnx.Difference) -> dict[str, str]:
    return {layer.name: layer.what for layer in found.layers}


def test_a_model_does_not_differ_from_itself(run: Run, tmp_path: Path) -> None:
    found = diff(mlp(), mlp())
    assert found.equal
    assert set(changes(found).values()) == {"the same"}
    assert (found.operators, found.nodes, found.interface) == ({}, {}, [])
    model, _ = saved(tmp_path)
    assert run("diff", model, model).out.strip() == "the models are the same"


def test_diff_sees_the_widths_that_shrinking_took() -> None:
    model = mlp()
    result = shrink(model, np.random.default_rng(1).standard_normal((300, 6)).astype(np.float32), width=0.5,
                    multiple=1, refine=0, threads=1)  # fmt: skip
    found = diff(model, result.model)
    said = changes(found)
    kept = {group.name: (group.width, group.kept) for group in result.report.groups}
    assert kept
    for name, (width, left) in kept.items():
        assert f"width {width} to {left}" in said[name]
    assert "inputs" in said["g2"]
    assert "width" not in said["g2"]
    assert not found.equal
    assert (found.before, found.after) == (result.report.before, result.report.after)
    assert any(line.startswith("made by pcns-onnx") for line in found.interface)


def test_diff_measures_how_far_weights_moved() -> None:
    model, other = mlp(), mlp()
    weight = numpy_helper.to_array(model.graph.initializer[2])
    other.graph.initializer[2].CopyFrom(numpy_helper.from_array(weight * np.float32(1.25), "w1"))
    found = diff(model, other)
    moved = {layer.name: layer.weights for layer in found.layers}
    assert moved["g1"] == pytest.approx(0.25)
    assert moved["g0"] == moved["g2"] == 0
    assert changes(found) == {"g0": "the same", "g1": "other weights", "g2": "the same"}


def with_node(model: ModelProto, **attributes: Any) -> ModelProto:
    """The model with one node more."""
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("LeakyRelu", ["before"], ["y"], name="last", **attributes))
    onnx.checker.check_model(model)
    return model


def test_diff_sees_nodes_attributes_and_the_interface() -> None:
    a, b = with_node(mlp(), alpha=0.1), with_node(mlp(batch=4), alpha=0.2)
    found = diff(a, b)
    assert found.nodes == {"last": "attribute alpha"}
    assert found.interface == ["input 'x': float32 ?x6, now float32 4x6", "output 'y': float32 ?x3, now float32 4x3"]
    added = diff(mlp(), a)
    assert added.operators == {"LeakyRelu": (0, 1)}
    assert added.nodes["last"] == "LeakyRelu added"


def test_diff_sees_layers_that_came_and_went() -> None:
    found = diff(mlp(widths=(6, 12, 3)), mlp())
    assert changes(found) == {"g0": "the same", "g1": "width 3 to 8", "g2": "added"}
    back = diff(mlp(), mlp(widths=(6, 12, 3)))
    assert changes(back)["g2"] == "removed"


def test_diff_lists_names_as_they_are(run: Run, tmp_path: Path) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], name="[red]<b>")]
    onnx.save(build(nodes, {"w": np.ones((6, 3), np.float32)}, ["N", 6]), tmp_path / "a.onnx")
    onnx.save(build(nodes, {"w": np.full((6, 3), 2, np.float32)}, ["N", 6]), tmp_path / "b.onnx")
    assert "[red]<b>" in run("diff", "a.onnx", "b.onnx").out
    found = json.loads(run("diff", "a.onnx", "b.onnx", "--json").out)
    assert found["layers"][0]["weights"] == 1


@pytest.mark.parametrize("name", ["no.onnx", "text.onnx"])
def test_diff_refuses_what_is_no_model(run: Run, tmp_path: Path, name: str) -> None:
    model, _ = saved(tmp_path)
    (tmp_path / "text.onnx").write_text("hello")
    done = run("diff", model, name)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1


def test_the_list_of_commands_says_each_in_whole(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run("--help").out.partition("Commands:")[2]
    assert "  shrink " in shown
    assert "..." not in shown
