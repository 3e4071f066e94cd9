"""`advise MODEL`: what to do with a model, before anything is done."""

from __future__ import annotations

from typing import Any

import click

from pcns_onnx.cli.console import EXIT_CODES, Console, with_console
from pcns_onnx.cli.options import DATA_HELP, api_keywords, as_json, config_option, record_options


@click.command(epilog=EXIT_CODES)
@click.argument("model")
@click.option("--data", required=True, help=DATA_HELP)
@as_json
@record_options("advise")
@config_option
@with_console
def advise(model: str, data: str, console: Console, **choices: Any) -> None:
    """Say what to do with MODEL: int8, shrink, both, or nothing. No model is written."""
    from pcns_onnx.api.advise import advise as run
    from pcns_onnx.cli.tables.advice import advice_tables

    with console.bars() as progress:
        advice = run(model, data, progress=progress, **api_keywords(choices))
    if console.as_json:
        console.record(advice)
    else:
        console.show(advice_tables(advice), advice.warnings)
    if choices["html"] is not None:
        console.wrote(choices["html"])
