"""`shrink MODEL`: a narrower model, checked."""

from __future__ import annotations

from typing import Any

import click

from pcns_onnx.cli.console import EXIT_CODES, Console, with_console
from pcns_onnx.cli.options import DATA_HELP, api_keywords, as_json, config_option, epilog, record_options
from pcns_onnx.errors import PrecisionError, RoundError
from pcns_onnx.methods.registry import METHODS


@click.command(epilog=epilog([method.paragraph for method in METHODS.values()], EXIT_CODES))
@click.argument("model")
@click.option("--data", help=f"{DATA_HELP} eigenremove, min-weight: none.")
@click.option("-o", "--output", required=True, metavar="OUT", help="Where to write the shrunk model.")
@as_json
@record_options("shrink")
@config_option
@with_console
def shrink(model: str, data: str | None, output: str, console: Console, **choices: Any) -> None:
    """Write a narrower MODEL to OUT, checked on samples held out. Inputs and outputs stay what they are."""
    from pcns_onnx.api.shrink import shrink as run
    from pcns_onnx.evaluation.precisions import precision_path
    from pcns_onnx.graph.model_source import ModelFolder

    with console.gate(), console.bars() as progress:
        result = run(model, data, output, progress=progress, **api_keywords(choices))
    failed = [str(precision) for precision in result.report.failed_precisions]
    round_failed = [] if result.report.failed_round is None else [result.report.failed_round]
    console.report(result.report, without=[*failed, *round_failed, *progress.notices])
    console.wrote_model(output, model, "".join(f" and its {kind}" for kind in result.lowered))
    if round_failed:
        raise RoundError(f"{'; '.join([*round_failed, *failed])} ({output} is written)")
    if failed:
        folder = ModelFolder.of(model)
        target = output if folder is None else folder.target(output)
        beside = [precision_path(target, precision.kind) for precision in result.report.failed_precisions]
        stale = [f"; {path} is of an earlier run" for path in beside if path is not None and path.exists()]
        raise PrecisionError(f"{'; '.join(failed)} ({output} is written{''.join(stale)})")
