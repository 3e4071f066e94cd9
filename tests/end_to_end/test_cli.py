"""The commands from a user's side: what they print, write and return."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

import pcns_onnx
from builders.commands import Ran
from builders.mlp import mlp, rows, saved
from builders.models import MODELS, build
from pcns_onnx import Normalize, compare, inspect, shrink
from pcns_onnx.api import inspect as inspecting
from pcns_onnx.cli import main as cli
from pcns_onnx.methods.registry import CHOICES, EXPANSIONS, METHODS

Capture = pytest.CaptureFixture[str]
COMMANDS = ("inspect", "advise", "plan", "shrink", "quantize", "expand", "compare", "design", "diff", "doctor")
SCRIPT = Path(sys.executable).with_name("pcns-onnx")
TANH = str(MODELS / "digits_mlp_tanh.onnx")
ROWS, ROWS_TEST = str(MODELS / "digits_rows.npz"), str(MODELS / "digits_rows_test.npz")


def loaded(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def kept(report: dict[str, Any]) -> dict[str, int]:
    return {group["name"]: group["kept"] for group in report["groups"]}


# -- the reference models --------------------------------------------------------------------


@dataclass(frozen=True)
class Shrunk:
    """The convolutional reference model at half its MACs, by the installed command."""

    done: subprocess.CompletedProcess[str]
    report: dict[str, Any]
    before: ModelProto
    after: ModelProto


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Shrunk:
    folder = tmp_path_factory.mktemp("cnn")
    model = MODELS / "digits_cnn.onnx"
    argv: list[str | Path] = [
        SCRIPT,
        "shrink",
        model,
        "--data",
        MODELS / "digits_images.npz",
        "--budget",
        "macs=0.5",
        "-o",
        "small.onnx",
    ]
    argv += ["--eval", MODELS / "digits_images_test.npz", "--report", "report.json", "--threads", "1"]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == {"small.onnx", "report.json"}
    return Shrunk(done, loaded(folder / "report.json"), onnx.load(model), onnx.load(folder / "small.onnx"))


def test_half_the_macs_of_a_convolutional_network_keep_its_accuracy(cnn: Shrunk) -> None:
    report = cnn.report
    assert 0.4 < report["after"]["macs"] / report["before"]["macs"] <= 0.5
    assert report["after"]["parameters"] < report["before"]["parameters"]
    assert report["after"]["bytes"] == cnn.after.ByteSize() < report["before"]["bytes"] == cnn.before.ByteSize()
    agreement = report["agreement"]
    assert agreement["score"] == "accuracy"
    assert agreement["score_a"] > 98
    assert agreement["score_b"] >= agreement["score_a"] - 1
    assert agreement["samples"] == len(np.load(MODELS / "digits_images_test.npz")["labels"])


def test_the_report_has_everything(cnn: Shrunk) -> None:
    report = cnn.report
    assert report["schema"] == 1
    assert report["options"]["budget"] == "macs=0.5" and report["options"]["method"] == "obs"
    assert report["latency"].keys() == {
        "batch", "threads", "provider", "rounds", "seconds_a", "seconds_b", "ratio", "times_a", "times_b", "instead",
    }  # fmt: skip
    assert (report["latency"]["threads"], report["latency"]["provider"]) == (1, "CPUExecutionProvider")
    assert {"capture", "rank", "re-fit", "verify", "total"} <= report["stages"].keys()
    assert all(stage["seconds"] > 0 and stage["passes"] > 0 for stage in report["stages"].values())
    assert {"pcns-onnx", "onnx", "onnxruntime", "numpy", "scipy"} <= report["versions"].keys()
    assert report["gates"] == [] and report["warnings"] == []
    left = {name: item["reason"] for item in report["left_alone"] for name in item["layers"]}
    assert left["/fc/Gemm"] == "it feeds the model's output 'logits'"
    assert set(kept(report)) | set(left) == {f"/conv{i}/Conv" for i in range(1, 5)} | {"/fc/Gemm"}
    norms = [node for node in cnn.before.graph.node if node.op_type == "BatchNormalization"]
    assert len(report["folded"]) == len(norms) > 0
    for group in report["groups"]:
        assert group["kept"] < group["width"] and group["kept"] % 8 == 0
        (fit,) = group["fits"].values()
        assert fit["rows"] > fit["columns"] > 0
        assert 0 <= fit["error"] < 0.05 and 0 <= fit["held_out_error"] < 0.05
        assert 0 <= group["predicted_error"] < 0.05


def test_the_tables_say_the_same(cnn: Shrunk) -> None:
    shown, report = cnn.done.stdout, cnn.report
    assert cnn.done.stderr == ""
    assert shown.endswith("wrote small.onnx\n")
    for line in (
        rf"^MACs +{report['before']['macs']:,} +{report['after']['macs']:,} +0\.\d+ *$",
        rf"^parameters +{report['before']['parameters']:,} +{report['after']['parameters']:,} +0\.\d+ *$",
        rf"^file size \(bytes\) +{report['before']['bytes']:,} +{report['after']['bytes']:,} +0\.\d+ *$",
        r"^latency \(ms; batch 64, 1 thread, CPUExecutionProvider\) +[\d.]+ +[\d.]+ +[\d.]+ *$",
        rf"^accuracy \(%\) +{report['agreement']['score_a']:.2f} +{report['agreement']['score_b']:.2f} +[+-][\d.]+ *$",
        r"^output 'logits' on \d+ samples: relative error [\d.]+, cosine [\d.]+, arg-max agrees [\d.]+% *$",
        r"^/fc/Gemm +it feeds the model's output 'logits' *$",
        *(rf"^{g['name']} +{g['width']} +{g['kept']} +[\d.]+% +[\d.]+% +[\d.]+% *$" for g in report["groups"]),
    ):
        assert re.search(line, shown, re.MULTILINE), (line, shown)


def test_the_model_around_the_weights_stays(cnn: Shrunk) -> None:
    before, after = cnn.before, cnn.after
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert list(after.opset_import) == list(before.opset_import)
    assert (after.ir_version, after.producer_name, after.doc_string) == (
        before.ir_version, before.producer_name, before.doc_string,
    )  # fmt: skip
    names = [node.name for node in before.graph.node]
    assert [node.name for node in after.graph.node] == [name for name in names if name not in cnn.report["folded"]]
    said = json.loads(next(p.value for p in after.metadata_props if p.key == "pcns_onnx"))
    assert said["method"] == "obs"
    assert {name: width for name, (width, full) in said["widths"].items() if width < full} == kept(cnn.report)


@pytest.mark.parametrize("method", CHOICES)
def test_every_method_halves_a_network_and_its_plan_replays(
    method: str, run: Callable[..., Ran], tmp_path: Path
) -> None:
    common = ("shrink", TANH, "--data", ROWS, "--eval", ROWS_TEST, "--refine", 0)
    goal = ("--budget", "macs=0.5", "--method", method)
    first = run(*common, *goal, "-o", "a.onnx", "--plan-out", "plan.json", "--report", "report.json")
    assert first.code == 0, first.err
    report, plan = loaded(tmp_path / "report.json"), loaded(tmp_path / "plan.json")
    real = "obs" if method == "auto" else method
    assert (plan["schema"], plan["method"], report["options"]["method"]) == (1, real, real)
    if METHODS[real].data:
        assert report["agreement"]["score_b"] >= report["agreement"]["score_a"] - 1
    for group in report["groups"]:
        assert (group["eigenvector_errors"] is not None) == (method == "pcns")
        assert plan["groups"][group["name"]]["width"] == group["kept"]
    assert run(*common, "--plan", "plan.json", "-o", "b.onnx").code == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_another_process_makes_the_same_bytes(run: Callable[..., Ran], tmp_path: Path) -> None:
    saved(tmp_path)
    argv = ["shrink", "model.onnx", "--data", "data.npz", "--budget", "macs=0.5", "--refine", "20", "--threads", "1"]
    argv += ["-o"]
    assert run(*argv, "a.onnx").code == 0
    done = subprocess.run(
        [SCRIPT, *argv, "b.onnx"], cwd=tmp_path, env={**os.environ, "PYTHONHASHSEED": "7"}, check=False
    )
    assert done.returncode == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


# -- inspect ---------------------------------------------------------------------------------


def test_inspect_lists_every_layer(run: Callable[..., Ran]) -> None:
    done = run("inspect", MODELS / "digits_cnn.onnx")
    assert (done.code, done.err) == (0, "")
    header, *lines = done.out.splitlines()
    assert header.split() == ["layer", "kind", "width", "MACs", "params", "can", "it", "shrink?"]
    assert lines[0].split() == ["/conv1/Conv", "Conv", "32", "18,432", "320", "yes"]
    assert lines[4].rstrip().endswith("no: it feeds the model's output 'logits'")
    assert lines[6] == "2,972,672 MACs per sample, 135,594 parameters; 100 % of the MACs are in layers that can shrink"


def test_names_are_shown_as_they_are(run: Callable[..., Ran], tmp_path: Path) -> None:
    model = mlp()
    for node, name in zip(model.graph.node, ["[/red]", "t", ":heart:", "u", "[bold]last"], strict=True):
        node.name = name
    saved(tmp_path, model)
    lines = run("inspect", "model.onnx").out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["[/red]", ":heart:", "[bold]last"]
    done = run("shrink", "model.onnx", "--data", "data.npz", "--width", 0.5, "-o", "out.onnx", "--exclude", ":heart:")
    assert done.code == 0
    assert re.search(r"^\[/red\] +12 +6 ", done.out, re.MULTILINE) and re.search(
        r"^:heart: +it was", done.out, re.MULTILINE
    )


def test_inspect_as_json(run: Callable[..., Ran]) -> None:
    done = run("inspect", TANH, "--json")
    found = json.loads(done.out)
    assert (done.code, done.err, found["schema"]) == (0, "", 1)
    assert [layer["name"] for layer in found["layers"]] == ["/fc1/Gemm", "/fc2/Gemm", "/fc3/Gemm"]
    assert [layer["macs"] for layer in found["layers"]] == [64 * 256, 256 * 128, 128 * 10]
    assert [layer["parameters"] for layer in found["layers"]] == [65 * 256, 257 * 128, 129 * 10]
    assert found["macs"] == sum(layer["macs"] for layer in found["layers"])
    assert found["shrinkable_macs"] == 1
    assert [bool(layer["reason"]) for layer in found["layers"]] == [False, False, True]
    assert all(layer["dimensions"] is None for layer in found["layers"])


def test_inspect_with_data_counts_dimensions(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = saved(tmp_path)
    found = json.loads(run("inspect", model, "--data", data, "--json").out)
    x, width = rows().astype(np.float64), 12
    weight, bias = (onnx.numpy_helper.to_array(t).astype(np.float64) for t in mlp().graph.initializer[:2])
    values = np.linalg.eigvalsh(np.cov(np.tanh(x @ weight + bias).T))[::-1]
    shares = np.cumsum(values) / values.sum()
    expected = {share: int(np.argmax(shares >= float(share))) + 1 for share in ("0.99", "0.999", "0.9999")}
    assert found["layers"][0]["dimensions"] == expected
    assert found["layers"][0]["samples_per_neuron"] == 300 / width
    table = run("inspect", model, "--data", data).out
    dims = " +".join(str(n) for n in expected.values())
    assert re.search(rf"^g0 +Gemm +12 +72 +84 +{dims} +25\.0 +yes *$", table, re.MULTILINE), table


@pytest.mark.parametrize("command", ["inspect", "shrink"])
def test_few_samples_are_a_warning_and_no_refusal(command: str, run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = saved(tmp_path)
    more = () if command == "inspect" else ("--width", 0.5, "-o", "out.onnx")
    few = run(command, model, "--data", data, "--samples", 20, *more)
    assert few.code == 0
    assert few.err.startswith("warning: few samples: 2 of 2 layers have under 5 per neuron") or command == "inspect"
    assert "warning: few samples" in few.err and few.err.count("\n") == 1 + (command == "shrink")
    assert ("the check rests on 2 different samples" in few.err) == (command == "shrink")
    assert run(command, model, "--data", data, *more).err == ""


# -- how small, and which layers -------------------------------------------------------------


@pytest.fixture
def small(run: Callable[..., Ran], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Shrink `mlp()` with more options and give the report."""
    model, data = saved(tmp_path)

    def call(*options: object) -> dict[str, Any]:
        done = run("shrink", model, "--data", data, "-o", "out.onnx", "--report", "report.json", "--refine", 0,
                   *options)  # fmt: skip
        assert done.code == 0, done.err
        return loaded(tmp_path / "report.json")

    return call


