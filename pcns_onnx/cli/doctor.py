"""`doctor`: versions, providers, GPU, threads, what is missing and how to install it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from pcns_onnx.cli.console import EXIT_CODES, Console, with_console
from pcns_onnx.cli.options import as_json
from pcns_onnx.errors import UnsupportedError

if TYPE_CHECKING:
    from pcns_onnx.api.doctor import Checkup


@click.command(epilog=EXIT_CODES)
@as_json
@with_console
def doctor(console: Console) -> None:
    """Say what is here to run with, and what is missing. Exit code 2 where it cannot run at all."""
    from pcns_onnx.api.doctor import examine

    checkup = examine()
    if console.as_json:
        console.record(checkup)
    else:
        console.show(_tables(checkup), checkup.problems)
    if not checkup.can_run:
        raise UnsupportedError(checkup.problems[0])


def _tables(checkup: Checkup) -> Iterator[Any]:
    from rich.table import Table

    from pcns_onnx.cli.tables.records import plain_table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column("what")
    table.add_column("is", overflow="fold")
    table.add_row("Python", f"{checkup.python} on {checkup.system}")
    for name, version in checkup.versions.items():
        table.add_row(name, version or "missing")
    table.add_row("providers", ", ".join(checkup.providers) or "none")
    table.add_row("GPU", checkup.gpu or f"none: {checkup.no_gpu}")
    table.add_row("processor", f"{checkup.processor}, {checkup.cpus} cores, {checkup.usable_cpus} for this process")
    for name, threads in checkup.pools.items():
        table.add_row(f"threads of {name}", str(threads))
    for name, value in checkup.environment.items():
        table.add_row(name, value)
    yield table
    extras = plain_table("extra", "libraries", "to install")
    for extra in checkup.extras:
        libraries = ", ".join(f"{name} {version or '(missing)'}" for name, version in extra.libraries.items())
        extras.add_row(extra.name, libraries, "" if all(extra.libraries.values()) else extra.install)
    yield extras
