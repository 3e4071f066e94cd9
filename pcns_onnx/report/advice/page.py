"""Advice as one HTML file for people, as `report.html` makes them: the table, the frontier and what each row costs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from pcns_onnx.files import write_atomic
from pcns_onnx.report.advice.record import Advice, AdviceRow
from pcns_onnx.report.advice.words import cells, commands, headings, loss_name, unit_of
from pcns_onnx.report.html.figures import AFTER, THIRD, Picture, draw_frontier, drawn
from pcns_onnx.report.html.page import rendered


def write_advice(advice: Advice, path: str | os.PathLike[str]) -> None:
    """Write the page, atomically."""
    text = rendered(
        "advice.html",
        _pictures(advice),
        advice=advice,
        chosen=advice.row(advice.recommended),
        headings=headings(advice),
        cells=cells,
        commands=commands(advice.rows),
    )
    write_atomic(path, text.encode("utf-8", "backslashreplace"))


def _pictures(advice: Advice) -> Iterator[Picture]:
    known = [row for row in advice.rows if row.loss is not None and row.latency is not None]
    if len(known) > 1:
        yield drawn(
            "What is lost, and what is gained",
            "Measured time against the predicted loss with its interval; the dashed line is what may be lost.",
            3.4, lambda figure: _trade_off(figure, advice, known),
        )  # fmt: skip
    if advice.frontier:
        yield drawn(
            "Error against cost",
            "Predicted error at the outputs, before any re-fit, for every budget.",
            3.2, lambda figure: draw_frontier(figure, advice.frontier, None),
        )  # fmt: skip


def _trade_off(figure: Any, advice: Advice, rows: list[AdviceRow]) -> None:
    axes, times = figure.subplots(), unit_of(rows[0].loss)
    for row in rows:
        assert row.loss is not None and row.latency is not None, "known"
        share, low, high = (times * value for value in (row.loss.share, row.loss.low, row.loss.high))
        colour = AFTER if row.name == advice.recommended else THIRD
        spread = [[max(share - low, 0.0)], [max(high - share, 0.0)]]
        axes.errorbar([row.latency], [share], yerr=spread, marker="o", color=colour, capsize=3)
        place = {"textcoords": "offset points", "xytext": (5, 4), "fontsize": 7}
        axes.annotate(row.name.removeprefix("shrink to "), (row.latency, share), **place)
    if advice.allowed is not None:
        axes.axhline(times * advice.allowed, linestyle="--", linewidth=1, color=AFTER)
    axes.set(xlabel="time, of the original's", ylabel=loss_name(advice))
    axes.set_xlim(left=0)
