"""A GRU and LSTMs that read digits row by row, as PyTorch exports them: half of their units do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from builders.models import MODELS, Array
from pcns_onnx import ShrinkResult, compare, shrink
from pcns_onnx.graph import Program
from pcns_onnx.runtime.engine import Engine

CALIBRATION = MODELS / "digits_images.npz"


def accuracy(model: onnx.ModelProto) -> float:
    test: Mapping[str, Array] = np.load(MODELS / "digits_images_test.npz")
    logits = Engine().session(Program(model.SerializeToString())).run({"input": test["input"]})["logits"]
    return float((np.asarray(logits).argmax(axis=1) == test["labels"]).mean())


def half(name: str, **more: Any) -> ShrinkResult:
    return shrink(MODELS / f"{name}.onnx", CALIBRATION, width=0.5, refine=150, threads=1, **more)


@pytest.mark.parametrize("name, units", [("digits_gru", [32]), ("digits_lstm", [32, 32])])
def test_half_of_the_units_lose_a_point_at_most(name: str, units: list[int]) -> None:
    result = half(name)
    sizes = [a.i for n in result.model.graph.node for a in n.attribute if a.name == "hidden_size"]
    assert sizes == units
    assert result.report.after.macs < 0.3 * result.report.before.macs
    assert accuracy(result.model) >= accuracy(onnx.load(MODELS / f"{name}.onnx")) - 0.01


def test_budgets_see_cells_as_they_see_any_layer() -> None:
    result = shrink(MODELS / "digits_lstm.onnx", CALIBRATION, budget="macs=0.5", refine=0, threads=1)
    assert result.report.after.macs <= 0.5 * result.report.before.macs
    assert {group.name for group in result.report.groups} == {"/layers/LSTM", "/layers/LSTM_1"}
    timed = shrink(MODELS / "digits_gru.onnx", CALIBRATION, budget="latency=0.8", batch_latency=64, refine=0, threads=1)
    assert timed.report.after.macs < timed.report.before.macs


def test_it_can_be_stored_in_few_bits() -> None:
    result = half("digits_lstm", int8=True, fp16=True)
    assert not result.report.failed_precisions
    assert {item.kind for item in result.report.precisions} == {"int8", "fp16"}


def test_low_rank_leaves_cells_whole() -> None:
    result = shrink(
        MODELS / "digits_gru.onnx", CALIBRATION, budget="macs=0.5", low_rank=True, refine=0, threads=1, batch_latency=64
    )
    assert result.report.after.macs <= 0.5 * result.report.before.macs
    again = compare(MODELS / "digits_gru.onnx", result.model, CALIBRATION, threads=1)
    assert again.agreement.error < 0.5
