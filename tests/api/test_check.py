"""A bound is given only for samples that neither the solve nor any choice has used, and samples that say nothing are
said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from builders.commands import Ran
from builders.mlp import mlp, rows, saved
from builders.models import Array
from pcns_onnx import InputError, compare, shrink
from pcns_onnx.api.plan import plan
from pcns_onnx.evaluation.output_tally import OutputAgreement
from pcns_onnx.report.schema import Report

NOTHING = "nothing is said of new samples"


def made(data: Any, **choices: Any) -> Report:
    chosen: dict[str, Any] = {"width": 0.5, "refine": 0, "threads": 1}
    if "budget" in choices or "plan" in choices:
        del chosen["width"]
    return shrink(choices.pop("model", None) or mlp(), data, **chosen | choices).report


def output(report: Report) -> OutputAgreement:
    return report.agreement.outputs[0]


def bounds(report: Report) -> tuple[float | None, float | None]:
    return output(report).argmax_bound, output(report).error_bound


def fresh(count: int = 200, seed: int = 5) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 6)).astype(np.float32)


# -- samples that were used ------------------------------------------------------------------


def test_samples_held_out_prove_something() -> None:
    report = made(rows(900))
    assert None not in bounds(report) and report.agreement.proving == 90
    assert all("class of 'y'" in text for text in report.warnings)


@pytest.mark.parametrize("same", ["all", "some", "others"])
def test_samples_of_the_data_do_not_count(same: str) -> None:
    data = rows(900)
    given = {"all": data, "some": np.concatenate([data[:50], fresh()]), "others": fresh()}[same]
    report = made(data, eval=given)
    assert (None in bounds(report)) is (same == "all")
    assert report.agreement.proving == {"all": 0, "some": 200, "others": 200}[same]
    assert report.agreement.samples == len(given)
    assert any("that the solve or a choice has seen" in text for text in report.warnings) is (same != "others")
    assert any(NOTHING in text for text in report.warnings) is (same == "all")


def test_what_does_not_count_does_not_move_the_bound() -> None:
    data, more = rows(900), fresh()
    alone, joined = made(data, eval=more), made(data, eval=np.concatenate([data[:300], more, more[:40]]))
    assert bounds(alone) == pytest.approx(bounds(joined), rel=0.05) and joined.agreement.samples == 540


def test_held_out_copies_of_the_data_do_not_count() -> None:
    report = made(np.concatenate([rows(300)] * 2))
    assert report.agreement.samples == 60 and report.agreement.proving < 20 and bounds(report) == (None, None)
    assert any("repeat others" in text for text in report.warnings)


@pytest.mark.parametrize("budget", ["error=0.3", "drop=50"])
def test_a_search_judges_on_one_half(budget: str) -> None:
    x = fresh(300)
    held = {"x": x, "labels": np.argmax(x[:, :3], axis=1)}
    report = made(rows(900), eval=held, budget=budget)
    assert (report.agreement.samples, report.agreement.proving) == (150, 150) and None not in bounds(report)
    assert any("searched for on 150 of" in text for text in report.warnings) and all(g.passed for g in report.gates)


def test_a_search_on_few_samples_leaves_no_bound() -> None:
    report = made(rows(900), eval=fresh(100), budget="error=0.3")
    assert report.agreement.samples == 100 and bounds(report) == (None, None)
    assert any(text.startswith("the budget was searched for on the 100 samples") for text in report.warnings)


def test_a_plan_remembers_what_it_was_chosen_on(tmp_path: Path) -> None:
    path, data = tmp_path / "plan.json", rows(900)
    plan(mlp(), data, path, budget="macs=0.6", threads=1)
    assert None not in bounds(made(data, plan=path))
    assert None not in bounds(made(fresh(900, 6), plan=path))
    for other in (made(data, plan=path, seed=1), made(fresh(900, 6), eval=data, plan=path)):
        assert bounds(other) == (None, None)
        assert any(text.startswith("the plan was chosen on ") for text in other.warnings)
    edited = json.loads(path.read_text())
    del edited["samples"]
    path.write_text(json.dumps(edited))
    unknown = made(data, plan=path)
    assert bounds(unknown) == (None, None) and any("does not say which samples" in text for text in unknown.warnings)
    path.write_text(json.dumps(edited | {"samples": "what is this"}))
    with pytest.raises(InputError, match="is no sketch"):
        made(data, plan=path)


def test_a_replayed_search_proves_nothing_on_its_own_samples(tmp_path: Path) -> None:
    path, held = tmp_path / "plan.json", fresh(300)
    made(rows(900), eval=held, budget="error=0.3", plan_out=path)
    assert bounds(made(rows(900), eval=held, plan=path)) == (None, None)
    assert None not in bounds(made(rows(900), eval=fresh(300, 7), plan=path))


def test_plan_and_shrink_share_their_statistics(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = saved(tmp_path)
    common = (model, "--threads", 1, "--budget", "macs=0.7", "--stats", "s.npz")
    assert run("plan", *common, "--data", data, "-o", "p.json").code == 0
    assert run("plan", *common, "-o", "again.json").code == 0
    assert json.loads((tmp_path / "p.json").read_text())["samples"]
    assert (tmp_path / "p.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    assert run("shrink", *common, "--data", data, "--refine", 0, "-o", "o.onnx").code == 0
    other = run("shrink", *common, "--data", data, "--refine", 0, "-o", "no.onnx", "--holdout", 0.2)
    assert other.code == 2 and "s.npz' are of other data (270 samples, here 240)" in other.err
    assert other.err.count("\n") == 1 and not (tmp_path / "no.onnx").exists()


def test_compare_knows_the_samples_that_a_model_was_made_on() -> None:
    data = rows(900)
    small = shrink(mlp(), data, width=0.5, refine=0, threads=1).model
    seen, new = (compare(mlp(), small, x, threads=1) for x in (data, fresh()))
    assert bounds(seen) == (None, None) and any(NOTHING in text for text in seen.warnings)
    assert None not in bounds(new) and not new.warnings


def test_methods_that_look_at_weights_only_have_seen_no_sample() -> None:
    report = made(rows(300), method="min-weight")
    assert None not in bounds(report) and report.agreement.proving == 300
    refitted = made(rows(300), method="min-weight", refit=True)
    assert refitted.agreement.proving == 30


# -- samples that say nothing ----------------------------------------------------------------


def copies(x: Array, count: int) -> Array:
    return np.repeat(x, count, axis=0)


ALIKE = {
    "zero": np.zeros((300, 6), np.float32),
    "one": np.ones((300, 6), np.float32),
    "one, repeated": copies(rows(1), 300),
    "only one": rows(1),
}


@pytest.mark.parametrize("case", ALIKE)
@pytest.mark.parametrize("evaluated", [False, True])
def test_samples_that_are_alike_prove_nothing(case: str, evaluated: bool) -> None:
    report = made(ALIKE[case], **({"eval": fresh()} if evaluated else {}))
    assert bounds(report) == (None, None)
    assert any("are the same" in text or "has one sample" in text for text in report.warnings)
    assert any("nothing but zeros" in text for text in report.warnings) is (case == "zero")
    for info in report.groups:
        assert info.predicted_error is None and all(fit.error is None for fit in info.fits.values())


@pytest.mark.parametrize("count", [3, 20])
def test_a_few_samples_repeated_are_few_samples(count: int) -> None:
    report = made(copies(rows(count), 40))
    assert bounds(report) == (None, None)
    assert any(f"repeat others: they count as {count}" in text for text in report.warnings)
    assert any("have fewer rows than unknowns" in text for text in report.warnings) is (count == 3)
    assert any("few samples" in text for text in report.warnings)


def test_a_check_of_samples_that_are_alike_proves_nothing() -> None:
    report = made(rows(900), eval=copies(fresh(1), 100))
    assert bounds(report) == (None, None) and any("all 100 samples of the check" in text for text in report.warnings)


def test_few_samples_of_a_check_are_said() -> None:
    report = made(rows(100))
    assert bounds(report) == (None, None) and any("rests on 10 different samples" in t for t in report.warnings)
    assert output(made(rows(900), eval=fresh(20))).argmax_bound is not None


def two_inputs() -> ModelProto:
    """y = relu(x W + s U) V."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((6, 16)), "u": rng.standard_normal((4, 16)), "v": rng.standard_normal((16, 3))}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["s", "u"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["c"]), helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "v"], ["y"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "two", [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", k]) for n, k in (("x", 6), ("s", 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("varies", [True, False])
def test_an_input_that_never_changes_is_named(varies: bool) -> None:
    state = np.random.default_rng(3).standard_normal((400, 4)) if varies else np.zeros((400, 4))
    report = made({"x": rows(400), "s": state.astype(np.float32)}, model=two_inputs())
    assert any("input 's' is the same, zero, in all 360 samples" in text for text in report.warnings) is not varies
    assert (output(report).argmax_bound is None) is not varies


# -- what is printed -------------------------------------------------------------------------


def test_what_is_not_known_is_a_dash_and_null(run: Callable[..., Ran], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    model, _ = saved(tmp_path)
    np.save(tmp_path / "zeros.npy", np.zeros((200, 6), np.float32))
    done = run("shrink", model, "--data", "zeros.npy", "--width", 0.5, "--refine", 0, "--threads", 1, "-o", "o.onnx",
               "--report", "r.json", "--html", "r.html")  # fmt: skip
    assert done.code == 0
    (row,) = [line for line in done.out.splitlines() if line.startswith("g0 ")]
    assert row.split() == ["g0", "12", "6", *["\N{EN DASH}"] * 3]
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["groups"][0]["predicted_error"] is None
    assert all(fit["error"] is None for fit in report["groups"][0]["fits"].values())
    assert "\N{EN DASH}" in (tmp_path / "r.html").read_text()


def test_no_share_is_above_all_of_it() -> None:
    report = made(rows(14), width=0.1, eval=fresh())
    shares = [fit.held_out_error for info in report.groups for fit in info.fits.values()]
    assert all(value is None or 0 <= value <= 1 for value in shares)
