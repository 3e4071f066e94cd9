"""How a command speaks: tables or JSON on stdout, progress and warnings on stderr, or nothing at all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from pcns_onnx.cli.terminal import bars, console, lost_output
from pcns_onnx.errors import GateError, InputError

if TYPE_CHECKING:
    from pcns_onnx.progress import Progress
    from pcns_onnx.report.schema import Report

Command = Callable[..., None]

EXIT_CODES = (
    "Exit codes: 0 done, 2 bad input or usage, 3 nothing could be shrunk, 4 gate failed, 5 int8 or fp16 failed and the "
    "float32 model is written, or a later round failed and the model of those before is written."
)


@dataclass(frozen=True)
class Console:
    """What a run may say. `quiet`: errors only, `verbose`: also what each stage took, `as_json`: records as JSON."""

    quiet: bool = False
    verbose: bool = False
    as_json: bool = False
    _done: list[str] = field(default_factory=list)

    def bars(self) -> AbstractContextManager[Progress]:
        """Progress for a run."""
        return bars(quiet=self.quiet, verbose=self.verbose)

    def say(self, text: str) -> None:
        """A line on stdout, where that is not taken by JSON."""
        if not (self.quiet or self.as_json):
            click.echo(text)

    def address(self, url: str) -> None:
        """Where a page is served: it is what was asked for, so quiet or not."""
        click.echo(f"open {url}" if not self.quiet else url)
        self.say("Ctrl-C ends it")
        sys.stdout.flush()

    def wrote(self, text: str) -> None:
        """What was written, said last; it stands where stdout cannot be written, too."""
        self._done.append(f"wrote {text}")
        self.say(self._done[-1])

    def wrote_model(self, output: str, source: str, beside: str = "") -> None:
        """A model was written, or a folder, where it came out of one."""
        from pcns_onnx.graph.model_source import ModelFolder

        folder = ModelFolder.of(source)
        self.wrote(output + ("" if folder is None else f": {folder}") + beside)

    def require_heard(self) -> None:
        """Raise `InputError` if what was said on stdout is lost, with what was done all the same."""
        lost = lost_output()
        if lost is not None:
            raise InputError("; ".join([lost, *self._done]))

    def show(self, parts: Iterable[Any], warnings: Iterable[str] = ()) -> None:
        """Tables on stdout, warnings on stderr."""
        if self.quiet:
            return
        out = console()
        for part in parts:
            out.print(part)
            out.print()
        for warning in warnings:
            click.echo(f"warning: {warning}", err=True)

    def record(self, record: object) -> None:
        """A record as JSON on stdout; it was asked for, so quiet or not."""
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(record), indent=2).decode())

    def report(self, report: Report, *, without: Collection[str] = ()) -> None:
        """The report of `shrink` or `compare`, `without` those warnings that are said elsewhere."""
        from pcns_onnx.cli.tables.healing import healing_lines
        from pcns_onnx.cli.tables.records import report_tables, stage_table
        from pcns_onnx.cli.tables.streams import stream_tables

        if self.as_json:
            self.record(report)
            return
        parts = [*stream_tables(report.streams), *report_tables(report), *healing_lines(report)]
        self.show(parts, [text for text in report.warnings if text not in without])
        if self.verbose and report.stages:
            self.show([stage_table(report)])

    @contextmanager
    def gate(self) -> Iterator[None]:
        """A gate that fails has a report to show all the same."""
        from pcns_onnx.report.schema import Report

        try:
            yield
        except GateError as error:
            if isinstance(error.report, Report):
                self.report(error.report)
            raise


def with_console(command: Command) -> Command:
    """Give a command --quiet and --verbose; it is called with the `console` that they (and --json) make."""

    @click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors (and JSON that was asked for).")
    @click.option("-v", "--verbose", is_flag=True, help="Say also what each stage took.")
    @wraps(command)
    def speaking(quiet: bool, verbose: bool, as_json: bool = False, **options: Any) -> None:
        if quiet and verbose:
            raise InputError("--quiet and --verbose contradict each other: give one of the two")
        console = Console(quiet, verbose, as_json)
        try:
            command(console=console, **options)
        except KeyboardInterrupt as interrupt:
            for note in getattr(interrupt, "__notes__", ()):
                click.echo(note, err=True)
            raise click.Abort from None  # for the interrupt itself click has a line of its own
        console.require_heard()

    return speaking
