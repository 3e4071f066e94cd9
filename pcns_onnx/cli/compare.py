"""`compare A B`: agreement, latency and cost of two models."""

from __future__ import annotations

from typing import Any

import click

from pcns_onnx.cli.console import EXIT_CODES, Console, with_console
from pcns_onnx.cli.options import DATA_HELP, api_keywords, as_json, config_option, record_options


@click.command(epilog=EXIT_CODES)
@click.argument("a")
@click.argument("b")
@click.option("--data", required=True, help=DATA_HELP)
@as_json
@record_options("compare")
@config_option
@with_console
def compare(a: str, b: str, data: str, console: Console, **choices: Any) -> None:
    """Compare two models: agreement, latency, cost. The gates are those of shrink."""
    from pcns_onnx.api.compare import compare as run

    with console.gate(), console.bars() as progress:
        report = run(a, b, data, progress=progress, **api_keywords(choices))
    console.report(report)
