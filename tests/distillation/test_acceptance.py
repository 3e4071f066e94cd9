"""What is worse beyond chance is not taken; what is better, or cannot be told apart, is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from builders.mlp import mlp, rows
from builders.students import disturbed, ending
from pcns_onnx.calibration.output_layout import OutputLayout
from pcns_onnx.data.dataset import open_data
from pcns_onnx.distillation.acceptance import PairedTrial, aside_share
from pcns_onnx.evaluation.healing import Verdict
from pcns_onnx.graph import Graph
from pcns_onnx.progress import Progress
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples

FALLS, RISES = (0.2, 0.1), (0.1, 0.2)


def verdict(
    before: float, after: float, choice: Any = "auto", *, losses: tuple[float, float] = FALLS, count: int = 300,
    end: str = "", metric: Any = None, labels: bool = False,
) -> Verdict:  # fmt: skip
    """Of students that were disturbed by so much."""
    model = mlp(widths=(6, 12, 1)) if end == "one number" else ending(end) if end else mlp()
    x = rows(count)
    feeds: dict[str, Any] = {"x": x}
    if labels:
        feeds["labels"] = Engine().session(Graph.load(model).program()).run({"x": x})["y"].argmax(axis=1)
    graphs = [Graph.load(disturbed(model, amount)) for amount in (0.0, before, after)]
    samples = Samples(open_data(feeds, graphs[0].inputs), 64)
    trial = PairedTrial(Engine(), graphs[0], graphs[1], graphs[2], samples, OutputLayout(), metric)
    return trial.verdict(choice, losses, Progress())


@pytest.mark.parametrize("end", ["", "Tanh"])
@pytest.mark.parametrize("labels", [False, True])
def test_better_is_taken_and_worse_is_not(end: str, labels: bool) -> None:
    better = verdict(0.6, 0.1, end=end, labels=labels)
    worse = verdict(0.1, 0.6, end=end, labels=labels)
    assert better.accepted and better.z < 0 and not worse.accepted and worse.z > 1.64
    assert better.by == ("labels" if labels else "agreement")
    assert (better.lost, better.gained) == (worse.gained, worse.lost)


def test_what_cannot_be_told_apart_is_taken_unless_strict() -> None:
    assert verdict(0.3, 0.3, losses=RISES).accepted
    assert not verdict(0.3, 0.3, "strict", losses=RISES).accepted
    assert verdict(0.3, 0.3, "strict", losses=FALLS).accepted


def test_few_samples_prove_nothing() -> None:
    assert not verdict(0.3, 0.3, losses=RISES, count=15).accepted
    assert verdict(0.3, 0.1, losses=FALLS, count=15).accepted


def test_a_loss_that_is_no_number_is_not_taken() -> None:
    assert not verdict(0.3, 0.3, losses=(0.1, float("nan"))).accepted


def test_a_metric_must_not_fall() -> None:
    def closeness(outputs: Any, labels: Any, reference: Any) -> float:
        return -float(np.abs(outputs["y"] - reference["y"]).mean())

    assert verdict(0.6, 0.1, metric=closeness).by == "metric"
    assert verdict(0.6, 0.1, metric=closeness).accepted and not verdict(0.1, 0.6, metric=closeness).accepted
    assert verdict(0.1, 0.6, "agreement", metric=closeness).by == "agreement"


def test_a_metric_that_is_no_number_is_said_to_be_none() -> None:
    told = verdict(0.3, 0.3, metric=lambda outputs, labels: float("nan"))
    assert not told.accepted and "is no number" in told.reason


def test_a_start_that_misses_nothing_is_only_left_for_a_lower_loss() -> None:
    assert not verdict(0.0, 0.001, losses=(1e-9, 1e-3)).accepted


@pytest.mark.parametrize(
    ("end", "labels", "figure"),
    [
        ("", False, "agreement with the original (%)"),
        ("", True, "accuracy (%)"),
        ("one number", False, "relative error"),
    ],
)
def test_what_is_compared_is_named_where_nothing_changes_too(end: str, labels: bool, figure: str) -> None:
    told = verdict(0.0, 0.0, end=end, labels=labels)
    assert told.figure == figure and not told.lost + told.gained
    assert told.before == told.after == (0 if end else 100)


@pytest.mark.parametrize(("count", "share"), [(40, 0.25), (1000, 0.1), (5000, 0.1), (100_000, 0.02)])
def test_a_tenth_is_kept_aside_within_limits(count: int, share: float) -> None:
    assert aside_share(count) == pytest.approx(share)