@pytest.mark.parametrize(
    "budgets", [["macs=0.6"], ["params=0.5"], ["macs=0.6", "params=0.45"], ["params=0.7", "macs=0.4"]]
)
def test_budgets_hold_all_together(budgets: list[str], small: Callable[..., dict[str, Any]]) -> None:
    report = small(*(word for budget in budgets for word in ("--budget", budget)))
    for budget in budgets:
        name, _, fraction = budget.partition("=")
        field = "parameters" if name == "params" else name
        assert report["after"][field] <= float(fraction) * report["before"][field]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--width", 0.5], {"g0": 6, "g1": 4}),
        (["--width", 0.5, "--multiple", 4], {"g0": 4, "g1": 4}),
        (["--width", 0.75, "--include", "g1"], {"g1": 6}),
        (["--width", 0.5, "--include", "g[01]", "--exclude", "*1"], {"g0": 6}),
        (["--width", 0.5, "--include", "g0", "--include", "g1"], {"g0": 6, "g1": 4}),
    ],
)
def test_widths_and_globs(
    options: list[object], expected: dict[str, int], small: Callable[..., dict[str, Any]]
) -> None:
    report = small(*options)
    assert kept(report) == expected
    left = {name: item["reason"] for item in report["left_alone"] for name in item["layers"]}
    outside = {name: "it was left out by --include or --exclude" for name in {"g0", "g1"} - expected.keys()}
    assert left == {"g2": "it feeds the model's output 'y'"} | outside


