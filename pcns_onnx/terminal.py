"""The terminal: a console for tables, and bars that show how far a run is."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from pcns_onnx.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars

T = TypeVar("T")

_WIDE = 1000
"""Columns where stdout is no terminal: nothing is folded, so that it can be searched."""


def console() -> Console:
    """A console on stdout."""
    from rich.console import Console

    # Names of layers may hold anything: nothing in them is markup.
    width = None if sys.stdout.isatty() else _WIDE
    return Console(width=width, highlight=False, markup=False, emoji=False)


class _Bars(Progress):
    """Progress that draws one bar per stage."""

    def __init__(self, bars: Bars) -> None:
        super().__init__()
        self._bars = bars

    def track(self, items: Iterable[T], title: str, total: int | None) -> Iterator[T]:
        task = self._bars.add_task(title, total=total)
        for item in super().track(items, title, total):
            yield item
            self._bars.advance(task)


@contextmanager
def bars() -> Iterator[Progress]:
    """Bars on a terminal's stderr, silence elsewhere."""
    if not sys.stderr.isatty():
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=False) as shown:
        yield _Bars(shown)
