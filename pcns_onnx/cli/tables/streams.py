"""Residual streams that were narrowed by rotation, as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.table import Table

from pcns_onnx.cli.tables.records import plain_table
from pcns_onnx.planning.plan import StreamPlan
from pcns_onnx.report.shares import share


def stream_tables(streams: Mapping[str, StreamPlan]) -> Iterator[Table]:
    """One table, where there are any: how wide they were and are, and what share of them is cut away."""
    if not streams:
        return
    table = plain_table("residual stream", right=("width", "kept", "cut away"))
    table.add_column("re-fit")
    for name, plan in streams.items():
        table.add_row(name, str(plan.of), str(plan.width), share(plan.lost), "yes" if plan.refit else "no")
    yield table