def test_variance_keeps_the_dimensions_that_inspect_shows(
    run: Callable[..., Ran], small: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    shown = json.loads(run("inspect", tmp_path / "model.onnx", "--data", tmp_path / "data.npz", "--json").out)
    expected = {layer["name"]: layer["dimensions"]["0.99"] for layer in shown["layers"][:2]}
    report = small("--variance", 0.99, "--holdout", 0)
    assert {name: width for name, width in expected.items() if width < {"g0": 12, "g1": 8}[name]} == kept(report)
    assert "checked on the samples that it was solved on: keep some back or give --eval" in report["warnings"]


@pytest.mark.parametrize(("holdout", "solved", "checked"), [(0.1, 180, 20), (0.5, 100, 100), (0, 200, 200)])
def test_samples_are_split_between_solve_and_check(
    holdout: float, solved: int, checked: int, small: Callable[..., dict[str, Any]]
) -> None:
    report = small("--width", 0.5, "--samples", 200, "--holdout", holdout)
    assert {fit["rows"] for group in report["groups"] for fit in group["fits"].values()} == {solved}
    assert report["agreement"]["samples"] == checked


def test_pcns_to_the_letter_solves_no_reader(small: Callable[..., dict[str, Any]]) -> None:
    letter = small("--width", 0.5, "--method", "pcns", "--no-refit", "--order", "descending")
    fitted = small("--width", 0.5, "--method", "pcns")
    assert [len(group["fits"]) for group in letter["groups"]] == [0, 0]
    assert [len(group["fits"]) for group in fitted["groups"]] == [1, 1]
    assert all(len(group["eigenvector_errors"]) >= group["kept"] // 2 for group in letter["groups"])
    assert fitted["agreement"]["outputs"][0]["relative_error"] < letter["agreement"]["outputs"][0]["relative_error"]


def test_a_layer_behind_an_operator_that_only_the_runtime_knows(run: Callable[..., Ran], tmp_path: Path) -> None:
    # Shape inference stops at the other Trilu: what follows is measured.
    model = mlp()
    model.graph.node[1].op_type, model.graph.node[1].domain = "Trilu", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    saved(tmp_path, model)
    found = json.loads(run("inspect", "model.onnx", "--data", "data.npz", "--json").out)
    assert [layer["samples_per_neuron"] for layer in found["layers"]] == [25, 37.5, 100]
    done = run("shrink", "model.onnx", "--data", "data.npz", "--width", 0.5, "-o", "out.onnx", "--report", "r.json")
    assert done.code == 0, done.err
    report = loaded(tmp_path / "r.json")
    assert report["before"]["macs"] == found["macs"] == 6 * 12 + 12 * 8 + 8 * 3
    assert report["after"]["macs"] == 6 * 12 + 12 * 4 + 4 * 3
    assert "Trilu" in {name: item["reason"] for item in report["left_alone"] for name in item["layers"]}["g0"]


def test_a_metric_from_the_current_folder(small: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "cli_score.py").write_text(
        "def mean(outputs, labels):\n    return outputs['y'].mean() + labels.max()\n"
    )
    agreement = small("--width", 0.5, "--metric", "cli_score:mean")["agreement"]
    assert agreement["score"] == "metric"
    assert agreement["score_a"] != agreement["score_b"]


def test_latency_is_measured_at_the_batch(small: Callable[..., dict[str, Any]]) -> None:
    # The samples held out are 30.
    assert small("--width", 0.5, "--batch", 8)["latency"]["batch"] == 8
    assert (
        small("--width", 0.5, "--batch", 100, "--threads", 1)["latency"].items() >= {"batch": 100, "threads": 1}.items()
    )


def test_the_same_samples_in_other_forms_give_the_same_model(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = saved(tmp_path)
    np.save(tmp_path / "x.npy", rows())
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "x.npy", rows())
    made = {}
    for name in (data, "x.npy", "folder"):
        assert run("shrink", model, "--data", name, "--width", 0.5, "-o", "out.onnx").code == 0
        made[name] = (tmp_path / "out.onnx").read_bytes()
    assert len(set(made.values())) == 1


def test_pixels_are_normalised_as_asked(run: Callable[..., Ran], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["h"], name="c1"),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Conv", ["a", "w2"], ["y"], name="c2"),
    ]
    weights = {f"w{i}": rng.standard_normal(s).astype(np.float32) for i, s in ((1, (16, 2, 2, 2)), (2, (3, 16, 2, 2)))}
    onnx.save(build(nodes, weights, ["N", 2, 4, 4]), tmp_path / "model.onnx")
    pixels = rng.integers(0, 256, (90, 2, 4, 4), dtype=np.uint8)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in ([0.5, 0.4], [0.25, 0.2]))
    np.save(tmp_path / "pixels.npy", pixels)
    np.save(tmp_path / "floats.npy", (pixels.astype(np.float32) / 255 - mean) / std)
    for name, more in (("pixels", ["--normalize", "0.5,0.4", "0.25,0.2"]), ("floats", [])):
        argv = ["--data", f"{name}.npy", "--width", 0.5, "--holdout", 0.2, "-o", f"{name}.onnx", *more]
        assert run("shrink", "model.onnx", *argv).code == 0
    assert (tmp_path / "pixels.onnx").read_bytes() == (tmp_path / "floats.onnx").read_bytes()


