"""`plan MODEL`: widths without solving, or the whole frontier."""

from __future__ import annotations

from typing import Any

import click

from pcns_onnx.cli.console import EXIT_CODES, Console, with_console
from pcns_onnx.cli.options import DATA_HELP, api_keywords, as_json, config_option, record_options
from pcns_onnx.errors import InputError


@click.command(epilog=EXIT_CODES)
@click.argument("model")
@click.option("--data", help=f"{DATA_HELP} Not needed with --stats.")
@click.option("-o", "--output", metavar="PLAN.json", help="Write the plan, for shrink --plan.")
@click.option("--frontier", is_flag=True, help="Print error against cost for the whole range of budgets.")
@click.option("--figure", metavar="FILE", help="Draw the frontier: .svg, .png or .pdf (extra: plots).")
@as_json
@record_options("plan")
@config_option
@with_console
def plan(
    model: str,
    data: str | None,
    output: str | None,
    frontier: bool,
    figure: str | None,
    console: Console,
    **choices: Any,
) -> None:
    """Choose widths and solve nothing, or show the frontier."""
    from pcns_onnx.api.plan import plan as run
    from pcns_onnx.cli.tables.records import plan_tables
    from pcns_onnx.cli.tables.streams import stream_tables
    from pcns_onnx.report.frontier_figure import frontier_figure

    if figure is not None and not frontier:
        raise InputError("--figure draws the frontier: give --frontier too")
    draw = None if figure is None else frontier_figure(figure, (model, data, choices["stats"]))
    with console.bars() as progress:
        report = run(model, data, output, frontier=frontier, progress=progress, **api_keywords(choices)).report
    if draw is not None:
        draw(report)
    if console.as_json:
        console.record(report)
    else:
        console.show([*stream_tables(report.streams), *plan_tables(report)], report.warnings)
    for path in filter(None, (output, figure)):
        console.wrote(path)
