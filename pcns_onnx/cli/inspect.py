"""`inspect MODEL`: every linear layer, its cost, and whether it can shrink."""

from __future__ import annotations

from typing import Any

import click

from pcns_onnx.cli.console import EXIT_CODES, Console, with_console
from pcns_onnx.cli.options import DATA_HELP, api_keywords, as_json, config_option, record_options


@click.command(epilog=EXIT_CODES)
@click.argument("model")
@click.option("--data", help=DATA_HELP)
@as_json
@record_options("inspect")
@config_option
@with_console
def inspect(model: str, data: str | None, console: Console, **choices: Any) -> None:
    """List every linear layer, its cost, and whether it can shrink. With data, also what it uses."""
    from pcns_onnx.api.inspect import inspect as run
    from pcns_onnx.cli.tables.records import inspection_tables

    with console.bars() as progress:
        inspection = run(model, data, progress=progress, **api_keywords(choices))
    if console.as_json:
        console.record(inspection)
        return
    console.show(inspection_tables(inspection), inspection.warnings)