@pytest.mark.parametrize("sigma", ["Tanh", "Relu"])
@pytest.mark.parametrize("method", METHODS)
def test_the_widths_that_are_told_are_those_of_the_model(method: str, sigma: str) -> None:
    result = shrink(mlp(sigma=sigma), rows(), width=0.5, method=method)
    real = {t.name: t.dims[1] for t in result.model.graph.initializer if t.name in ("w0", "w1")}
    assert {"w0": result.plan.groups["g0"].width, "w1": result.plan.groups["g1"].width} == real
    assert {group.name.replace("g", "w"): group.kept for group in result.report.groups} == real


# -- gates, and nothing to do ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "name"), [(("--max-error", 1e-6), "max-error"), (("--max-drop", 0.5), "max-drop")], ids=["error", "drop"]
)
def test_a_gate_that_fails_keeps_the_model_back(
    gate: tuple[str, float], name: str, run: Callable[..., Ran], tmp_path: Path
) -> None:
    model, data = saved(tmp_path)
    (tmp_path / "out.onnx").write_text("before")
    how = ("--width", 0.1, "--refine", 0, *gate, "--report", "report.json")
    done = run("shrink", model, "--data", data, *how, "-o", "out.onnx")
    assert done.code == 4
    *warnings, error = done.err.splitlines()
    assert re.fullmatch(rf"pcns-onnx: error: gate failed: {name} \S+ exceeds {gate[1]}; no model was written", error)
    assert all(line.startswith("warning: ") for line in warnings)
    assert re.search(rf"^gate {name}: \S+ \(limit {gate[1]}\) FAILED *$", done.out, re.MULTILINE)
    assert "wrote" not in done.out
    assert (tmp_path / "out.onnx").read_text() == "before"
    (found,) = loaded(tmp_path / "report.json")["gates"]
    assert (found["name"], found["limit"]) == (name, gate[1]) and found["value"] > gate[1]


