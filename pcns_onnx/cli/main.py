"""The command line: argv to options and results to a terminal, nothing else.

Every failure is one line on stderr. Exit codes: 0 done, 2 bad input or usage, 3 nothing could
be shrunk, 4 a gate failed.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable
from typing import Any

import click

from pcns_onnx.cli.console import EXIT_CODES, Command, Console, with_console
from pcns_onnx.cli.diff import diff
from pcns_onnx.cli.doctor import doctor
from pcns_onnx.errors import InputError, NothingToShrinkError, PcnsError
from pcns_onnx.methods.registry import CHOICES, EXPANSIONS, METHODS, Method

_DEPTHS = ("monotone", "first-contraction")
"""Depth rules again: importing `designing` for --help would import numpy."""


def _epilog(methods: Iterable[Method]) -> str:
    """The table of methods and the exit codes, as help texts end."""
    return "\n\n".join(["Methods:", *(method.paragraph for method in methods), EXIT_CODES])


def _options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def wrap(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return wrap


_DATA_OPTIONS = _options(
    click.option(
        "--normalize",
        nargs=2,
        metavar="MEAN STD",
        help="uint8 images to float: (x/255 - MEAN) / STD; comma-separated per channel.",
    ),
    click.option(
        "--preprocess",
        metavar="KEY=VALUE,...",
        help="Images: resize=256,crop=224,mean=...,std=...,layout=NCHW,"
        "channels=RGB. Texts: tokenizer=tokenizer.json,length=128,text=COLUMN.",
    ),
    click.option("--samples", type=int, help="Use so many samples of the data (seeded)."),
    click.option(
        "--batch",
        type=int,
        help="Samples per run, 64 by default; a model's fixed batch wins. Latency is measured at it.",
    ),
    click.option("--seed", type=int, help="Seed of everything that is drawn (0)."),
)
_PLACE_OPTIONS = _options(
    click.option(
        "--shape", multiple=True, metavar="NAME=1x3x224x224", help="Sizes of an input that the model leaves open."
    ),
    click.option("--device", metavar="auto|cpu|cuda", help="Where to run (auto: CUDA where there is a GPU)."),
    click.option("--threads", type=int, help="Threads of onnxruntime and of the linear algebra (0: their default)."),
    click.option("--memory", metavar="4GB", help="Take no more memory than that: more passes, or one line of error."),
    click.option("--custom-ops", multiple=True, metavar="LIB", help="A library of operators for onnxruntime."),
)
_LATENCY_OPTIONS = _options(
    click.option("--workers", type=int, metavar="N", help="Share the passes over the data among N processes (Dask)."),
    click.option("--scheduler", metavar="ADDRESS", help="Share them among the workers of this Dask scheduler."),
    click.option("--batch-latency", type=int, metavar="N", help="Measure latency at batches of N (as --batch)."),
    click.option("--stats", metavar="FILE", help="Keep what was seen of the data, for other budgets."),
)
_ENGINE_OPTIONS = _options(
    click.option("--heads", metavar="width|whole", help="Attention: narrow every head (width) or take whole heads."),
    _PLACE_OPTIONS,
)
_GATE_OPTIONS = _options(
    click.option("--max-error", type=float, help="Gate: largest relative L2 error of any output."),
    click.option("--max-drop", type=float, help="Gate: most points of accuracy (or metric) that may be lost."),
    click.option("--metric", metavar="MODULE:FUNCTION", help="Your own score: (outputs of a batch, labels) -> float."),
    click.option("--report", metavar="FILE", help="Write the report as JSON."),
    click.option("--html", metavar="FILE.html", help="Write the report as a page to read (extra: html)."),
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of tables."),
)


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pcns-onnx")
def cli() -> None:
    """Make a trained ONNX model narrower and faster, with nothing but samples."""


@cli.command(epilog=EXIT_CODES)
@click.argument("model")
@click.option("--data", help="Samples: .npz, .npy, tables, images, texts, or module:function.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--variance", type=float, help="Count the eigenvectors that reach this share of the variance, too.")
@click.option("--trials", type=int, metavar="N", help="Run PCNS on N batches of every size: error there and elsewhere.")
@click.option("--include", multiple=True, metavar="GLOB", help="Trials of layers of these names only.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="No trials of layers of these names.")
@_DATA_OPTIONS
@_ENGINE_OPTIONS
@with_console
def inspect(model: str, data: str | None, console: Console, **choices: Any) -> None:
    """List every linear layer, its cost, and whether it can shrink. With data, also what it uses."""
    from pcns_onnx.api.inspect import inspect as run
    from pcns_onnx.cli.tables import inspection_tables

    with console.bars() as progress:
        found = run(model, data, progress=progress, **_given(choices))
    if console.as_json:
        console.record(found)
        return
    console.show(inspection_tables(found), found.warnings)


@cli.command(epilog=_epilog(METHODS.values()))
@click.argument("model")
@click.option(
    "--data", help="Samples: .npz, .npy, tables, images, texts, or module:function. eigenremove, min-weight: none."
)
@click.option("-o", "--output", required=True, metavar="OUT", help="Where to write the shrunk model.")
@click.option("--refine", type=int, metavar="N", help="Steps of refinement per layer after its re-fit (400; 0: none).")
@click.option("--method", metavar="|".join(CHOICES), help="How to choose and solve (auto: obs); see below.")
@click.option(
    "--budget",
    multiple=True,
    metavar="macs=F|params=F|latency=F|error=E|drop=P",
    help="What may be left of a cost (a fraction of the original), or be lost: relative error of an output, points of "
    "accuracy. Repeatable, all must hold.",
)
@click.option("--width", type=float, help="Fraction of every hidden width to keep.")
@click.option("--variance", type=float, help="Share of every layer's variance to keep, 0.999 say.")
@click.option("--plan", metavar="PLAN.json", help="Replay a plan.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only layers of these names.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave layers of these names alone.")
@click.option("--multiple", metavar="auto|N", help="Widths are multiples of N (auto: what onnxruntime's kernels like).")
@click.option(
    "--order", metavar="ascending|descending", help="pcns: one pass per layer, or all from the original, last to first."
)
@click.option("--refit/--no-refit", default=None, help="pcns: re-fit the reader (default), or the paper to the letter. "
              "Eigenremove, min-weight: solve the readers again on --data.")  # fmt: skip
@click.option(
    "--rank-ratio",
    type=float,
    help="eigenremove: the share of each rank that is kept, 0.75 by default (1 is min-weight). Graham's rules of "
    "thumb: above 0.5 for small changes, late in training or after it; below 0.5 for drastic ones with training to "
    "follow (about how often, the thesis says both).",
)
@click.option("--no-coupled", "coupled", flag_value=False, default=None, type=bool,
              help="Leave channels alone that several blocks share (residual streams, concatenations).")  # fmt: skip
@click.option("--keep-blocks", "depth", flag_value=False, default=None, type=bool, help="Drop no residual block.")
@click.option("--low-rank", is_flag=True, help="Layers that cannot get narrower may become two of lower rank.")
@click.option("--holdout", type=float, help="Share of the samples kept from the solve for the check (0.1).")
@click.option("--eval", metavar="DATA", help="Check on this data instead.")
@click.option("--plan-out", metavar="PLAN.json", help="Write the plan.")
@click.option("--int8", is_flag=True, help="Quantise the result, too (static, on DATA): OUT.int8.onnx beside OUT.onnx.")
@click.option("--fp16", is_flag=True, help="Write the result in float16, too: OUT.fp16.onnx beside OUT.onnx.")
@_GATE_OPTIONS
@_LATENCY_OPTIONS
@_DATA_OPTIONS
@_ENGINE_OPTIONS
@with_console
def shrink(model: str, data: str | None, output: str, console: Console, **choices: Any) -> None:
    """Write a narrower MODEL to OUT, checked on samples held out. Inputs and outputs stay what they are."""
    from pcns_onnx.api.shrink import shrink as run

    with console.gate(), console.bars() as progress:
        result = run(model, data, output, progress=progress, **_given(choices))
    console.report(result.report)
    console.say(f"wrote {output}" + "".join(f" and its {kind}" for kind in result.lowered))


@cli.command(epilog=EXIT_CODES)
@click.argument("model")
@click.option("--data", help="Samples: .npz, .npy, tables, images, texts, or module:function. Not needed with --stats.")
@click.option("-o", "--output", metavar="PLAN.json", help="Write the plan, for shrink --plan.")
@click.option("--frontier", is_flag=True, help="Print error against cost for the whole range of budgets.")
@click.option("--figure", metavar="FILE", help="Draw the frontier: .svg, .png or .pdf (extra: plots).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--method", metavar="obs|interpolative", help="How channels are chosen (auto: obs).")
@click.option("--budget", multiple=True, metavar="macs=F|params=F|latency=F", help="Fraction that may be left.")
@click.option("--width", type=float, help="Fraction of every hidden width to keep.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only layers of these names.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave layers of these names alone.")
@click.option("--low-rank", is_flag=True, help="Layers that cannot get narrower may become two of lower rank.")
@click.option("--multiple", metavar="auto|N", help="Widths are multiples of N (auto: as timed on this machine).")
@click.option("--no-coupled", "coupled", flag_value=False, default=None, type=bool,
              help="Leave channels alone that several blocks share (residual streams, concatenations).")  # fmt: skip
@_LATENCY_OPTIONS
@_DATA_OPTIONS
@_ENGINE_OPTIONS
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
    """Choose widths without solving, the layers timed here. Or show the whole frontier."""
    from pcns_onnx.api.plan import plan as run
    from pcns_onnx.cli.tables import plan_tables
    from pcns_onnx.report.frontier_figure import frontier_figure

    if figure is not None and not frontier:
        raise InputError("--figure draws the frontier: give --frontier too")
    draw = None if figure is None else frontier_figure(figure, (model, data, choices["stats"]))
    with console.bars() as progress:
        report = run(model, data, output, frontier=frontier, progress=progress, **_given(choices)).report
    if draw is not None:
        draw(report)
    if console.as_json:
        console.record(report)
        return
    console.show(plan_tables(report))
    for path in filter(None, (output, figure)):
        console.say(f"wrote {path}")


@cli.command(epilog=_epilog(EXPANSIONS.values()))
@click.argument("model")
@click.option("--layer", multiple=True, required=True, metavar="GLOB", help="Layers to widen, as `inspect` names them.")
@click.option("--by", type=float, default=1.5, show_default=True, help="The factor by which they get wider.")
@click.option("--method", metavar="|".join(EXPANSIONS), help="How (weak); see below.")
@click.option("-o", "--output", required=True, metavar="OUT", help="Where to write the wider model.")
@click.option("--data", help="Samples to compare both models on; noise by default.")
@_DATA_OPTIONS
@_ENGINE_OPTIONS
@with_console
def expand(model: str, output: str, console: Console, **choices: Any) -> None:
    """Write a wider MODEL to OUT that computes the same. It is to be trained further."""
    from pcns_onnx.api.expand import expand as run
    from pcns_onnx.cli.tables import expansion_tables

    with console.bars() as progress:
        result = run(model, output, progress=progress, **_given(choices))
    console.show(expansion_tables(result.report), result.report.warnings)
    console.say(f"wrote {output}")


@cli.command(epilog=EXIT_CODES)
@click.argument("a")
@click.argument("b")
@click.option("--data", required=True, help="Samples: .npz, .npy, tables, images, texts, or module:function.")
@_GATE_OPTIONS
@_DATA_OPTIONS
@_ENGINE_OPTIONS
@with_console
def compare(a: str, b: str, data: str, console: Console, **choices: Any) -> None:
    """Compare two models: agreement, latency, cost. The gates are those of shrink."""
    from pcns_onnx.api.compare import compare as run

    with console.gate(), console.bars() as progress:
        report = run(a, b, data, progress=progress, **_given(choices))
    console.report(report)


@cli.command(epilog=EXIT_CODES)
@click.argument("model")
@click.option("--data", help="Samples: .npz, .npy, tables, images, texts, or module:function.")
@click.option("-o", "--output", required=True, metavar="NEW", help="Where to write the new net, its weights random.")
@click.option("--variance", type=float, help="Share of every layer's variance to keep (0.999).")
@click.option("--budget", multiple=True, metavar="macs=F|params=F",
              help="Find that share: the largest up to 0.999 that meets the budget.")  # fmt: skip
@click.option("--depth", metavar="|".join(_DEPTHS),
              help="Drop Convs that do not expand dimensions (default), or all from the first such on.")  # fmt: skip
@click.option("--no-depth", "depth", flag_value="none", help="Choose widths only.")
@click.option("--config", metavar="CFG.json", help="Write the design: widths, depth, PCA graphs, costs.")
@click.option("--ungroup", is_flag=True, help="Write MODEL without grouped Convs: train that, then design from it.")
@_DATA_OPTIONS
@_PLACE_OPTIONS
@with_console
def design(model: str, data: str | None, output: str, ungroup: bool, console: Console, **choices: Any) -> None:
    """Design a smaller net from what MODEL's layers use. One PCA pass; NEW is to be trained from scratch."""
    from pcns_onnx.api.design import design as run
    from pcns_onnx.api.design import ungrouped
    from pcns_onnx.cli.tables import design_tables

    given = _given(choices)
    if ungroup:
        if given.keys() - {"seed"} or data is not None:
            raise InputError("--ungroup looks at no data and takes no option but --seed: train what it writes first")
        _, names = ungrouped(model, output, **given)
        console.say(f"{len(names)} Convs read all channels now: " + ", ".join(names))
    elif data is None:
        raise InputError("a design looks at what filters do: give samples with --data")
    else:
        with console.bars() as progress:
            blueprint = run(model, data, output, progress=progress, **given).blueprint
        console.show(design_tables(blueprint), blueprint.warnings)
    console.say(f"wrote {output}, to be trained from scratch")


