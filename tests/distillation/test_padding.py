"""What is padding teaches nothing, whatever stands there; and batches without it are the same lessons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from builders.models import Array
from builders.padded import VOCABULARY, Encoder, sentences
from builders.students import disturbed
from pcns_onnx import HealResult, UnsupportedError, heal, shrink
from pcns_onnx.calibration.output_layout import OutputLayout
from pcns_onnx.data.dataset import Dataset, open_data
from pcns_onnx.data.padding import PositionAxes
from pcns_onnx.distillation.acceptance import PairedTrial
from pcns_onnx.distillation.pool import Pool
from pcns_onnx.distillation.targets import Measure, Spreads, Target
from pcns_onnx.graph import Graph
from pcns_onnx.progress import Progress
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.padding import find_padding
from pcns_onnx.runtime.samples import Samples
from robustness.transformers import row, samples

torch = pytest.importorskip("torch")

from pcns_onnx.distillation.losses import DistillationLoss  # noqa: E402

FAST: Mapping[str, Any] = {"threads": 1, "updates": 1500, "heal_accept": "agreement"}
WIDTH = 24


def filled(feeds: dict[str, Array], mask: str = "attention_mask") -> dict[str, Array]:
    """The same sentences with other tokens where the mask is 0."""
    tokens = np.random.default_rng(9).integers(0, VOCABULARY, feeds["input_ids"].shape)
    return {**feeds, "input_ids": np.where(feeds[mask] != 0, feeds["input_ids"], tokens)}


def healed(model: onnx.ModelProto, data: Any, out: Path, **choices: Any) -> HealResult:
    return heal(disturbed(model), model, data, out, **{**FAST, **choices})


ENCODERS: Mapping[str, tuple[Encoder, Mapping[str, Any]]] = {
    "cut": (Encoder(), {}),
    "embeddings": (Encoder(outputs=("embedding",)), {}),
    "states": (Encoder(outputs=("states",)), {}),
    "a fixed length": (Encoder(positions=WIDTH), {}),
    "rows of tokens": (Encoder(flat=True, outputs=("tokens", "embedding")), {}),
    "from the left": (Encoder(), {"left": True}),
    "places": (Encoder(places=True), {}),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_what_stands_in_masked_tokens_changes_no_byte(kind: str, tmp_path: Path) -> None:
    encoder, how = ENCODERS[kind]
    data = sentences(160, WIDTH, **how)
    others = filled(data)
    assert not np.array_equal(data["input_ids"], others["input_ids"])
    outs = [tmp_path / f"{name}.onnx" for name in "abc"]
    reports = [healed(encoder.model, feeds, out, heal_loss="states").report
               for feeds, out in zip((data, others, data), outs, strict=True)]  # fmt: skip
    assert outs[0].read_bytes() == outs[1].read_bytes() == outs[2].read_bytes()
    first, second = (report.healing for report in reports[:2])
    assert first is not None and second is not None and first.verdict == second.verdict and first.looks == second.looks
    assert first.verdict.accepted and first.verdict.loss_after < 0.7 * first.verdict.loss_before
    assert first.states[0] == ("hf" if kind == "rows of tokens" else "h")


def test_a_shrunk_encoder_is_healed_without_its_padding(tmp_path: Path) -> None:
    data, outs = sentences(160, WIDTH), [tmp_path / f"{name}.onnx" for name in "ab"]
    for feeds, out in zip((data, filled(data)), outs, strict=True):
        healing = shrink(Encoder().model, feeds, out, width=0.5, refine=0, heal=640, threads=1).report.healing
        assert (
            healing is not None and healing.states == ["h"] and healing.verdict.loss_after < healing.verdict.loss_before
        )
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_wider_padding_makes_the_same_lesson(tmp_path: Path) -> None:
    narrow, wide = (
        healed(Encoder().model, sentences(160, width), tmp_path / "out.onnx").report.healing for width in (12, 60)
    )
    assert narrow is not None and wide is not None and narrow.updates == wide.updates
    losses = [(healing.verdict.loss_before, healing.verdict.loss_after) for healing in (narrow, wide)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_what_counts_all_positions_learns_from_all(tmp_path: Path) -> None:
    result = healed(Encoder(attends=True).model, sentences(160, WIDTH), tmp_path / "out.onnx")
    assert any("padding counts like all else" in text for text in result.report.warnings)
    assert result.report.healing is not None and result.report.healing.verdict.accepted


def test_a_student_that_counts_padding_is_not_told_that_it_does_not() -> None:
    model, attends = Encoder().model, Encoder(attends=True).model
    report = heal(attends, model, sentences(160, WIDTH), **FAST).report
    assert any("in the second model" in text for text in report.warnings)


# -- the loss ----------------------------------------------------------------------------------

LIVE = np.arange(6)[None] < np.array([[2], [6], [3]])
LOSSES: Mapping[str, tuple[str, Callable[[Array], Array]]] = {
    "mse": ("mse", lambda y: y),
    "cosine": ("cosine", lambda y: y),
    "row": ("row", lambda y: y),
    "kl": ("kl", lambda y: y),
    "binary": ("binary", lambda y: y),
    "positions first": ("mse", lambda y: np.swapaxes(y, 0, 1)),
    "heads": ("mse", lambda y: np.stack([y, y], axis=1)),
    "flat": ("kl", lambda y: y.reshape(-1, y.shape[-1])),
}
PLACES = {"positions first": PositionAxes(1, 0), "heads": PositionAxes(0, 2), "flat": PositionAxes(0, None)}


def measured(kind: str, values: Array) -> Measure:
    target, place = Target("y", "y", "y", LOSSES[kind][0]), PLACES.get(kind, PositionAxes(0, 1))  # type: ignore[arg-type]
    spreads = Spreads([target], OutputLayout(), {"y": place.samples}, {"y": place})
    spreads.update({"y": values}, len(LIVE), LIVE)
    return spreads.measures()[0]


@pytest.mark.parametrize("kind", LOSSES)
def test_the_loss_counts_nothing_under_the_mask(kind: str) -> None:
    rng, arrange = np.random.default_rng(4), LOSSES[kind][1]
    original, student, other = rng.standard_normal((3, *LIVE.shape, 5)).astype(np.float32)
    wrong = np.where(LIVE[..., None], student, 50 * other)
    loss = DistillationLoss([measured(kind, arrange(original))], "cpu")

    def missed(s: Array, t: Array) -> tuple[float, Array]:
        y = torch.from_numpy(np.ascontiguousarray(arrange(s))).requires_grad_()
        value = loss({"y": y}, {"y": torch.from_numpy(np.ascontiguousarray(arrange(t)))}, len(LIVE), LIVE)
        value.backward()
        return value.item(), np.asarray(y.grad)

    plain, gradient = missed(student, original)
    assert missed(wrong, original)[0] == plain > 0
    assert missed(student, np.where(LIVE[..., None], original, other))[0] == plain
    assert measured(kind, arrange(np.where(LIVE[..., None], original, other))) is not None
    zeros = np.broadcast_to(~LIVE[..., None], student.shape)
    assert not gradient[arrange(zeros)].any() and gradient.any()
    # A student that always says the mean of what counts misses all that there is.
    if kind in ("mse", "positions first", "heads"):
        mean = np.broadcast_to(original[LIVE].mean(axis=0), original.shape)
        assert 0.8 < missed(np.array(mean), original)[0] < 1.001


def test_parts_of_a_step_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(4)
    original, student = rng.standard_normal((2, *LIVE.shape, 5)).astype(np.float32)
    for kind in ("mse", "cosine", "row", "kl", "binary"):
        loss = DistillationLoss([measured(kind, original)], "cpu")
        values = [
            float(loss({"y": torch.from_numpy(student[at])}, {"y": torch.from_numpy(original[at])}, n, LIVE[at]))
            for at, n in ((slice(0, 3), 3), (slice(0, 1), 1), (slice(1, 3), 2))
        ]
        assert values[0] == pytest.approx((values[1] + 2 * values[2]) / 3, rel=1e-5)


def test_means_over_positions_are_learnt_with_their_lengths() -> None:
    healing = heal(disturbed(Encoder().model), Encoder().model, sentences(160, WIDTH), **FAST).report.healing
    assert healing is not None
    assert healing.losses["embedding"] == "squared error, each row by its length"
    assert healing.states == ["h"] and healing.states_weight == 1 and "states" in healing.losses


def test_a_channel_that_the_original_has_lost_is_no_scale() -> None:
    model = Encoder(outputs=("states",)).model
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in ("down", "o", "table"):  # a column that is zero but for rounding
        values = numpy_helper.to_array(tensors[name]).copy()
        values[:, 3] *= 1e-33
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))
    student, rng = disturbed(model), np.random.default_rng(0)
    for tensor in student.graph.initializer:
        if tensor.name == "down":
            values = numpy_helper.to_array(tensor).copy()
            values[:, 3] = 1e-4 * rng.standard_normal(len(values))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    healing = heal(student, model, sentences(160, WIDTH), **FAST).report.healing
    assert (
        healing is not None
        and healing.verdict.accepted
        and healing.verdict.loss_after < healing.verdict.loss_before < 2
    )


# -- the pool ----------------------------------------------------------------------------------


def dataset(width: int = WIDTH, count: int = 320, **how: Any) -> Dataset:
    graph = Graph.load(Encoder().model)
    data = open_data(sentences(count, width, **how), graph.inputs)
    return data.padded(find_padding(Engine(), graph, data).padding)


@pytest.mark.parametrize("left", [False, True])
def test_steps_are_of_like_length_and_have_every_sample_once(left: bool) -> None:
    pool = Pool(Samples(dataset(left=left), 32), 1 << 30, seed=1)
    steps = [[s for s in block.take(units)] for block, units in islice(pool.draws(16), 20)]
    shown = [shown.batch for step in steps for shown in step]
    assert sorted(row for step in steps for one in step for row in one.rows) == list(range(320))
    mask = sentences(320, WIDTH)["attention_mask"]
    assert sum(batch.feeds["input_ids"].size for batch in shown) < 1.15 * mask.sum()
    assert len({batch.feeds["input_ids"].shape[1] for batch in shown}) > 4
    again = [units.tolist() for _, units in islice(Pool(Samples(dataset(), 32), 1 << 30, seed=1).draws(16), 20)]
    assert again == [units.tolist() for _, units in islice(pool.draws(16), 20)]
    widths = [batch.feeds["input_ids"].shape[1] for batch in shown]
    assert widths != sorted(widths)


# -- what is accepted --------------------------------------------------------------------------


def test_errors_on_padding_are_none() -> None:
    model = Encoder(outputs=("states",)).model
    graphs = [Graph.load(disturbed(model, amount)) for amount in (0.0, 0.1, 0.1)]
    data = dataset()
    padded = replace(data.padding, places={"states": PositionAxes(0, 1)})  # type: ignore[type-var]
    samples_ = Samples(data.padded(padded), 32)
    first, second = (
        PairedTrial(Engine(), graphs[0], graphs[1], graphs[2], each, OutputLayout(), None).verdict(
            "auto", (0.2, 0.1), Progress()
        )
        for each in (samples_, Samples(dataset(width=60), 32))
    )
    assert first.before is not None and first.before == pytest.approx(second.before, rel=1e-4)
    assert first.before == first.after


# -- whole transformers ------------------------------------------------------------------------

ROWS = {("BERT", "plain"): 4, ("BERT", "ort"): 4, ("GPT-2 with a cache", "ort"): 4, ("Llama", "onnx"): 4}


@pytest.mark.parametrize(("name", "form"), ROWS)
def test_decoders_and_fused_attention_are_healed_with_the_states_of_their_blocks(name: str, form: str) -> None:
    model, net = row(name, form, layers=2)
    data = samples(model, net, 100)
    healing = heal(disturbed(model, 0.1), model, data, **{**FAST, "updates": 640}, heal_loss="states").report.healing
    assert healing is not None and healing.verdict.accepted and len(healing.states) == ROWS[name, form]
    assert healing.verdict.loss_after < 0.7 * healing.verdict.loss_before


def test_what_cannot_be_translated_is_named() -> None:
    model, net = row("Llama", "ort")
    with pytest.raises(UnsupportedError, match=r"GroupQueryAttention 'layer0.*' is not known"):
        heal(disturbed(model, 0.1), model, samples(model, net, 40), **FAST, heal_loss="states")