def test_gates_that_hold(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = saved(tmp_path)
    done = run("shrink", model, "--data", data, "--width", 0.9, "--max-error", 0.5, "--max-drop", 50, "-o", "out.onnx")
    assert done.code == 0
    assert len(re.findall(r"^gate max-(?:error|drop): \S+ \(limit (?:0.5|50)\) passed *$", done.out, re.MULTILINE)) == 2
    assert (tmp_path / "out.onnx").exists()


def residual() -> ModelProto:
    """x -> g0 -> Relu -> + x -> g1."""
    weights = {name: np.eye(6, dtype=np.float32) for name in ("w0", "w1")}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"], name="g0"),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Add", ["a", "x"], ["s"], name="skip"),
        helper.make_node("MatMul", ["s", "w1"], ["y"], name="g1"),
    ]
    return build(nodes, weights, ["N", 6])


def activations() -> ModelProto:
    """A model without any weight."""
    return build([helper.make_node("Relu", ["x"], ["y"])], {}, ["N", 6])


@pytest.mark.parametrize(
    ("model", "options", "reasons", "why"),
    [
        (mlp(widths=(6, 3)), ["--width", 0.5], {"g0": "it feeds the model's output 'y'"}, "every layer has a reason"),
        (
            residual(),
            ["--width", 0.5],
            {"g0": "Add 'skip'", "g1": "it feeds the model's output"},
            "every layer has a reason",
        ),
        (
            mlp(),
            ["--width", 0.5, "--exclude", "*"],
            {"g0 and 1 other": "left out", "g2": "output"},
            "every layer has",
        ),
        (
            mlp(),
            ["--width", 1],
            {"g0 and 1 other": "all its channels stay", "g2": "output"},
            "every layer keeps all its channels",
        ),
        (activations(), ["--width", 0.5], {}, "the model has no layer with stored weights"),
    ],
    ids=["one layer", "a residual", "excluded", "full width", "no layers"],
)
def test_nothing_to_shrink_says_why_and_writes_nothing(
    model: ModelProto, options: list[object], reasons: dict[str, str], why: str, run: Callable[..., Ran], tmp_path: Path
) -> None:
    saved(tmp_path, model)
    before = {path.name for path in tmp_path.iterdir()}
    files = ("-o", "out.onnx", "--plan-out", "plan.json", "--report", "report.json")
    done = run("shrink", "model.onnx", "--data", "data.npz", *options, *files)
    assert done.code == 3
    said = dict(re.findall(r"^left alone: ([^:]+): (.+)$", done.out, re.MULTILINE))
    assert said.keys() == reasons.keys() and len(done.out.splitlines()) == len(reasons)
    assert all(reason in said[name] for name, reason in reasons.items()), said
    assert re.fullmatch(r"pcns-onnx: error: nothing .*\n", done.err) and why in done.err
    assert {path.name for path in tmp_path.iterdir()} == before


