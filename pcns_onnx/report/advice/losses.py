"""What a model loses, as one share: of its score, of its decisions, or the error of its outputs.

A user's own score counts most; without labels and metric, what the outputs decide; and where they decide nothing,
their relative error. All three are shares, so that one formula can predict each (`prediction`).
"""

from __future__ import annotations

from math import isfinite
from typing import Literal

import msgspec

from pcns_onnx.errors import InputError
from pcns_onnx.evaluation.agreement import Agreement
from pcns_onnx.report.decisions_lost import decision_losses

Measure = Literal["score", "decisions", "error"]
"""What is lost: a share of the original's score, a share of its decisions, or the relative error of the outputs."""


class MeasuredLoss(msgspec.Struct, frozen=True):
    """A loss measured on `samples`, and what else could be measured: the share of `decisions`, the relative `error` of
    the outputs. Of shares of a score, `score` is the original's."""

    measure: Measure
    share: float
    error: float | None
    samples: int
    decisions: float | None = None
    score: float | None = None


def measured_loss(agreement: Agreement) -> MeasuredLoss:
    """What the second of two models loses; less than 0 where its score is the better one. Raises `InputError` where
    nothing of both could be compared."""
    losses = [share for output in agreement.outputs if output.weight > 0 for share, _ in decision_losses(output)]
    decisions, count = max(losses, default=None), agreement.samples
    error = agreement.error if isfinite(agreement.error) else None
    a, b = agreement.score_a, agreement.score_b
    if a is not None and b is not None and a and isfinite(a) and isfinite(b):
        return MeasuredLoss("score", (a - b) / abs(a), error, count, decisions, a)
    if decisions is not None:
        return MeasuredLoss("decisions", decisions, error, count, decisions)
    if error is None:
        raise InputError(
            "its outputs cannot be compared with the original's, so nothing tells what is lost: --metric can"
        )
    return MeasuredLoss("error", error, error, count)
