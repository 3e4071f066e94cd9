"""`quantize MODEL`: int8 or float16 of a model as it is."""

from __future__ import annotations

from typing import Any

import click

from pcns_onnx.cli.console import EXIT_CODES, Console, with_console
from pcns_onnx.cli.options import DATA_HELP, api_keywords, as_json, config_option, record_options


@click.command(epilog=EXIT_CODES)
@click.argument("model")
@click.option("--data", required=True, help=DATA_HELP)
@click.option("-o", "--output", required=True, metavar="OUT", help="Where to write the quantised model.")
@as_json
@record_options("quantize")
@config_option
@with_console
def quantize(model: str, data: str, output: str, console: Console, **choices: Any) -> None:
    """Write MODEL in int8 or float16 to OUT. It gets no narrower, and is checked on samples held out."""
    from pcns_onnx.api.quantize import quantize as run

    with console.gate(), console.bars() as progress:
        result = run(model, data, output, progress=progress, **api_keywords(choices))
    console.report(result.report)
    console.wrote_model(output, model)