for _command in (diff, doctor):
    cli.add_command(_command)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        given = sys.argv[1:] if argv is None else argv
        cli.main(given, prog_name="pcns-onnx", standalone_mode=False, obj=given)
        return 0
    except NothingToShrinkError as error:
        for name, reason in error.reasons:
            click.echo(f"left alone: {name}: {reason}")
        return _fail(str(error), error.exit_code)
    except PcnsError as error:
        return _fail(str(error), error.exit_code)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        return _fail(" ".join(error.format_message().split()), 2)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except MemoryError:
        return _fail("out of memory: use fewer --samples or a smaller --batch", 2)


def run() -> None:
    """Console entry point."""
    sys.exit(main())


def _fail(message: str, code: int) -> int:
    click.echo(f"pcns-onnx: error: {message}", err=True)
    return code


def _given(choices: dict[str, Any]) -> dict[str, Any]:
    """Only what was said on the command line, in the API's types."""
    from pcns_onnx.data.conform import Normalize
    from pcns_onnx.runtime.memory import limit_process, parse_bytes

    given = {name: value for name, value in choices.items() if value is not None and value != ()}
    if "html" in given:
        given["command"] = shlex.join(["pcns-onnx", *click.get_current_context().obj])
    if "normalize" in given:
        given["normalize"] = Normalize.parse(*given["normalize"])
    if "memory" in given:
        limit_process(parse_bytes(given["memory"]))
    return given