# -- compare ---------------------------------------------------------------------------------


def test_compare_finds_what_shrink_reported(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = saved(tmp_path)
    assert (
        run("shrink", model, "--data", data, "--eval", data, "--width", 0.5, "-o", "b.onnx", "--report", "1.json").code
        == 0
    )
    done = run("compare", model, "b.onnx", "--data", data, "--report", "2.json")
    assert done.code == 0
    first, second = loaded(tmp_path / "1.json"), loaded(tmp_path / "2.json")
    assert second["schema"] == 1
    for part in ("before", "after", "agreement"):
        assert first[part] == second[part]
    assert re.search(r"^MACs +192 +72 +0\.375 *$", done.out, re.MULTILINE), done.out
    assert "accuracy (%)" in done.out and "latency (ms; batch 64" in done.out


def test_compare_is_a_gate_too(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = saved(tmp_path)
    assert run("compare", model, model, "--data", data, "--max-error", 0, "--max-drop", 0).code == 0
    assert run("shrink", model, "--data", data, "--width", 0.5, "-o", "b.onnx").code == 0
    done = run("compare", model, "b.onnx", "--data", data, "--max-error", 1e-4, "--report", "r.json")
    assert done.code == 4
    seen = "warning: these are samples that one of the models was made on: nothing is said of new samples\n"
    assert re.fullmatch(rf"{seen}pcns-onnx: error: gate failed: max-error \S+ exceeds 0.0001.*\n", done.err)
    assert "model was written" not in done.err
    assert loaded(tmp_path / "r.json")["gates"][0]["value"] > 1e-4


# -- fixed batches ---------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 4])
def test_a_model_with_a_fixed_batch_is_fed_in_it(batch: int, run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = saved(tmp_path, mlp(batch), count=139)
    done = run("shrink", model, "--data", data, "--width", 0.5, "-o", "out.onnx", "--report", "r.json", "--batch", 64)
    assert done.code == 0, done.err
    report = loaded(tmp_path / "r.json")
    assert report["latency"]["batch"] == batch
    assert report["before"]["macs"] == 6 * 12 + 12 * 8 + 8 * 3
    # One in ten of 139 is held out: 13 or 14, of which whole batches are used.
    assert report["agreement"]["samples"] in {1: (13, 14), 4: (12,)}[batch]
    shape = onnx.load(tmp_path / "out.onnx").graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim] == [batch, 6]
    dynamic, _ = saved(tmp_path)
    for pair in ([model, "out.onnx"], [dynamic, "out.onnx"], ["out.onnx", dynamic]):
        assert run("compare", *pair, "--data", data).code == 0


def test_too_few_samples_to_hold_out_a_batch_are_all_solved_on(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = saved(tmp_path, mlp(4), count=9)
    done = run("shrink", model, "--data", data, "--width", 0.5, "-o", "out.onnx", "--report", "r.json")
    assert done.code == 0, done.err
    assert "warning: checked on the samples that it was solved on" in done.err
    assert loaded(tmp_path / "r.json")["agreement"]["samples"] == 8


def test_feeds_too_few_to_hold_any_out_are_all_solved_on(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, _ = saved(tmp_path)
    (tmp_path / "cli_feeds.py").write_text(
        "import numpy as np\n"
        "def three():\n    return [{'x': np.random.default_rng(i).standard_normal((1, 6))} for i in range(3)]\n"
    )
    done = run("shrink", model, "--data", "cli_feeds:three", "--width", 0.5, "-o", "out.onnx", "--report", "r.json")
    assert done.code == 0, done.err
    assert "warning: checked on the samples that it was solved on" in done.err
    assert loaded(tmp_path / "r.json")["agreement"]["samples"] == 3


def test_fewer_samples_than_the_batch_are_refused(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = saved(tmp_path, mlp(4), count=3)
    done = run("shrink", model, "--data", data, "--width", 0.5, "-o", "out.onnx")
    assert done.code == 2
    assert done.err == (
        "pcns-onnx: error: the model takes batches of exactly 4 samples and the data holds fewer: give more\n"
    )


# -- the command itself ----------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command: str, run: Callable[..., Ran]) -> None:
    done = run(command, "--help")
    assert (done.code, done.err) == (0, "")
    said = " ".join(done.out.split())
    assert "Exit codes: 0 done, 2 bad input or usage, 3 nothing could be shrunk, 4 gate failed, 5 int8 or fp16" in said
    for parameter in cli.cli.commands[command].params:
        if parameter.param_type_name == "option":
            assert parameter.opts[0] in done.out


def test_help_lists_the_commands(run: Callable[..., Ran]) -> None:
    assert all(command in run("-h").out for command in COMMANDS)
    assert run().code == 2


def test_the_methods_in_help_are_those_of_the_table(run: Callable[..., Ran]) -> None:
    assert set(CHOICES) == {"auto", *METHODS}
    for command, methods in (("shrink", METHODS), ("expand", EXPANSIONS)):
        said = run(command, "--help").out
        assert f"--method {'|'.join(CHOICES if command == 'shrink' else methods)}" in said
        for method in methods.values():
            assert "".join(method.paragraph.split()) in "".join(said.split())


def test_version(run: Callable[..., Ran]) -> None:
    done = run("--version")
    assert done.code == 0 and metadata.version("pcns-onnx") in done.out


@pytest.mark.parametrize(
    "line",
    ["import pcns_onnx", "from pcns_onnx.cli.main import main; main(['shrink', '--help'])",
     "from pcns_onnx.cli.main import main; main(['--version'])"],
    ids=["import", "--help", "--version"],
)  # fmt: skip
def test_heavy_libraries_stay_out_until_they_are_needed(line: str) -> None:
    heavy = ("onnx", "onnxruntime", "scipy", "numpy", "cupy", "rich", "msgspec")
    code = f"import sys; {line}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_bars_are_drawn_on_a_terminal_only(run: Callable[..., Ran], tmp_path: Path) -> None:
    saved(tmp_path)
    argv = ["shrink", "model.onnx", "--data", "data.npz", "--width", "0.5", "-o", "out.onnx"]
    assert run(*argv).err == ""
    terminal, side = os.openpty()
    done = subprocess.Popen([SCRIPT, *argv], stderr=side, stdout=subprocess.PIPE, cwd=tmp_path)
    os.close(side)
    shown = b""
    try:
        while piece := os.read(terminal, 4096):
            shown += piece
    except OSError:  # how Linux says that the other side is closed
        pass
    finally:
        os.close(terminal)
    out, _ = done.communicate()
    assert done.returncode == 0 and out.endswith(b"wrote out.onnx\n")
    assert b"capture" in shown and b"re-fit" in shown


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "out of memory: use fewer --samples or a smaller --batch"),
    ],
    ids=["interrupt", "memory"],
)
def test_the_end_that_nobody_asked_for_is_one_line_too(
    raised: BaseException, code: int, line: str, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object, **options: object) -> None:
        raise raised

    monkeypatch.setattr(inspecting, "inspect", fails)
    done = run("inspect", "model.onnx")
    assert (done.code, done.out, done.err.strip()) == (code, "", f"pcns-onnx: error: {line}")


# -- from Python -----------------------------------------------------------------------------


def test_the_package_exports_what_it_promises() -> None:
    assert {"shrink", "inspect", "compare", "expand"} <= set(pcns_onnx.__all__)
    for name in pcns_onnx.__all__:
        assert getattr(pcns_onnx, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'shirk'"):
        pcns_onnx.shirk  # noqa: B018


@pytest.mark.parametrize(
    "data",
    [rows(), {"x": rows()}, [{"x": rows()[:100]}, {"x": rows()[100:]}], lambda: iter([{"x": rows()}])],
    ids=["array", "mapping", "feeds", "function"],
)
def test_python_and_the_command_line_make_the_same_model(data: Any, run: Callable[..., Ran], tmp_path: Path) -> None:
    model, file = saved(tmp_path)
    assert run("shrink", model, "--data", file, "--width", 0.5, "--holdout", 0, "-o", "out.onnx").code == 0
    original = mlp()
    result = shrink(original, data, tmp_path / "mine.onnx", width=0.5, holdout=0)
    assert original == mlp()
    written = (tmp_path / "out.onnx").read_bytes()
    assert (tmp_path / "mine.onnx").read_bytes() == written
    assert result.model.SerializeToString(deterministic=True) == written
    assert {name: entry.width for name, entry in result.plan.groups.items()} == {"g0": 6, "g1": 4}
    report = compare(original, result.model, data)
    assert report.agreement.error == pytest.approx(result.report.agreement.error)
    assert inspect(result.model).macs == report.after.macs == result.report.after.macs


def test_one_glob_or_budget_needs_no_list() -> None:
    result = shrink(mlp(), rows(), budget="macs=0.7", include="g0")
    assert set(result.plan.groups) == {"g0"}


def test_normalize_from_python() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 6), dtype=np.uint8)
    found = inspect(mlp(), pixels, normalize=Normalize((0.5,), (0.5,)))
    assert found.layers[0].samples_per_neuron == 5
