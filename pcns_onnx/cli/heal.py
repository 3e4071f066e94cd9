"""`heal MODEL --original ORIGINAL`: the small model learns from its original."""

from __future__ import annotations

from typing import Any

import click

from pcns_onnx.cli.console import EXIT_CODES, Console, with_console
from pcns_onnx.cli.options import DATA_HELP, api_keywords, as_json, config_option, record_options


@click.command(epilog=EXIT_CODES)
@click.argument("model")
@click.option("--original", required=True, metavar="MODEL", help="The model that MODEL was made from.")
@click.option("--data", required=True, help=DATA_HELP)
@click.option("-o", "--output", required=True, metavar="OUT", help="Where to write the healed model.")
@as_json
@record_options("heal")
@config_option
@with_console
def heal(model: str, original: str, data: str, output: str, console: Console, **choices: Any) -> None:
    """Let a shrunk MODEL learn from its original."""
    from pcns_onnx.api.heal import heal as run

    with console.gate(), console.bars() as progress:
        result = run(model, original, data, output, progress=progress, **api_keywords(choices))
    console.report(result.report)
    console.wrote_model(output, model)
