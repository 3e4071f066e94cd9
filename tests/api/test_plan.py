"""Budgets that only a run can tell, `plan`, the frontier and its picture."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from builders.commands import Ran
from builders.mlp import mlp, rows, saved
from builders.models import Array
from builders.models import run as outputs
from pcns_onnx import GateError, InputError, NothingToShrinkError, ShrinkResult, shrink
from pcns_onnx.api.options import Options
from pcns_onnx.api.plan import plan
from pcns_onnx.cost.resources import RESOURCES
from pcns_onnx.data.dataset import open_data, split
from pcns_onnx.graph import Graph
from pcns_onnx.planning.frontier import STEPS
from pcns_onnx.planning.plan import FrontierPoint
from pcns_onnx.report.frontier_figure import frontier_figure
from pcns_onnx.report.schema import PlanReport


def wide() -> onnx.ModelProto:
    """Two hidden layers whose spectra fall."""
    return mlp(widths=(6, 20, 12, 3))


def held_out_error(model: onnx.ModelProto, result: ShrinkResult, x: Array) -> float:
    """Of outputs whose channels are of one scale: the difference as a share of how much they vary."""
    a, b = outputs(model, x), outputs(result.model, x)
    return float(np.linalg.norm(a - b) / np.linalg.norm(a - a.mean(axis=0)))


# -- error and drop --------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.5, 0.2])
def test_an_error_budget_holds_on_data_that_was_not_solved_on(limit: float) -> None:
    model, new = wide(), np.random.default_rng(9).standard_normal((200, 6)).astype(np.float32)
    result = shrink(model, rows(300), eval=new, budget=f"error={limit}", refine=5)
    judging, checking = split(open_data(new, Graph.load(model).inputs), holdout=0.5, seed=0)
    (judge,), (check,) = ([b.feeds["x"] for b in half.batches(200)] for half in (judging, checking) if half)
    assert held_out_error(model, result, judge) <= limit * (1 + 1e-6)
    (gate,) = result.report.gates
    assert (gate.name, gate.limit) == ("budget error", limit) and gate.passed
    assert gate.value == pytest.approx(held_out_error(model, result, judge), rel=1e-4)
    assert result.report.agreement.error == pytest.approx(held_out_error(model, result, check), rel=1e-4)
    assert result.report.after.macs < result.report.before.macs


def test_more_may_go_where_more_may_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    # By multiply-adds: what the layers of a toy take depends on what else the machine does.
    monkeypatch.setattr("pcns_onnx.methods.subset.search.TIMED", ())
    sizes = [shrink(wide(), rows(300), budget=f"error={e}", refine=0).report.after.macs for e in (0.02, 0.5)]
    assert sizes[0] > sizes[1]


def test_a_drop_budget_holds_on_labels_that_were_not_solved_on(tmp_path: Path) -> None:
    model = wide()
    x = np.random.default_rng(9).standard_normal((200, 6)).astype(np.float32)
    labels = np.argmax(outputs(model, x), axis=1)
    data = {"x": x, "labels": labels}
    result = shrink(model, rows(300), eval=data, budget="drop=10", refine=0)
    found = np.argmax(outputs(result.model, x), axis=1)
    assert 100 * float(np.mean(found != labels)) <= 10
    assert [gate.name for gate in result.report.gates] == ["budget drop"]
    with pytest.raises(InputError, match="budget drop needs labels"):
        shrink(model, rows(100), tmp_path / "o.onnx", budget="drop=10")
    assert not os.listdir(tmp_path)


def test_a_cost_and_an_error_that_hold_together() -> None:
    result = shrink(wide(), rows(300), budget=["macs=0.6", "error=0.9"], refine=0)
    assert result.report.after.macs <= 0.6 * result.report.before.macs
    assert all(gate.passed for gate in result.report.gates)


def test_budgets_that_cannot_hold_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^budgets macs=0.2, error=0.001 cannot hold together: allow a larger"):
        shrink(wide(), rows(200), tmp_path / "o.onnx", budget=["macs=0.2", "error=0.001"], refine=0,
               plan_out=tmp_path / "p.json", report=tmp_path / "r.json")  # fmt: skip
    assert not os.listdir(tmp_path)


def test_an_error_that_nothing_smaller_keeps_is_refused(tmp_path: Path) -> None:
    with pytest.raises((InputError, NothingToShrinkError)):
        shrink(mlp(widths=(6, 3, 3)), rows(200), tmp_path / "o.onnx", budget="error=1e-9", refine=0)
    assert not os.listdir(tmp_path)


# -- latency ---------------------------------------------------------------------------------


def test_a_latency_out_of_reach_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^budget latency=1e-06 is out of reach: the narrowest model .* latency="):
        shrink(wide(), rows(100), tmp_path / "o.onnx", budget="latency=0.000001", refine=0)
    assert not os.listdir(tmp_path)


# -- plan ------------------------------------------------------------------------------------


def test_a_plan_is_written_and_replayed_to_the_same_bytes(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = saved(tmp_path, wide())
    made = run("plan", model, "--data", data, "--budget", "macs=0.5", "-o", "plan.json", "--threads", 1)
    assert made.code == 0 and made.err == "" and "wrote plan.json" in made.out
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["method"] == "obs" and set(told["groups"]) == {"g0", "g1"}
    for entry in told["groups"].values():
        assert 1 <= entry["width"] <= entry["of"] and len(entry["keep"]) == entry["width"]
        assert set(entry["saves"]) == set(RESOURCES) and entry["error"] >= 0
    for name in "ab":
        done = run("shrink", model, "--data", data, "--plan", "plan.json", "-o", f"{name}.onnx", "--refine", 10,
                   "--threads", 1, "--plan-out", f"{name}.json")  # fmt: skip
        assert done.code == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    small = json.loads((tmp_path / "a.json").read_text())["groups"]
    assert {n: e["keep"] for n, e in small.items()} == {n: e["keep"] for n, e in told["groups"].items()}
    assert {n: i.dims for n, i in shapes(tmp_path / "a.onnx").items() if n == "w0"}["w0"] == [6, small["g0"]["width"]]


def shapes(path: Path) -> dict[str, Any]:
    return {item.name: item for item in onnx.load(path).graph.initializer}


def test_statistics_stand_in_for_the_data(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = saved(tmp_path, wide())
    common = ("plan", model, "--threads", 1, "--json")
    first = run(*common, "--data", data, "--budget", "macs=0.7", "--stats", "s.npz", "-o", "a.json")
    seen = (tmp_path / "s.npz").read_bytes()
    second = run(*common, "--budget", "macs=0.7", "--stats", "s.npz", "-o", "b.json")
    assert first.code == second.code == 0 and second.err == ""
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    assert {n: (e["width"], e["keep"]) for n, e in one["groups"].items()} == {
        n: (e["width"], e["keep"]) for n, e in two["groups"].items()
    }
    assert json.loads(second.out)["points"][0]["costs"]["macs"] <= 0.7
    assert run(*common, "--width", 0.5, "--stats", "s.npz").code == 0
    assert (tmp_path / "s.npz").read_bytes() == seen


def test_the_frontier_falls_as_the_model_grows(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = saved(tmp_path, wide())
    done = run("plan", model, "--data", data, "--frontier", "--json", "--stats", "s.npz", "--threads", 1)
    report = json.loads(done.out)
    points = report["points"]
    assert 5 < len(points) <= len(STEPS)
    for point, share in zip(points, STEPS, strict=False):
        assert (
            0 < point["costs"]["macs"] <= share and 0 < point["costs"]["params"] <= 1 and point["costs"]["latency"] > 0
        )
    for name, descending in (("macs", True), ("error", False)):
        values = [(point | point["costs"])[name] for point in points]
        assert values == sorted(values, reverse=descending)
    assert not report["groups"] and set(report["steps"]) == {"g0", "g1"}
    shown = run("plan", model, "--stats", "s.npz", "--frontier", "--threads", 1)
    assert shown.code == 0 and f"{100 * points[0]['costs']['macs']:.0f}" in shown.out
    assert sorted(os.listdir(tmp_path)) == ["data.npz", "model.onnx", "s.npz"]


def test_the_frontier_is_drawn(run: Callable[..., Ran], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model, data = saved(tmp_path, count=60)
    done = run("plan", model, "--data", data, "--frontier", "--figure", "f.svg", "--threads", 1)
    assert done.code == 0 and "wrote f.svg" in done.out
    assert b"<path" in (tmp_path / "f.svg").read_bytes()


@pytest.mark.parametrize(("kind", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_a_picture_of_every_kind(kind: str, start: bytes, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = [FrontierPoint({"macs": share, "latency": share**0.5}, 1 - share) for share in (0.9, 0.5, 0.1)]
    report = PlanReport({}, points, [], {}, 1, 1, "CPUExecutionProvider")
    frontier_figure(tmp_path / f"f.{kind}")(report)
    assert (tmp_path / f"f.{kind}").read_bytes().startswith(start)


REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "nothing says how small": (("--data", "data.npz"), "plan takes --budget or --width, or --frontier"),
    "no data": (("--budget", "macs=0.5"), "a plan needs to see what neurons do: give --data, or --stats"),
    "statistics that are not there": (("--budget", "macs=0.5", "--stats", "none.npz"), "give --data, or --stats"),
    "both": (("--data", "data.npz", "--frontier", "--width", 0.5), "--frontier draws all budgets"),
    "error": (("--data", "data.npz", "--budget", "error=0.1"), "budgets error and drop need solved models"),
    "pcns": (("--data", "data.npz", "--budget", "macs=0.5", "--method", "pcns"), "plan is for methods obs and"),
    "a figure of one point": (("--data", "data.npz", "--width", 0.5, "--figure", "f.svg"), "give --frontier too"),
    "out of reach": (("--data", "data.npz", "--budget", "macs=0.001"), "budget macs=0.001 is out of reach"),
    "no picture": (("--data", "data.npz", "--frontier", "--figure", "f.txt"), "is no picture that can be drawn"),
    "a figure nowhere": (("--data", "data.npz", "--frontier", "--figure", "none/f.svg"), "there is no folder 'none'"),
    "a figure over the model": (
        ("--data", "data.npz", "--frontier", "--figure", "model.onnx.svg"),
        "it is an input or another output",
    ),
    "a frontier into a plan": (("--data", "data.npz", "--frontier", "-o", "p.json"), "--frontier writes no plan"),
    "a budget of another kind": (("--data", "data.npz", "--budget", "time=0.5"), "budget 'time=0.5' is not understood"),
    "batches of nothing": (("--data", "data.npz", "--width", 0.5, "--batch-latency", 0), "too small"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_plan_refuses_in_a_line(name: str, run: Callable[..., Ran], tmp_path: Path) -> None:
    saved(tmp_path, wide(), 60)
    os.link(tmp_path / "model.onnx", tmp_path / "model.onnx.svg")
    choices, line = REFUSED[name]
    done = run("plan", "model.onnx", *choices, "--threads", 1)
    assert done.code == 2 and line in done.err and done.err.count("\n") == 1 and done.out == ""
    assert sorted(os.listdir(tmp_path)) == ["data.npz", "model.onnx", "model.onnx.svg"]


def test_nothing_to_plan_says_why(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = saved(tmp_path, mlp(widths=(6, 3)), 60)
    done = run("plan", model, "--data", data, "--width", 0.5, "-o", "plan.json", "--threads", 1)
    assert done.code == 3 and "nothing can be shrunk" in done.err
    assert not (tmp_path / "plan.json").exists()


def test_plan_from_python_gives_what_the_command_writes(tmp_path: Path) -> None:
    made = plan(wide(), rows(100), tmp_path / "plan.json", budget="params=0.5", threads=1)
    assert made.plan is not None
    replayed = shrink(wide(), rows(100), plan=tmp_path / "plan.json", refine=0)
    assert {n: g.keep for n, g in replayed.plan.groups.items()} == {n: g.keep for n, g in made.plan.groups.items()}
    assert replayed.report.after.parameters <= 0.5 * replayed.report.before.parameters
    curve = plan(mlp(), rows(100), frontier=True, threads=1)
    assert curve.plan is None and len(curve.report.points) > 5


def test_qualities_are_no_costs() -> None:
    options = Options.of(budget=["macs=0.5", "error=0.1", "drop=2", "latency=0.7"]).goal
    assert [b.resource for b in options.costs] == ["macs", "latency"]
    assert [b.resource for b in options.qualities] == ["error", "drop"]


def test_a_gate_beside_a_budget_is_a_gate_still(tmp_path: Path) -> None:
    with pytest.raises(GateError):
        shrink(wide(), rows(200), tmp_path / "o.onnx", budget="macs=0.1", max_error=1e-6, refine=0)
    assert not os.listdir(tmp_path)


def test_a_model_with_a_fixed_batch_is_timed_in_that() -> None:
    model = mlp(4, widths=(6, 800, 800, 3))
    result = shrink(model, rows(64), budget="latency=0.9", batch_latency=1, refine=0, threads=1)
    assert result.report.latency is not None and result.report.latency.batch == 4
