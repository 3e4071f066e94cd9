"""How the rows of `advise` read, in a terminal as on a page."""

from __future__ import annotations

from collections.abc import Sequence

from pcns_onnx.progress import duration_text
from pcns_onnx.report.advice.prediction import PredictedLoss
from pcns_onnx.report.advice.record import Advice, AdviceRow
from pcns_onnx.report.shares import NONE


def headings(advice: Advice) -> tuple[str, ...]:
    """The columns of the table, the first one apart."""
    threads = (
        "default threads" if not advice.threads else f"{advice.threads} thread{'' if advice.threads == 1 else 's'}"
    )
    where = f"batch {advice.batch}, {threads}, {advice.target}"
    return ("MACs", f"{loss_name(advice)} (80 % interval)", f"latency, ratio ({where})", "file (KB)", "takes")


def loss_name(advice: Advice) -> str:
    """What is lost, with its unit."""
    loss = next((row.loss for row in advice.rows if row.loss is not None), None)
    if loss is None or loss.measure == "error":
        return "relative error"
    return "points lost" if loss.measure == "score" else "decisions lost, %"


def unit_of(loss: PredictedLoss | None) -> float:
    """What a share of the loss is multiplied by, to be in the unit of `loss_name`."""
    if loss is None:
        return 1.0
    return {"score": abs(loss.score or 1.0), "decisions": 100.0, "error": 1.0}[loss.measure]


def amount(loss: PredictedLoss, share: float) -> str:
    """Such a share as words: '0.3 points', '1.2 % of the decisions', 'an error of 0.05'."""
    value = unit_of(loss) * share
    if loss.measure == "error":
        return f"an error of {value:.3f}"
    if loss.measure == "decisions":
        return f"{value:.1f} % of the decisions"
    return f"{value:.2g} points"


def loss_text(loss: PredictedLoss | None) -> str:
    """The share that is expected to be lost and its interval, in the unit of `loss_name`."""
    if loss is None:
        return NONE
    times = unit_of(loss)
    digits = 3 if times <= 1.0 else 1
    share, low, high = (f"{times * value:.{digits}f}" for value in (loss.share, loss.low, loss.high))
    return share if loss.trial is None else f"{share} ({low} to {high})"


def cells(row: AdviceRow) -> tuple[str, ...]:
    """A row, its name apart, in the columns of `headings`."""
    return (
        NONE if row.macs is None else f"{row.macs:.3f}",
        loss_text(row.loss),
        NONE if row.latency is None else f"{row.latency:.2f}",
        NONE if row.bytes is None else f"{row.bytes / 1e3:,.0f}",
        NONE if row.seconds is None else duration_text(row.seconds),
    )


def commands(rows: Sequence[AdviceRow]) -> list[tuple[str, str]]:
    """Names of rows and what to type for them, or why they are not available: once for all with the same reason."""
    lines = [
        (row.name, row.command + (f"    # first: {row.needs}" if row.needs else "")) for row in rows if _is_there(row)
    ]
    without: dict[str, list[str]] = {}
    for row in rows:
        if row.why_not is not None:
            without.setdefault(row.why_not, []).append(row.name)
    return lines + [("; ".join(names), f"not available: {reason}") for reason, names in without.items()]


def _is_there(row: AdviceRow) -> bool:
    return bool(row.command) and row.why_not is None
