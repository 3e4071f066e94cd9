"""In rounds: the budget is met, the original teaches and judges in each, and what fails later costs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import ModelProto

from builders import states
from builders import topologies as t
from builders.mlp import mlp, rows, saved
from pcns_onnx import InputError, NothingToShrinkError, compare, shrink
from pcns_onnx.api.shrinking.step import Narrowed, Step, take
from pcns_onnx.cli.main import main
from pcns_onnx.data.dataset import open_data
from pcns_onnx.graph import Graph
from pcns_onnx.planning.plan import Plan
from pcns_onnx.runtime.engine import choose_engine

pytest.importorskip("torch")

WIDE = (6, 32, 24, 3)
FAST: Mapping[str, Any] = {"threads": 1, "heal": 640, "refine": 5}


def wide() -> ModelProto:
    return mlp(widths=WIDE)


def images(*shape: int) -> Any:
    return np.random.default_rng(5).standard_normal((120, *shape)).astype(np.float32)


def share(report: Any, resource: str = "macs") -> float:
    before, after = (getattr(side, resource) for side in (report.before, report.after))
    return float(after / before)


def _chosen(choices: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**FAST, **choices}.items() if value is not None}


CASES: Mapping[str, tuple[Callable[[], ModelProto], Any, dict[str, Any]]] = {
    "a budget": (wide, rows(), {"budget": "macs=0.3"}),
    "two budgets": (wide, rows(), {"budget": ["params=0.4", "macs=0.35"]}),
    "size": (wide, rows(), {"budget": "size=0.5"}),
    "interpolative": (wide, rows(), {"budget": "macs=0.3", "method": "interpolative"}),
    "pcns": (wide, rows(), {"budget": "macs=0.3", "method": "pcns", "refine": None}),
    "by the weights": (wide, rows(), {"budget": "macs=0.3", "method": "eigenremove", "refine": None}),
    "a batch of one": (lambda: mlp(batch=1, widths=WIDE), rows(120), {"budget": "macs=0.3"}),
    "residual": (t.residual, images(3, 6, 6), {"budget": "macs=0.4"}),
    "depthwise": (t.inverted_residual, images(3, 6, 6), {"budget": "macs=0.4"}),
    "whole blocks": (t.residual, images(3, 6, 6), {"budget": "macs=0.2", "depth": True}),
}


@pytest.mark.parametrize("kind", CASES)
def test_the_last_round_meets_the_budget_and_the_ones_before_go_there_evenly(kind: str) -> None:
    build, samples, choices = CASES[kind]
    model, count = build(), 3
    report = shrink(model, {model.graph.input[0].name: samples}, rounds=count, **_chosen(choices)).report
    assert report.failed_round is None and len(report.rounds) == count
    budget = choices["budget"] if isinstance(choices["budget"], str) else choices["budget"][0]
    name, _, limit = budget.partition("=")
    attribute = {"macs": "macs", "params": "parameters", "size": "bytes"}[name]
    assert share(report, attribute) <= float(limit)
    for item in report.rounds:
        left = getattr(item.size, attribute) / getattr(report.before, attribute)
        assert left <= float(limit) ** (item.number / count) * 1.02  # a healed model's note takes some bytes
    assert report.after == report.rounds[-1].size


def test_the_original_teaches_and_judges_in_every_round() -> None:
    model, x = wide(), rows()
    result = shrink(model, {"x": x}, budget="macs=0.3", rounds=2, eval={"x": rows(90)}, **FAST)
    healings = [item.healing for item in result.report.rounds]
    assert all(healing is not None for healing in healings)
    teachers = {healing.hashes["original"] for healing in healings if healing is not None}
    assert teachers == {Graph.load(model).digest()}
    assert len({healing.hashes["start"] for healing in healings if healing is not None}) == 2
    assert sum(healing.updates for healing in healings if healing is not None) <= FAST["heal"] * 1.1
    last = result.report.rounds[-1].agreement
    assert last.outputs[0].relative_error == result.report.agreement.outputs[0].relative_error
    again = compare(model, result.model, {"x": rows(90)}, threads=1)
    assert again.agreement.error == pytest.approx(result.report.agreement.error)


def test_the_same_run_gives_the_same_bytes_and_one_round_is_none(tmp_path: Path) -> None:
    model, data = saved(tmp_path, wide())
    outs = {}
    runs: dict[str, dict[str, Any]] = {"a": {"rounds": 2}, "b": {"rounds": 2}, "one": {"rounds": 1}, "none": {}}
    for name, more in runs.items():
        shrink(model, data, tmp_path / f"{name}.onnx", budget="macs=0.3", **FAST, **more)
        outs[name] = (tmp_path / f"{name}.onnx").read_bytes()
    assert outs["a"] == outs["b"] and outs["one"] == outs["none"] != outs["a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.onnx", "b.onnx", "data.npz", "model.onnx", "none.onnx", "one.onnx",
    ]  # fmt: skip


@pytest.mark.parametrize("error", [InputError("no way"), MemoryError(), RuntimeError("a fault"), KeyError("x")])
def test_a_later_round_that_fails_leaves_the_model_of_the_one_before(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = saved(tmp_path, wide())
    out, report = tmp_path / "out.onnx", tmp_path / "report.json"

    def failing(step: Step) -> Narrowed:
        if step.number == 2:
            raise error
        return take(step)

    monkeypatch.setattr("pcns_onnx.api.shrinking.rounds.take", failing)
    words = ["shrink", str(model), "--data", str(data), "-o", str(out), "--budget", "macs=0.3", "--heal", "640"]
    assert main([*words, "--rounds", "2", "--threads", "1", "--refine", "5", "--report", str(report)]) == 5
    said = capsys.readouterr().err
    assert said.count("round 2 of 2 failed") == 1 and f"({out} is written)" in said and "Traceback" not in said
    record = json.loads(report.read_text())
    assert len(record["rounds"]) == 1 and record["failed_round"] in record["warnings"]
    assert record["after"] == record["rounds"][0]["size"] and record["after"]["macs"] < record["before"]["macs"]
    onnx.checker.check_model(onnx.load(out), full_check=True)


def test_a_first_round_that_fails_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = saved(tmp_path, wide())
    words = ["shrink", str(model), "--data", str(data), "-o", str(tmp_path / "out.onnx"), "--budget", "macs=0.00001"]
    assert main([*words, "--heal", "640", "--rounds", "2", "--threads", "1"]) == 2
    assert "out of reach" in capsys.readouterr().err and not (tmp_path / "out.onnx").exists()


def test_what_cannot_heal_shrinks_in_rounds_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, **kwargs: Any) -> Any:
        raise AttributeError("our own fault")

    monkeypatch.setattr("pcns_onnx.api.shrinking.step.heal_samples", failing)
    report = shrink(wide(), {"x": rows()}, budget="macs=0.3", rounds=2, **FAST).report
    assert share(report) <= 0.3 and report.healing is None
    assert [note for item in report.rounds for note in item.notes] == [
        "not healed, the shrunk model is as it was: AttributeError: our own fault"
    ] * 2
    assert any(warning.startswith("round 2: not healed") for warning in report.warnings)


def test_a_plan_of_rounds_leads_to_the_same_widths_and_says_that_it_is_one_step(tmp_path: Path) -> None:
    model, path = wide(), tmp_path / "plan.json"
    first = shrink(model, {"x": rows()}, budget="macs=0.3", rounds=3, plan_out=path, **FAST)
    assert any("does not replay the rounds" in warning for warning in first.report.warnings)
    plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    assert plan == first.plan and plan.rounds == 3
    assert {name: (g.of, g.width) for name, g in plan.groups.items()} == {
        info.name: (info.width, info.kept) for info in first.report.groups
    }
    again = shrink(model, {"x": rows()}, plan=path, threads=1, refine=0).report
    assert again.after.macs == first.report.after.macs
    assert any("made in 3 rounds" in warning for warning in again.warnings)


def test_no_layer_is_left_alone_that_a_round_has_narrowed() -> None:
    report = shrink(t.residual(), {"x": images(3, 6, 6)}, budget="macs=0.4", rounds=3, **FAST).report
    narrowed = {info.name for info in report.groups}
    assert narrowed and not narrowed & {name for item in report.left_alone for name in (item.layers or [item.name])}


@pytest.mark.parametrize(
    ("choices", "what"), [({"variance": 0.9}, "--variance"), ({"budget": ["macs=0.5", "drop=1"]}, "error or drop")]
)
def test_what_cannot_be_divided_is_refused(choices: dict[str, Any], what: str) -> None:
    x = rows()
    labels = np.argmax(x[:, :3], axis=1)
    with pytest.raises(InputError, match=f"--rounds divides a budget on costs, or --width: .*{what}"):
        shrink(wide(), {"x": x, "labels": labels}, rounds=2, **FAST, **choices)


def test_the_terminal_and_the_page_have_a_line_for_each_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = saved(tmp_path, wide())
    words = ["shrink", str(model), "--data", str(data), "-o", str(tmp_path / "out.onnx"), "--width", "0.4", "--heal"]
    page = tmp_path / "report.html"
    assert main([*words, "640", "--rounds", "2", "--threads", "1", "--refine", "0", "--html", str(page)]) == 0
    said = capsys.readouterr()
    assert "round 1: width=0.6325; MACs 0." in said.out and "round 2: width=0.6325; MACs 0." in said.out
    assert "<h2>Rounds</h2>" in page.read_text() and "width=0.6325" in page.read_text()


def test_no_round_is_made_that_is_not_needed() -> None:
    report = shrink(wide(), {"x": rows()}, budget="macs=0.8", multiple=8, rounds=3, **FAST).report
    assert len(report.rounds) == 1 and report.failed_round is None and share(report) <= 0.8
    assert any(text.startswith("1 of 3 rounds have met the budget") for text in report.warnings)
    with pytest.raises(NothingToShrinkError):
        shrink(wide(), {"x": rows()}, budget="macs=1", rounds=3, **FAST)


def test_shrink_says_that_it_cannot_resume() -> None:
    with pytest.raises(InputError, match="--resume goes on from a checkpoint of `heal`"):
        shrink(wide(), {"x": rows()}, budget="macs=0.3", rounds=2, resume=True, **FAST)


def test_samples_are_read_by_later_rounds_as_by_the_first() -> None:
    """A model of float16 keeps its storage type, and what is normalised is normalised once."""
    model = wide()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    result = shrink(model, {"x": rows()}, budget="macs=0.4", rounds=2, **FAST)
    assert {tensor.data_type for tensor in result.model.graph.initializer} == {onnx.TensorProto.FLOAT16}
    engine, graph = choose_engine("cpu", 1), Graph.load(result.model)
    batch = next(open_data({"x": rows(4)}, graph.inputs).batches(4))
    assert np.isfinite(engine.session(graph.program()).run(batch.feeds)["y"]).all()


def test_states_that_get_narrower_do_so_in_one_step() -> None:
    samples = [{"x": x} for x in np.random.default_rng(1).standard_normal((60, 4, 1, 5)).astype(np.float32)]
    choices: dict[str, Any] = {"states": "narrow", "carry": "hN=h", "budget": "macs=0.5"}
    with pytest.raises(InputError, match="--rounds leaves states and caches alone"):
        shrink(states.streaming("GRU", "forward", 1), samples, rounds=2, **FAST, **choices)
