"""The rule of the recommendation, and the formula of what will be lost."""

from __future__ import annotations

import msgspec
import pytest

from pcns_onnx.evaluation.options import GateOptions
from pcns_onnx.report.advice.losses import Measure, MeasuredLoss
from pcns_onnx.report.advice.prediction import (
    HEALED,
    QUANTIZED,
    REFINED,
    Correction,
    PredictedLoss,
    offset_of,
    predicted,
)
from pcns_onnx.report.advice.recommendation import ALLOWED, allowed, recommended
from pcns_onnx.report.advice.record import AdviceRow


def row(name: str, latency: float, high: float) -> AdviceRow:
    return AdviceRow(name=name, latency=latency, loss=PredictedLoss("decisions", high / 2, 0.0, high))


START = row("as it is", 1.0, 0.0)


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([row("int8", 0.5, 0.01)], "int8"),
        ([row("int8", 0.5, 0.03)], "as it is"),  # may lose too much
        ([row("int8", 0.96, 0.0)], "as it is"),  # not worth the effort
        ([row("int8", 0.5, 0.0), row("0.9", 0.6, 0.0)], "int8"),  # slower
        ([row("int8", 0.5, 0.0), row("0.9", 0.48, 0.0)], "int8"),  # hardly faster
        ([row("int8", 0.5, 0.0), row("0.9", 0.45, 0.0), row("0.8", 0.3, 0.5)], "0.9"),
        ([AdviceRow(name="int8", why_not="it cannot be made"), row("0.9", 0.8, 0.0)], "0.9"),
    ],
)
def test_a_row_is_taken_if_it_is_good_enough_and_faster(rows: list[AdviceRow], best: str) -> None:
    assert recommended([START, *rows], 0.02).name == best


def test_what_cannot_be_run_here_is_not_recommended() -> None:
    heal = row("0.5, heal", 0.3, 0.0)
    assert recommended([START, heal], 0.02).name == "0.5, heal"
    without = msgspec.structs.replace(heal, needs="pip install 'pcns-onnx[heal]'")
    assert recommended([START, without], 0.02).name == "as it is"


def test_what_may_be_lost_is_the_callers_to_say() -> None:
    accuracy = PredictedLoss("score", 0.0, 0.0, 0.0, score=80.0)
    assert allowed(accuracy, GateOptions(max_drop=2.0)) == pytest.approx(0.025)
    assert allowed(accuracy, GateOptions(max_error=0.3)) == ALLOWED["score"]
    assert allowed(PredictedLoss("error", 0.0, 0.0, 0.0), GateOptions(max_error=0.3)) == 0.3


@pytest.mark.parametrize("measure", ["score", "decisions", "error"])
def test_the_formula_is_that_of_its_docstring(measure: Measure) -> None:
    trial, correction = MeasuredLoss(measure, 0.1, 0.1, 100), REFINED[measure]
    d = offset_of(trial)
    loss = predicted(trial, correction)
    expected = [max(times * (0.1 + d) - d, 0.0) for times in (correction.low, correction.factor, correction.high)]
    assert [loss.low, loss.share, loss.high] == pytest.approx(expected)
    worse = predicted(MeasuredLoss(measure, 0.2, 0.2, 100), correction)
    assert worse.share > loss.share and worse.high > loss.high


def test_more_steps_make_the_interval_wider_and_healing_the_loss_smaller() -> None:
    trial = MeasuredLoss("decisions", 0.2, 0.3, 100)
    one, two = (predicted(trial, REFINED["decisions"], *more) for more in ((), (HEALED,)))
    assert two.share < one.share
    certain = predicted(trial, Correction(1.0, 1.0, 1.0))
    assert (certain.low, certain.share, certain.high) == pytest.approx((0.19, 0.2, 0.21))  # one sample more or less
    assert predicted(trial, QUANTIZED).high > certain.high


def test_nothing_lost_in_a_trial_is_no_promise() -> None:
    loss = predicted(MeasuredLoss("decisions", 0.0, 0.01, 100), QUANTIZED)
    assert loss.share == 0.0 and 0.0 < loss.high < 0.02
    gained = predicted(MeasuredLoss("score", -0.01, 0.01, 100, score=90.0), QUANTIZED)
    fewer = predicted(MeasuredLoss("decisions", 0.0, 0.01, 20), QUANTIZED)
    assert fewer.high > loss.high
    assert gained == predicted(MeasuredLoss("score", -0.01, 0.01, 100, score=90.0), QUANTIZED) and gained.share == 0.0
