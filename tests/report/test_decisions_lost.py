"""A loss of decisions is said: before the long part of a run, and of its result."""

from __future__ import annotations

import math

import pytest

from builders.mlp import mlp, rows
from pcns_onnx import shrink
from pcns_onnx.evaluation.agreement import Agreement
from pcns_onnx.evaluation.output_tally import OutputAgreement
from pcns_onnx.progress import Progress
from pcns_onnx.report.decisions_lost import decisions_lost


def agreement(*outputs: OutputAgreement, scores: tuple[float, float] | None = None) -> Agreement:
    a, b = (None, None) if scores is None else scores
    return Agreement(100, list(outputs), None if scores is None else "accuracy", a, b)


def output(
    agree: float | None = None,
    flips: float | None = None,
    unusual: float | None = None,
    weight: float = 1.0,
    error: float = 0.1,
) -> OutputAgreement:
    return OutputAgreement("y", error, 0.99, agree, flips=flips, unusual_flips=unusual, weight=weight)


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (agreement(output(0.99)), None),
        (agreement(output(0.9)), "class of 'y' differs on 10.0%"),
        (agreement(output(0.99), output(0.95)), "differs on 5.0%"),
        (agreement(output(flips=0.001, unusual=0.4)), "40.0% of those decisions that are not the usual one"),
        (agreement(output(flips=0.3, unusual=0.4)), "40.0% of those decisions that are not the usual one"),
        (agreement(output(flips=0.4, unusual=0.4)), "40.0% of decisions"),
        (agreement(output(flips=0.03)), "3.0% of its values"),
        (agreement(output(0.5, weight=0.0)), None),
        (agreement(output()), None),  # an error of 0.1
        (agreement(output(error=0.25), output()), "'y' errs by 0.25 of how much it varies"),
        (agreement(output(error=0.25), output(flips=0.01)), None),  # what is decided has the word
        (agreement(output(error=math.nan)), None),
        (agreement(output(0.5), scores=(80.0, 79.0)), None),  # the user's own score has the word
        (agreement(output(1.0), scores=(80.0, 70.0)), "accuracy falls from 80 to 70"),
        (agreement(output(1.0), scores=(0.0, 0.0)), None),
    ],
)
def test_what_is_lost_is_said_where_it_is_much(of: Agreement, said: str | None) -> None:
    lost = decisions_lost(of)
    assert (lost is None) if said is None else (lost is not None and said in lost)


class Told(Progress):
    """Knows which stages were over when something was said."""

    def say(self, text: str) -> None:
        super().say(text)
        self.done = set(self.seconds)


@pytest.mark.parametrize(("width", "loses"), [(0.1, True), (0.95, False)])
def test_a_loss_is_said_before_the_layers_are_solved(width: float, loses: bool) -> None:
    model, progress = mlp(widths=(6, 64, 64, 5)), Told()
    report = shrink(model, rows(900), eval=rows(200), width=width, refine=5, threads=1, progress=progress).report
    forecasts = [text for text in report.warnings if text.startswith("expect a loss at this budget: the class of")]
    results = [text for text in report.warnings if text.endswith("on the 200 samples of the check")]
    assert bool(forecasts) is loses and bool(results) is loses
    if loses:
        assert forecasts[0] in progress.notices and "refine" not in progress.done


def test_a_metric_that_wants_labels_is_not_asked_of_samples_without() -> None:
    def accuracy(outputs, labels):  # type: ignore[no-untyped-def]
        return 100.0 * (next(iter(outputs.values())).argmax(axis=1) == labels).mean()

    model = mlp(widths=(6, 64, 64, 5))
    checked = {"x": rows(200), "labels": rows(200)[:, 0] > 0}
    report = shrink(model, rows(900), eval=checked, metric=accuracy, width=0.1, refine=1, threads=1).report
    assert any(text.startswith("expect a loss at this budget: the class of") for text in report.warnings)
