"""What speaks against shrinking: the model, or samples that are too few to tell."""

from __future__ import annotations

import pytest

from pcns_onnx.report.advice.losses import Measure, MeasuredLoss
from pcns_onnx.report.advice.obstacles import does_not_pay
from pcns_onnx.report.advice.prediction import REFINED, predicted
from pcns_onnx.report.advice.record import AdviceRow

WITHOUT = AdviceRow(name="int8", why_not="it cannot be made")


def said(share: float, samples: int, measure: Measure = "decisions", limit: float = 0.02) -> str:
    loss = predicted(MeasuredLoss(measure, share, None, samples, score=80.0), REFINED[measure])
    row = AdviceRow(name="shrink to 0.9", budget=0.9, latency=0.9, loss=loss)
    return "; ".join(does_not_pay(WITHOUT, [row], WITHOUT, limit, None))


@pytest.mark.parametrize(("share", "samples"), [(0.0, 19), (1 / 19, 19), (0.0, 40)])
def test_few_samples_are_no_fault_of_the_model(share: float, samples: int) -> None:
    text = said(share, samples)
    assert text.startswith(f"too few samples to tell what narrower layers lose: {samples} judge it")
    assert "(allowed: 2.0 % of the decisions)" in text and "compact" not in text


def test_how_many_more_would_tell_more() -> None:
    assert "5.3 % of the decisions" in said(0.0, 19) and said(0.0, 19).endswith("; 2.6 times as many would tell more")
    assert "times as many" not in said(0.0, 19, limit=0.0)


@pytest.mark.parametrize(("share", "samples"), [(0.4, 19), (0.05, 200)])
def test_a_model_that_loses_much_is_compact_however_few_samples_there_are(share: float, samples: int) -> None:
    assert said(share, samples).startswith("it is compact")


def test_an_error_is_not_counted() -> None:
    assert said(0.3, 5, "error", 0.1).startswith("it is compact")


def test_enough_samples_that_lose_nothing_are_no_obstacle() -> None:
    assert said(0.0, 200) == ""
