"""States and caches that get narrower at both ends: what a caller carries has fewer channels, and does the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from builders import states
from builders.models import Array
from pcns_onnx import InputError, PcnsError, compare, shrink
from pcns_onnx.cli.main import main
from robustness.transformers import row

CARRY = "present.*=past.*"


def feeds(shape: tuple[int, ...], count: int = 300) -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def steps(shape: tuple[int, ...], count: int = 50) -> list[Array]:
    return [feed["x"] for feed in feeds(shape, count)]


def largest(a: Array, b: Array) -> float:
    return float(np.abs(a - b).max() / a.std())


def conversation(model: onnx.ModelProto, count: int = 30) -> list[dict[str, Array]]:
    """Prompts of four tokens, each with six more tokens behind it."""
    rng, parts = np.random.default_rng(5), list[dict[str, Array]]()
    caches = {name: sizes for name, sizes in states.shapes(model).items() if name.startswith("past")}
    for _ in range(count):
        empty = {name: np.zeros((1, sizes[1], 0, sizes[3]), np.float32) for name, sizes in caches.items()}
        parts.append({"input_ids": rng.integers(0, 40, (1, 4)), **empty})
        parts += [{"input_ids": rng.integers(0, 40, (1, 1))} for _ in range(6)]
    return parts


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["GRU", "LSTM", "RNN"])
def test_copied_units_go_from_the_states_as_well(op: str, direction: str, layers: int) -> None:
    model = states.streaming(op, direction, layers)
    carries = {"h": "hN", "c": "cN"} if op == "LSTM" else {"h": "hN"}
    carry = [f"{source}={name}" for name, source in carries.items()]
    result = shrink(model, feeds((4, 1, 5)), width=0.6, threads=1, refine=0, states="narrow", carry=carry)
    onnx.checker.check_model(result.model, full_check=True)
    sizes = states.shapes(result.model)
    assert all(sizes[end][2] == 6 for pair in carries.items() for end in pair)
    xs = steps((3, 2, 5))  # of another length, and another batch
    a, b = (states.running_free(m, xs, carries, 2) for m in (model, result.model))
    assert largest(a, b) < 1e-4
    assert result.report.agreement.error < 1e-4
    assert [state.input for state in result.report.contract] == list(carries)
    assert all(state.new[2] == 6 and state.old[2] == 10 for state in result.report.contract)
    lines = [line for line in result.report.warnings if line.startswith("the contract changes: state 'h'")]
    assert len(lines) == 1


FORMS: dict[str, tuple[Any, tuple[int, ...], dict[str, str]]] = {
    "one state, taken by Gather": (states.in_one_state, (1, 5), {"state": "stateN"}),
    "one state, taken by Split": (lambda: states.in_one_state("Split"), (1, 5), {"state": "stateN"}),
    "a cell that is written out": (states.written_out, (1, 5), {"h": "hN"}),
    "what a Conv keeps": (states.buffered, (1, 5, 4), {"buffer": "bufferN"}),
}


@pytest.mark.parametrize("way", [{"width": 0.6, "multiple": 1}, {"budget": "macs=0.7"}], ids=["width", "budget"])
@pytest.mark.parametrize("form", FORMS)
def test_other_states_narrow_too(form: str, way: dict[str, Any]) -> None:
    make, shape, carries = FORMS[form]
    (name, source), model = *carries.items(), make()
    result = shrink(model, feeds(shape), threads=1, refine=0, states="narrow", carry=f"{source}={name}", **way)
    before, after = states.shapes(model), states.shapes(result.model)
    assert sum(a != b for a, b in zip(before[name], after[name], strict=True)) == 1
    assert after[name] == after[source]
    xs = steps((2, *shape[1:]))
    assert largest(*(states.running_free(m, xs, carries, 2) for m in (model, result.model))) < 1e-4


def test_a_saved_state_is_converted_by_what_the_report_says() -> None:
    model = states.streaming("GRU", "bidirectional", 2)
    result = shrink(model, feeds((4, 1, 5)), width=0.6, threads=1, refine=0, states="narrow", carry="hN=h")
    x = feeds((5, 2, 5), 1)[0]["x"]
    a, b = (states.session(m) for m in (model, result.model))
    _, whole = a.run(None, {"x": x, "h": np.zeros((4, 2, 10), np.float32)})
    _, narrow = b.run(None, {"x": x, "h": np.zeros((4, 2, 6), np.float32)})
    (state,) = result.report.contract
    assert np.allclose(state.narrow(whole), narrow, atol=1e-5)


DECODERS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], list[Any]]] = {
    "dimensions, written out": ("GPT-2 with a cache", "plain", {"unit": "dims"}, {}, [4, 8]),
    "dimensions, Attention-23": ("GPT-2 with a cache", "onnx", {"unit": "dims"}, {}, [4, 8]),
    "dimensions, MultiHeadAttention": ("GPT-2 with a cache", "ort", {"unit": "dims"}, {}, [4, 8]),
    "dimensions of shared heads": ("GPT-2 with a cache", "onnx", {"unit": "dims", "kv": 2}, {}, [2, 8]),
    "rotary pairs": ("Llama with a cache", "onnx", {"unit": "angles"}, {}, [2, 8]),
    "heads, GroupQueryAttention": ("Llama with a cache", "ort", {"unit": "heads"}, {}, [1, 16]),
    "heads, written out": ("Llama with a cache", "plain", {"unit": "heads"}, {"heads": "whole"}, [1, 16]),
    "heads, Attention-23": ("GPT-2 with a cache", "onnx", {"unit": "heads"}, {"heads": "whole"}, [2, 16]),
}


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_decoder_with_narrower_caches_says_the_same(decoder: str) -> None:
    name, form, changes, choices, sizes = DECODERS[decoder]
    model, _ = row(name, form, layers=2, **changes)
    data = conversation(model)
    result = shrink(model, data, width=0.5, threads=1, refine=0, caches="narrow", carry=CARRY, **choices)
    if form != "ort":
        onnx.checker.check_model(result.model, full_check=True)
    after = states.shapes(result.model)
    ends = [shape for end, shape in after.items() if end.startswith(("past", "present"))]
    assert len(ends) == 8
    assert all([shape[1], shape[3]] == sizes for shape in ends)  # all layers alike
    batch = 1 if form == "ort" and "Llama" in name else 3  # GroupQueryAttention takes no prompts of several samples
    tokens = np.random.default_rng(0).integers(0, 40, (batch, 12))
    assert largest(*(states.decoded(m, tokens, 4) for m in (model, result.model))) < 1e-4
    assert len(result.report.contract) == 4


def test_a_budget_weighs_caches_with_all_else() -> None:
    model, _ = row("GPT-2 with a cache", "plain", layers=2, unit="dims")
    result = shrink(model, conversation(model), budget="macs=0.6", threads=1, refine=0, caches="narrow", carry=CARRY)
    assert result.report.agreement.error < 1e-4
    tokens = np.random.default_rng(0).integers(0, 40, (2, 12))
    assert largest(*(states.decoded(m, tokens, 4) for m in (model, result.model))) < 1e-4


@pytest.mark.parametrize("choices", [{}, {"states": "keep", "caches": "keep"}])
def test_the_contract_is_kept_unless_told_otherwise(choices: dict[str, Any]) -> None:
    model, _ = row("GPT-2 with a cache", "plain", unit="dims")
    result = shrink(model, conversation(model), width=0.5, threads=1, refine=0, carry=CARRY, **choices)
    assert states.shapes(result.model) == states.shapes(model)
    assert result.report.contract == []
    reasons = [skipped.reason for skipped in result.report.left_alone]
    assert any("--caches narrow" in reason and "present.layer0.attention.k" in reason for reason in reasons)


def test_models_of_two_contracts_cannot_be_fed_alike_and_that_is_said(tmp_path: Path) -> None:
    model, plan = states.streaming("GRU"), tmp_path / "plan.json"
    choices: dict[str, Any] = {"carry": "hN=h", "threads": 1}
    small = shrink(model, feeds((4, 1, 5)), width=0.6, refine=0, states="narrow", plan_out=plan, **choices).model
    with pytest.raises(InputError, match=r"input 'h' is 1 x .* in the other: no samples fit both\. Where --states"):
        compare(model, small, feeds((4, 1, 5)), **choices)
    with pytest.raises(PcnsError):
        shrink(model, feeds((4, 1, 5)), plan=plan, refine=0, **choices)


def test_a_state_that_every_sequence_begins_with_is_no_lack_of_samples() -> None:
    model = states.streaming("GRU")
    first = np.zeros([size if isinstance(size, int) else 1 for size in states.shapes(model)["h"]], dtype=np.float32)
    sequences = [{**feed, "h": first} for feed in feeds((4, 1, 5))]
    choices: dict[str, Any] = {"states": "narrow", "carry": "hN=h"}
    warnings = shrink(model, sequences, width=0.6, threads=1, refine=0, **choices).report.warnings
    assert not any("all alike" in warning or "is the same" in warning for warning in warnings)


def test_int8_and_float16_have_the_same_contract() -> None:
    model = states.streaming("GRU")
    result = shrink(
        model, feeds((4, 1, 5)), width=0.6, threads=1, refine=0, states="narrow", carry="hN=h", int8=True, fp16=True
    )
    assert result.lowered.keys() == {"int8", "fp16"}
    for lowered in result.lowered.values():
        assert states.shapes(lowered) == states.shapes(result.model)
        states.running_free(lowered, steps((3, 2, 5), 3), {"h": "hN"}, 2)


@pytest.mark.parametrize(
    ("choices", "line"),
    [
        ({"caches": "narrow"}, "--caches narrow finds no cache of K and V that an output gives back"),
        ({"states": "narow"}, "--states narow is not understood: write keep or narrow"),
        ({"states": "narrow", "carry": "other=h"}, "--carry names 'other', which is no output"),
        ({"states": "narrow", "carry": "present.*=past.*"}, r"--carry present.\*=past.\* matches no output"),
    ],
)
def test_names_that_fit_nothing_are_one_line(choices: dict[str, Any], line: str) -> None:
    data = [{**feed, "h": np.zeros((1, 1, 10), np.float32)} for feed in feeds((4, 1, 5), 20)]
    with pytest.raises(InputError, match=line) as refusal:
        shrink(states.streaming("GRU"), data, width=0.5, threads=1, **choices)
    assert "\n" not in str(refusal.value)


def test_the_command_line_says_it_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = row("GPT-2 with a cache", "plain", unit="dims")
    onnx.save(model, tmp_path / "model.onnx")
    for number, feed in enumerate(conversation(model, 12)):
        (tmp_path / "data").mkdir(exist_ok=True)
        np.savez(tmp_path / "data" / f"{number:03}.npz", allow_pickle=False, **feed)
    small, report = tmp_path / "out" / "small.onnx", tmp_path / "report.json"
    small.parent.mkdir()
    arguments = ["shrink", tmp_path / "model.onnx", "--data", tmp_path / "data", "--width", "0.5", "--refine", "0"]
    arguments += ["--caches", "narrow", "--carry", CARRY, "-o", small, "--report", report, "--threads", "1"]
    assert main([str(argument) for argument in arguments]) == 0
    printed = capsys.readouterr()
    assert "the contract changes: state 'past.layer0.attention.k'" in printed.out + printed.err
    table = msgspec.json.decode(report.read_bytes())["contract"]
    assert [state["new"] for state in table] == [["N", 4, "P", 8]] * 2
    assert [kept["axis"] for state in table for kept in state["kept"]] == [3, 3]
    assert states.shapes(onnx.load(small))["past.layer0.attention.k"] == ["N", 4, "P", 8]
