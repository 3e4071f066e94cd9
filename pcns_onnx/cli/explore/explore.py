"""`explore MODEL`: the frontier as a page to play with, served on this machine or written as a file."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import Any

import click

from pcns_onnx.cli.console import EXIT_CODES, Console, with_console
from pcns_onnx.cli.options import DATA_HELP, api_keywords, as_json, config_option, record_options
from pcns_onnx.cli.terminal import interruptible
from pcns_onnx.errors import InputError


@click.command(epilog=EXIT_CODES)
@click.argument("model")
@click.option("--data", help=f"{DATA_HELP} Not needed with --stats.")
@click.option("-o", "--output", metavar="FILE.html", help="Write one file that needs no server, and serve nothing.")
@click.option("--port", type=click.IntRange(1, 65535), help="Serve on this port of 127.0.0.1 (a free one).")
@as_json
@record_options("explore")
@config_option
@with_console
def explore(
    model: str, data: str | None, output: str | None, port: int | None, console: Console, **choices: Any
) -> None:
    """Show the frontier as a page to click on, and run what it shows."""
    from pcns_onnx.api.explore.exploration import explore as run
    from pcns_onnx.api.explore.server import PageServer, check_servable

    if port is not None and (output is not None or console.as_json):
        raise InputError("--port is for a page that is served: leave it out, or -o and --json")
    serves = output is None and not console.as_json
    if serves:
        check_servable()
    with console.bars() as progress:
        exploration = run(model, data, output, progress=progress, **api_keywords(choices))
    if console.as_json:
        console.record(exploration)
    if output is not None:
        console.show((), exploration.warnings)
        console.wrote(output)
    if not serves:
        return
    server = PageServer(exploration, runs=data is not None, port=port or 0)
    console.show((), exploration.warnings)
    console.address(server.address)
    # Ctrl-C is how one leaves: no failure.
    with closing(server), suppress(KeyboardInterrupt), interruptible():
        server.serve()
