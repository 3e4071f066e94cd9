"""The table of `advise`, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from pcns_onnx.cli.tables.records import plain_table
from pcns_onnx.report.advice.record import Advice
from pcns_onnx.report.advice.words import cells, commands, headings
from pcns_onnx.report.shares import NONE


def advice_tables(advice: Advice) -> Iterator[RenderableType]:
    """Tables for `advise`: the candidates, what to type for them, what holds back, and the recommendation."""
    table = plain_table("", right=headings(advice))
    for row in advice.rows:
        table.add_row(f"{'> ' if row.name == advice.recommended else '  '}{row.name}", *cells(row))
    yield table
    # Lines, not a table: what is to be copied must not be folded.
    yield Text("\n".join(f"{name}:\n  {text}" for name, text in commands(advice.rows)), overflow="ignore", no_wrap=True)
    judged = f"losses are predicted from trials judged on {advice.judged:,} samples"
    yield f"the original takes {advice.milliseconds:.3f} ms; {judged}"
    if advice.held_back:
        kept = plain_table("keeps its width", "because", right=("layers", "MACs", "time"))
        for item in advice.held_back:
            time = NONE if item.seconds is None else f"{item.seconds:.0%}"
            kept.add_row(item.name, item.reason, str(item.layers), f"{item.macs:.0%}", time)
        yield kept
    if advice.against:
        yield "\n".join(f"against shrinking: {text}" for text in advice.against)
    yield f"recommended: {advice.recommended}: {advice.why}"
