"""`advise`: candidates really made, what they would lose, and one that is recommended; its commands run as printed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper

from builders.commands import Ran
from builders.mlp import mlp, rows, saved
from builders.models import build
from pcns_onnx import InputError, advise
from pcns_onnx.report.advice.record import Advice

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "models" / "digits_mlp_tanh.onnx"
ROWS = ROOT / "models" / "digits_rows.npz"
NAMES = [
    "as it is", "int8", "shrink to 0.9", "shrink to 0.8", "shrink to 0.65", "shrink to 0.5",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _timed_briefly() -> Iterator[None]:
    """How fast candidates are is not what these tests are about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pcns_onnx.report.advice.candidates._SECONDS", 0.02)
        yield


@pytest.fixture(scope="module")
def advice() -> Advice:
    """Of a small network with labelled samples."""
    return advise(DIGITS, ROWS, samples=400, threads=1)


def test_the_table_has_every_candidate_in_the_order_of_effort(advice: Advice) -> None:
    names = [row.name for row in advice.rows]
    assert names[: len(NAMES)] == NAMES and [name.rpartition(", ")[2] for name in names[len(NAMES) :]] == [
        "int8",
        "heal",
    ]
    for row in advice.rows:
        assert row.why_not is None and row.loss is not None and row.loss.low <= row.loss.share <= row.loss.high
        assert row.latency and row.bytes and row.seconds is not None
    for row in advice.rows[2:6]:
        assert row.budget and row.macs and row.macs <= row.budget and row.bytes and row.bytes < advice.before.bytes
    assert advice.recommended in names and advice.row("as it is").loss.high == 0  # type: ignore[union-attr]
    assert [item.name for item in advice.held_back] and advice.frontier


def test_losses_are_the_same_every_time(advice: Advice) -> None:
    again = advise(DIGITS, ROWS, samples=400, threads=1)
    assert [row.loss for row in again.rows[:6]] == [row.loss for row in advice.rows[:6]]


def test_what_was_said_is_passed_on_to_the_commands(tmp_path: Path) -> None:
    model, data = saved(tmp_path)
    result = advise(model, data, include="g*", max_drop=3.0, batch=32, seed=2, threads=1, coupled=False)
    command = result.row("shrink to 0.8").command
    words = ["--include 'g*'", "--max-drop 3.0", "--batch 32", "--seed 2", "--threads 1", "--no-coupled", "macs=0.8"]
    assert all(word in command for word in words)
    assert "--include" not in result.row("int8").command and "quantize" in result.row("int8").command
    assert result.allowed == pytest.approx(3.0 / result.rows[0].loss.score)  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("name", ["int8", "shrink to 0.65", "shrink to 0.9, int8"])
def test_commands_run_as_printed(run: Callable[..., Ran], tmp_path: Path, name: str) -> None:
    model, data = saved(tmp_path)
    ran = run("advise", model, "--data", data, "--threads", 1, "--max-drop", 0, "--json")
    assert ran.code == 0, ran.err
    advice = msgspec.json.decode(ran.out, type=Advice)
    row = next(
        row for row in advice.rows if row.name.startswith(name.partition(",")[0]) and ("," in row.name) is ("," in name)
    )
    program, *words = shlex.split(row.command)
    assert program == "pcns-onnx"
    # three neurons each: what may be lost is up to the user, and is not what this is about
    words = [word for at, word in enumerate(words) if word != "--max-drop" and words[at - 1] != "--max-drop"]
    ran = run(*words)
    assert ran.code == 0, ran.err
    written = Path(words[words.index("-o") + 1])
    assert written.exists()
    if name != "int8":
        assert abs(written.stat().st_size - (row.bytes or 0)) < 1200 or "," in name


