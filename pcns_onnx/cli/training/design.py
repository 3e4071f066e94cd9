"""`design MODEL`: a smaller net from what the layers use, to be trained from scratch."""

from __future__ import annotations

from typing import Any

import click

from pcns_onnx.cli.console import EXIT_CODES, Console, with_console
from pcns_onnx.cli.options import DATA_HELP, api_keywords, record_options
from pcns_onnx.errors import InputError

_DEPTHS = ("monotone", "first-contraction")
"""Depth rules again: importing `architecture.depth` for --help would import numpy."""


@click.command(epilog=EXIT_CODES)
@click.argument("model")
@click.option("--data", help=DATA_HELP)
@click.option("-o", "--output", required=True, metavar="NEW", help="Where to write the new net, its weights random.")
@click.option("--variance", type=float, help="Share of every layer's variance to keep (0.999).")
@click.option(
    "--budget",
    multiple=True,
    metavar="macs=F|params=F",
    help="Find that share: the largest up to 0.999 that meets the budget.",
)
@click.option(
    "--depth",
    metavar="|".join(_DEPTHS),
    help="Drop Convs that do not expand dimensions (default), or all from the first such on.",
)
@click.option("--no-depth", "depth", flag_value="none", help="Choose widths only.")
@click.option("--config", metavar="CFG.json", help="Write the design: widths, depth, PCA graphs, costs.")
@click.option("--ungroup", is_flag=True, help="Write MODEL without grouped Convs: train that, then design from it.")
@record_options("design")
@with_console
def design(model: str, data: str | None, output: str, ungroup: bool, console: Console, **choices: Any) -> None:
    """Design a smaller net from what MODEL's layers use. One PCA pass; NEW is to be trained from scratch."""
    from pcns_onnx.api.training.design import design as run
    from pcns_onnx.api.training.design import ungrouped
    from pcns_onnx.cli.tables.records import design_tables

    chosen = api_keywords(choices)
    if ungroup:
        if chosen.keys() - {"seed"} or data is not None:
            raise InputError("--ungroup looks at no data and takes no option but --seed: train what it writes first")
        _, names = ungrouped(model, output, **chosen)
        console.say(f"{len(names)} Convs read all channels now: " + ", ".join(names))
    elif data is None:
        raise InputError("a design looks at what filters do: give samples with --data")
    else:
        with console.bars() as progress:
            blueprint = run(model, data, output, progress=progress, **chosen).blueprint
        console.show(design_tables(blueprint), blueprint.warnings)
    console.wrote(f"{output}, to be trained from scratch")
