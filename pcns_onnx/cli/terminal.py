"""The terminal: a console for tables, and how far a run is.

On a terminal one bar per stage with its rate and the time that is left. Elsewhere nothing, or with
`verbose` a line for every stage that is done.
"""

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


class _Lines(Progress):
    """Progress that says on stderr what was done, and how fast."""

    def track(self, items: Iterable[T], title: str, total: int | None) -> Iterator[T]:
        count, before = 0, self.seconds.get(title, 0.0)
        for item in super().track(items, title, total):
            yield item
            count += 1
        spent = self.seconds[title] - before
        print(f"{title}: {count} in {spent:.2f} s{rate_of(count, spent)}", file=sys.stderr, flush=True)


def rate_of(count: float, seconds: float) -> str:
    """', 12.3/s', or nothing where that cannot be told yet."""
    return f", {count / seconds:.3g}/s" if count and seconds > 0 else ""


@contextmanager
def bars(*, quiet: bool = False, verbose: bool = False) -> Iterator[Progress]:
    """Bars on a terminal's stderr, silence elsewhere; `quiet` keeps silent there too."""
    if quiet or not sys.stderr.isatty():
        yield _Lines() if verbose else Progress()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(rate_of(task.completed, task.elapsed or 0.0).lstrip(", "))

    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), Rate(),
               TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    with RichProgress(*columns, console=Console(stderr=True), transient=False) as shown:
        yield _Bars(shown)
