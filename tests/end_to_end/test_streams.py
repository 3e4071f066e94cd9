"""`--rotate-streams`: residual streams of pre-norm transformers get narrower, alone and beside everything else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from builders.commands import Ran
from builders.models import Array, relative
from builders.streams import decoder, tied, with_norms_in_pieces, with_skip_norms
from pcns_onnx import NothingToShrinkError, ShrinkResult, plan, shrink
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph, Program
from pcns_onnx.planning.plan import write_plan
from pcns_onnx.runtime.engine import Engine
from robustness.transformer_blocks import LENGTH, Net
from robustness.transformers import samples

RANK = 24


def outputs(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    return [np.asarray(y) for y in Engine().session(Program(model.SerializeToString())).run(feeds).values()]


def shrunk(model: onnx.ModelProto, net: Net, count: int = 120, **choices: Any) -> ShrinkResult:
    result = shrink(model, samples(model, net, count), refine=0, **choices)
    Graph.load(result.model).check(full=True)
    return result


def error(model: onnx.ModelProto, small: onnx.ModelProto, net: Net) -> float:
    """The largest of an output, at other batches and lengths."""
    errors = []
    for count, length in ((3, LENGTH), (1, LENGTH + (0 if net.recipe.positions == "relative" else 3))):
        feeds = samples(model, net, count, 5, length)
        errors += [relative(a, b) for a, b in zip(outputs(model, feeds), outputs(small, feeds), strict=True)]
    return max(errors)


def made(name: str, form: str, kind: str) -> tuple[onnx.ModelProto, Net]:
    model, net = decoder(name, form, RANK)
    change = {"tied": tied, "skip": with_skip_norms, "pieces": with_norms_in_pieces}
    return (change[kind](model) if kind else model), net


PLANTED = [("Llama", "plain", ""), ("Llama", "plain", "tied"), ("Qwen3", "onnx", ""), ("Gemma", "ort", "skip"),
           ("GPT-2", "onnx", ""), ("GPT-2", "onnx", "tied"), ("GPT-2", "ort", "skip"), ("GPT-2", "plain", "pieces"),
           ("CLIP text", "plain", ""), ("Llama with a cache", "ort", "")]  # fmt: skip


OFTEN = {("Llama", "plain", ""), ("Gemma", "ort", "skip"), ("GPT-2", "onnx", "tied"), ("GPT-2", "plain", "pieces")}
"""Rows that run at every commit."""
EVERY = [pytest.param(*one, marks=[] if one in OFTEN else [pytest.mark.slow], id=" ".join(one)) for one in PLANTED]


@pytest.mark.parametrize(("name", "form", "kind"), EVERY)
def test_a_planted_rank_is_all_that_is_left(name: str, form: str, kind: str) -> None:
    model, net = made(name, form, kind)
    result = shrunk(model, net, rotate_streams=RANK)
    (stream,) = result.report.streams.values()
    assert (stream.width, stream.of) == (RANK, 64) and stream.lost < 1e-6
    assert error(model, result.model, net) < 1e-4
    assert result.report.after.macs < 0.6 * result.report.before.macs


def test_whole_nothing_changes() -> None:
    model, net = decoder("GPT-2", "onnx")
    result = shrunk(model, net, rotate_streams=1.0)
    assert error(model, result.model, net) < 1e-5
    assert result.report.after.macs == result.report.before.macs


def test_multiply_adds_are_those_of_the_narrower_layers() -> None:
    """Of a decoder whose products of Q, K and V count beside its layers."""
    model, net = decoder("Llama", "onnx")
    result = shrunk(model, net, rotate_streams=32)
    whole = sum(w.size for name, w in net.weights.items() if w.ndim == 2 and name not in ("table", "cos", "sin"))
    before, after = result.report.before, result.report.after
    assert before.macs - after.macs == whole * LENGTH // 2
    assert before.parameters - after.parameters >= (whole + net.weights["table"].size) // 2 - 4 * 32 * 16


@pytest.mark.parametrize(("name", "form"), [("Llama", "onnx"), ("GPT-2", "ort")])
def test_the_rest_is_narrowed_beside_it_within_one_budget(name: str, form: str) -> None:
    """Half of every width and most of the stream are superfluous: fractions are of the original."""
    model, net = decoder(name, form, RANK)
    result = shrunk(model, net, rotate_streams=RANK, budget="macs=0.35")
    assert result.report.after.macs <= 0.35 * result.report.before.macs
    assert {group.name for group in result.report.groups} >= {"layer0.ffn.up", "layer1.ffn.up"}
    assert error(model, result.model, net) < 1e-4


def test_a_budget_that_the_streams_meet_takes_nothing_else() -> None:
    model, net = decoder("Llama", "onnx", RANK)
    result = shrunk(model, net, rotate_streams=RANK, budget="macs=0.95", multiple=1)
    assert result.report.after.macs < 0.5 * result.report.before.macs
    assert error(model, result.model, net) < 1e-4


def test_a_plan_is_replayed_to_the_same_bytes(tmp_path: Path) -> None:
    model, net = decoder("Llama", "onnx")
    first = shrunk(model, net, rotate_streams=0.75, width=0.5, plan_out=tmp_path / "plan.json")
    again = shrunk(model, net, plan=tmp_path / "plan.json")
    assert first.model.SerializeToString() == again.model.SerializeToString()
    assert first.plan.streams["table"].width == 48
    planned = plan(model, samples(model, net, 120), tmp_path / "made.json", rotate_streams=0.75, width=0.5)
    assert planned.plan is not None and planned.plan.streams == first.plan.streams == planned.report.streams


def test_a_plan_of_streams_alone_is_replayed(tmp_path: Path) -> None:
    model, net = decoder("GPT-2", "onnx")
    first = shrunk(model, net, rotate_streams=40, plan_out=tmp_path / "plan.json")
    assert msgspec.json.decode((tmp_path / "plan.json").read_bytes())["groups"] == {}
    assert shrunk(model, net, plan=tmp_path / "plan.json").model.SerializeToString() == first.model.SerializeToString()
    streams = {name: msgspec.structs.replace(entry, refit=False) for name, entry in first.plan.streams.items()}
    write_plan(msgspec.structs.replace(first.plan, streams=streams), tmp_path / "cut.json")
    assert not shrunk(model, net, plan=tmp_path / "cut.json").report.streams["table"].refit


def test_least_squares_are_taken_where_samples_kept_aside_want_them() -> None:
    """On plenty of samples they are better than cutting, and both errors are said."""
    model, net = decoder("GPT-2", "onnx")
    solved = shrunk(model, net, 300, rotate_streams=48)
    assert solved.report.streams["table"].refit
    (said,) = [warning for warning in solved.report.warnings if "solved anew" in warning]
    cut, anew = (float(number) for number in re.findall(r"0\.\d+", said))
    assert anew < cut and (solved.report.agreement.outputs[0].relative_error or 1) < cut


def test_one_that_cannot_be_rotated_is_named_with_its_reason() -> None:
    model, net = decoder("GPT-2", "onnx", RANK)
    shown = next(node for node in model.graph.node if node.name == "last_norm")
    model.graph.output.append(onnx.helper.make_tensor_value_info(shown.input[0], onnx.TensorProto.FLOAT, None))
    with pytest.raises(NothingToShrinkError) as refused:
        shrunk(model, net, rotate_streams=RANK)
    assert "with the mean of its channels" in str(refused.value.__dict__)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"rotate_streams": "wide"}, "write a width"),
        ({"rotate_streams": "0"}, "write a width"),
        ({"rotate_streams": 1.5}, "write a width"),
        ({"rotate_streams": 128}, "fewer than the 128"),
        ({"rotate_streams": 0.5, "rounds": 2, "width": 0.5, "heal": 10}, "--rotate-streams is met in one step"),
        ({"rotate_streams": 0.5, "stats": "stats.npz"}, "--stats"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(choices: dict[str, Any], words: str, tmp_path: Path) -> None:
    model, net = decoder("Llama", "onnx")
    if "heal" in choices:
        pytest.importorskip("torch")
    if "stats" in choices:
        choices = {**choices, "stats": tmp_path / "stats.npz"}
    with pytest.raises((InputError, NothingToShrinkError)) as refused:
        shrunk(model, net, **choices)
    assert words in f"{refused.value} {refused.value.__dict__}"


def test_it_wants_samples() -> None:
    model, _ = decoder("Llama", "onnx")
    with pytest.raises(InputError, match="--data"):
        shrink(model, None, method="min-weight", rotate_streams=0.5)


def test_the_command_line_says_how_wide_streams_were_and_are(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, net = decoder("GPT-2", "onnx", RANK)
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", input_ids=samples(model, net, 60)["input_ids"])
    command = ["shrink", tmp_path / "model.onnx", "--data", tmp_path / "data.npz", "-o", tmp_path / "small.onnx"]
    ran = run(*command, "--rotate-streams", RANK, "--report", tmp_path / "report.json")
    assert ran.code == 0 and (tmp_path / "small.onnx").exists()
    heads, row = (line.split() for line in ran.out.splitlines()[:2])
    assert heads[:2] == ["residual", "stream"] and row[:3] == ["table", "64", str(RANK)]
    report = msgspec.json.decode((tmp_path / "report.json").read_bytes())
    assert report["streams"]["table"]["width"] == RANK


def test_a_stream_that_is_asked_for_and_cannot_be_had_writes_nothing(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, net = decoder("BERT", "onnx")
    onnx.save(model, tmp_path / "model.onnx")
    feeds = samples(model, net, 60)
    np.savez(tmp_path / "data.npz", input_ids=feeds["input_ids"], attention_mask=feeds["attention_mask"])
    ran = run(
        "shrink", tmp_path / "model.onnx", "--data", tmp_path / "data.npz", "-o", tmp_path / "small.onnx",
        "--rotate-streams", 0.5, "--width", 0.5,
    )  # fmt: skip
    assert ran.code != 0 and "no residual stream can be rotated" in ran.err and "post-norm" in ran.out
    assert not (tmp_path / "small.onnx").exists()


def test_every_stream_of_a_model_gets_narrower() -> None:
    """Two towers: each has a basis of its own, and one that is refused does not keep the others."""
    parts = {name: decoder(*of, RANK) for name, of in (("a/", ("GPT-2", "onnx")), ("b/", ("Llama", "onnx")))}
    parts["c/"] = decoder("BERT", "onnx")
    whole, feeds, unseen = onnx.ModelProto(), dict[str, Array](), dict[str, Array]()
    for prefix, (model, net) in parts.items():
        part = onnx.compose.add_prefix(model, prefix)
        for name in ("node", "input", "output", "initializer"):
            getattr(whole.graph, name).extend(getattr(part.graph, name))
        feeds |= {prefix + name: value for name, value in samples(model, net, 80).items()}
        unseen |= {prefix + name: value for name, value in samples(model, net, 3, 5).items()}
    whole.graph.name, whole.ir_version = "towers", 10
    whole.opset_import.extend(parts["a/"][0].opset_import)
    result = shrink(whole, feeds, refine=0, rotate_streams=RANK)
    assert {name: plan.width for name, plan in result.report.streams.items()} == {"a/table": RANK, "b/table": RANK}
    assert any("post-norm" in item.reason for item in result.report.left_alone)
    pairs = zip(outputs(whole, unseen), outputs(result.model, unseen), strict=True)
    assert max(relative(a, b) for a, b in pairs) < 1e-4