def test_the_command_of_a_folder_writes_a_folder(run: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    _, data = saved(tmp_path / "held", mlp(widths=(6, 64, 48, 3)))
    data = data.rename(tmp_path / "data.npz")
    (tmp_path / "held" / "config.json").write_text("{}")
    row = advise("held", data, threads=1).row("int8")
    _, *words = shlex.split(row.command)
    ran = run(*words)
    assert ran.code == 0, ran.err
    assert {path.name for path in (tmp_path / "held.int8").iterdir()} == {"model.onnx", "config.json"}


def test_a_candidate_is_as_large_and_as_costly_as_what_its_command_writes(
    run: Callable[..., Ran], advice: Advice
) -> None:
    row = advice.row("shrink to 0.65")
    _, *words = shlex.split(row.command)
    assert run(*words, "--refine", 0, "--report", "r.json", "-q").code == 0
    report = json.loads(Path("r.json").read_text())
    assert report["after"]["macs"] / report["before"]["macs"] == pytest.approx(row.macs, abs=1e-6)
    assert report["after"]["bytes"] == pytest.approx(row.bytes, abs=1024)  # but for the note of provenance


def one_layer() -> onnx.ModelProto:
    """Nothing between input and output that could get narrower."""
    return mlp(widths=(6, 3))


def test_where_no_layer_can_get_narrower_it_says_so_and_why(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = saved(tmp_path, one_layer())
    ran = run("advise", model, "--data", data, "--threads", 1)
    assert ran.code == 0, ran.err
    assert "against shrinking: no layer can get narrower" in ran.out
    assert "it feeds the model's output 'y'" in " ".join(ran.out.split())
    advice = advise(model, data, threads=1)
    assert advice.recommended in ("as it is", "int8")
    assert [row.why_not for row in advice.rows[2:]] == ["no layer can get narrower"] * 6
    assert advice.held_back[0].macs == pytest.approx(1.0)


def test_where_all_its_time_is_elsewhere_it_says_so() -> None:
    rng = np.random.default_rng(0)
    weights = {
        "w0": rng.standard_normal((4, 8)).astype(np.float32), "b0": np.zeros(8, np.float32),
        "w1": rng.standard_normal((8, 512)).astype(np.float32), "b1": np.zeros(512, np.float32),
        "w2": (rng.standard_normal((512, 512)) / 20).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"], name="small"),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "w1", "b1"], ["wide"], name="wide"),
        helper.make_node("LayerNormalization", ["wide", "g"], ["n"], name="norm"),
        helper.make_node("MatMul", ["n", "w2"], ["y"], name="large"),
    ]
    weights["g"] = np.ones(512, np.float32)
    samples = rng.standard_normal((200, 4)).astype(np.float32)
    advice = advise(build(nodes, weights, ["N", 4]), samples, threads=1, batch_latency=64, exclude="wide")
    assert any("of its time goes into operators that no width changes" in text for text in advice.against)
    assert advice.recommended in ("as it is", "int8")


def test_too_few_samples_are_said_to_be_too_few() -> None:
    advice = advise(mlp(), rows(15), threads=1)
    assert advice.recommended == "as it is" and "different samples are too few" in advice.why
    alike = advise(mlp(), np.ones((60, 6), np.float32), threads=1)
    assert alike.recommended == "as it is" and "are the same" in alike.why


def test_fewer_rows_than_unknowns_are_said() -> None:
    advice = advise(mlp(widths=(6, 120, 80, 3)), rows(60), threads=1)
    assert any("unknowns for each output" in text for text in advice.against)


def test_a_net_without_anything_to_spare_is_called_compact() -> None:
    advice = advise(mlp(widths=(6, 6, 6, 6)), rows(200), threads=1, max_error=0.001)
    assert advice.recommended in ("as it is", "int8")
    assert any(text.startswith("it is compact") for text in advice.against)


def test_a_model_in_int8_is_not_made_int8_again(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = saved(tmp_path)
    assert run("quantize", model, "--data", data, "-o", "q.onnx", "-q").code == 0
    ran = run("quantize", "q.onnx", "--data", data, "-o", "again.onnx")
    assert ran.code == 2 and "quantised already" in ran.err and not Path("again.onnx").exists()
    advice = advise("q.onnx", data, threads=1)
    assert "quantised already" in (advice.row("int8").why_not or "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "tvm"], "--target tvm is not understood: write auto, cpu, cuda, openvino or onnxruntime-web"),
        (["--max-drop", -1], "--max-drop -1 is out of range"),
        (["--html", "page.txt"], "'page.txt' is no page"),
        (["--data", "nowhere.npz"], "nowhere.npz"),
        (["--eval", "nowhere.npz"], "nowhere.npz"),
        (["--metric", "nowhere:score"], "metric 'nowhere:score' cannot be imported"),
    ],
)
def test_bad_input_is_one_line(run: Callable[..., Ran], tmp_path: Path, words: list[object], message: str) -> None:
    model, data = saved(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    ran = run("advise", model, "--data", data, *words)
    assert ran.code == 2 and ran.out == ""
    (line,) = ran.err.strip().splitlines()
    assert message in line
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_target_and_device_may_not_contradict_each_other() -> None:
    with pytest.raises(InputError, match="--target cuda and --device cpu contradict each other"):
        advise(mlp(), rows(), target="cuda", device="cpu")


def test_a_choice_that_it_would_not_read_is_refused() -> None:
    with pytest.raises(InputError, match="--budget is no choice of advise"):
        advise(mlp(), rows(), budget="macs=0.5")
    with pytest.raises(TypeError, match="unexpected keyword argument 'budgets'"):
        advise(mlp(), rows(), budgets="macs=0.5")  # type: ignore[call-arg]


def test_json_is_the_record(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = saved(tmp_path)
    ran = run("advise", model, "--data", data, "--threads", 1, "--json")
    record = json.loads(ran.out)
    assert record["schema"] == 1 and {"rows", "recommended", "why", "against", "held_back", "versions"} <= record.keys()
    assert {"measure", "share", "low", "high"} <= record["rows"][2]["loss"].keys()
    msgspec.json.decode(ran.out, type=Advice)


def test_the_page_shows_the_table_and_the_frontier(run: Callable[..., Ran], tmp_path: Path) -> None:
    pytest.importorskip("jinja2"), pytest.importorskip("matplotlib")
    model, data = saved(tmp_path)
    ran = run("advise", model, "--data", data, "--threads", 1, "--html", "a.html")
    assert ran.code == 0 and "wrote a.html" in ran.out, ran.err
    text = Path("a.html").read_text()
    assert "<svg" in text and "Error against cost" in text and "shrink to 0.65" in text and "<script" not in text
