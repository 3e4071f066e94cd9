"""The command line: argv to options and results to a terminal, nothing else.

Every failure is one line on stderr. Exit codes: 0 done, 2 bad input or usage, 3 nothing could
be shrunk, 4 a gate failed, 5 int8 or fp16 failed and the float32 model is written, or a later round failed and the
model of those before is written.
"""

from __future__ import annotations

import sys

import click

from pcns_onnx.cli.advise import advise
from pcns_onnx.cli.compare import compare
from pcns_onnx.cli.console import EXIT_CODES
from pcns_onnx.cli.diff import diff
from pcns_onnx.cli.doctor import doctor
from pcns_onnx.cli.explore.explore import explore
from pcns_onnx.cli.heal import heal
from pcns_onnx.cli.inspect import inspect
from pcns_onnx.cli.plan import plan
from pcns_onnx.cli.quantize import quantize
from pcns_onnx.cli.shrink import shrink
from pcns_onnx.cli.training.design import design
from pcns_onnx.cli.training.expand import expand
from pcns_onnx.errors import NothingToShrinkError, PcnsError

GLOSSARY = "What a word in a message or a table means: docs/glossary.md in the repository."


@click.group(
    epilog=f"{EXIT_CODES}\n\n{GLOSSARY}",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="pcns-onnx")
def cli() -> None:
    """Make a trained ONNX model narrower and faster, with nothing but samples."""


for _command in (inspect, advise, shrink, heal, quantize, plan, explore, expand, compare, design, diff, doctor):
    cli.add_command(_command)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        words = sys.argv[1:] if argv is None else argv
        cli.main(words, prog_name="pcns-onnx", standalone_mode=False, obj=words)
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
        if sys.stderr.isatty():
            click.echo(err=True)
        return _fail("interrupted", 130)
    except MemoryError:
        return _fail("out of memory: use fewer --samples or a smaller --batch", 2)


def run() -> None:
    """Console entry point of earlier installations; today's is in `__main__`."""
    sys.exit(main())


def _fail(message: str, code: int) -> int:
    click.echo(f"pcns-onnx: error: {message}", err=True)
    return code
