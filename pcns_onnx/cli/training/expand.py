"""`expand MODEL`: a wider model that computes the same."""

from __future__ import annotations

from typing import Any

import click

from pcns_onnx.cli.console import EXIT_CODES, Console, with_console
from pcns_onnx.cli.options import api_keywords, config_option, epilog, record_options
from pcns_onnx.methods.registry import EXPANSIONS


@click.command(epilog=epilog([method.paragraph for method in EXPANSIONS.values()], EXIT_CODES))
@click.argument("model")
@click.option("--layer", multiple=True, required=True, metavar="GLOB", help="Layers to widen, as `inspect` names them.")
@click.option("--by", type=float, default=1.5, show_default=True, help="The factor by which they get wider.")
@click.option("--method", metavar="|".join(EXPANSIONS), help="How (weak); see below.")
@click.option("-o", "--output", required=True, metavar="OUT", help="Where to write the wider model.")
@click.option("--data", help="Samples to compare both models on; noise by default.")
@record_options("expand")
@config_option
@with_console
def expand(model: str, output: str, console: Console, **choices: Any) -> None:
    """Write a wider MODEL to OUT that computes the same. It is to be trained further."""
    from pcns_onnx.api.training.expand import expand as run
    from pcns_onnx.cli.tables.records import expansion_tables

    with console.bars() as progress:
        result = run(model, output, progress=progress, **api_keywords(choices))
    console.show(expansion_tables(result.report), result.report.warnings)
    console.wrote_model(output, model)
