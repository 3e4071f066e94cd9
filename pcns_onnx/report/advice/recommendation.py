"""Which row to take: one rule, of what is lost and what is measured, and nothing else.

Rows stand in the order of the effort that they take: as it is, int8, shrink from the widest to the narrowest, shrink
and int8, shrink and heal. Going down the table, a row takes the place of the one before if

* it can be had here (what needs PyTorch, only where that is installed),
* the upper end of what it is expected to lose is allowed, and
* it is at least `PAYS` faster, as measured, than the row that it takes the place of.

What is allowed says the caller (`--max-drop`, `--max-error`); else `ALLOWED`. Losses are the same for the same model,
data and seed; latencies are measured, so two rows that are about as fast may change places from run to run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pcns_onnx.evaluation.options import GateOptions
from pcns_onnx.report.advice.losses import Measure
from pcns_onnx.report.advice.prediction import PredictedLoss
from pcns_onnx.report.advice.record import AdviceRow
from pcns_onnx.report.advice.words import amount

PAYS = 0.05
"""The share of its time that a row has to save, to be worth more effort."""
ALLOWED: Mapping[Measure, float] = {"score": 0.01, "decisions": 0.02, "error": 0.1}
"""Shares that may be lost where nobody says otherwise."""


def allowed(loss: PredictedLoss, limits: GateOptions) -> float:
    """The share of what this is a loss of that may be lost."""
    if loss.measure == "score" and limits.max_drop is not None and loss.score:
        return limits.max_drop / abs(loss.score)
    if loss.measure == "error" and limits.max_error is not None:
        return limits.max_error
    return ALLOWED[loss.measure]


def pays(row: AdviceRow, instead_of: AdviceRow, limit: float) -> bool:
    """Whether a row is to take another's place."""
    if row.loss is None or row.latency is None or instead_of.latency is None or row.needs is not None:
        return False
    return row.loss.high <= limit and row.latency <= (1 - PAYS) * instead_of.latency


def recommended(rows: Sequence[AdviceRow], limit: float) -> AdviceRow:
    """The row to take, by the rule."""
    best = rows[0]
    for row in rows[1:]:
        if pays(row, best, limit):
            best = row
    return best


def explained(best: AdviceRow, rows: Sequence[AdviceRow], limit: float | None) -> str:
    """Why that row, in a sentence."""
    if best.loss is None or limit is None or best.latency is None or all(row.loss is None for row in rows[1:]):
        return "nothing else is available"
    most = amount(best.loss, limit)
    if best is rows[0]:
        return f"nothing else is {PAYS:.0%} faster and sure enough to lose no more than {most}"
    others = [row for row in rows if row.loss is not None and row.latency is not None and row.latency < best.latency]
    beyond = next((row for row in others if row.loss is not None and row.loss.high > limit), None)
    more = ""
    if beyond is not None and beyond.loss is not None:
        more = f"; '{beyond.name}' may lose {amount(best.loss, beyond.loss.high)}"
    lost = amount(best.loss, best.loss.high)
    return f"it takes {best.latency:.2f} of the time and is unlikely to lose more than {lost} (allowed: {most}){more}"
