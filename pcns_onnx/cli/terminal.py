"""The terminal: a console for tables, how far a run is, and where stdout and stderr lead.

On a terminal one bar per stage with its rate and the time that is left. Elsewhere a line a minute, or with
`verbose` a line for every stage that is done, too.
"""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from pcns_onnx.progress import EVERY_VARIABLE, Progress, Watched

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars

T = TypeVar("T")

_WIDE = 1000
"""Columns where stdout is no terminal: nothing is folded, so that it can be searched."""

MINUTE = 60.0
"""Seconds between two lines that say how far a run is, if the environment does not say so."""


def console() -> Console:
    """A console on stdout."""
    from rich.console import Console

    # Names of layers may hold anything: nothing in them is markup.
    width = None if sys.stdout.isatty() else _WIDE
    return Console(width=width, highlight=False, markup=False, emoji=False)


class Outlet(io.FileIO):
    """What stdout or stderr leads to: if that fails, what follows goes nowhere, and the run goes on.

    `failure` says why, and is None where only nobody reads any more (`head -1`): whoever left has seen enough.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, or drop what nobody takes; waits for a reader that is slow."""
        try:
            while (count := super().write(data)) is None:
                select.select([], [self], [])
            return count
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self.failure = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


def open_outlets() -> None:
    """Make stdout and stderr such that writing to them never fails."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name in ("stdout", "stderr"):
        setattr(sys, name, _outlet(getattr(sys, name)))


def _outlet(stream: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    raw = getattr(
        getattr(stream, "buffer", None), "raw", getattr(stream, "buffer", None)
    )  # PYTHONUNBUFFERED has no raw
    if not isinstance(stream, io.TextIOWrapper) or type(raw) is not io.FileIO:
        return stream  # a console of Windows, or somebody's own
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(Outlet(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace" if stream.errors == "strict" else stream.errors,  # names of layers may hold anything
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def lost_output() -> str | None:
    """Why some of what was said on stdout is lost, None if all of it is out."""
    sys.stdout.flush()
    outlet = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    failure = outlet.failure if isinstance(outlet, Outlet) else None
    return None if failure is None else f"cannot write to stdout: {failure.strerror or failure}"


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, Ctrl-C is a KeyboardInterrupt, where outside it ends the process at once (`__main__`)."""
    outside = signal.getsignal(signal.SIGINT)
    if outside in (signal.default_int_handler, signal.SIG_IGN, signal.SIG_DFL, None):
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, outside)


class _Interruptible(Progress):
    """Progress whose stages end by Ctrl-C as by an error."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with interruptible(), super().stage(name):
            yield


class _Bars(_Interruptible):
    """Progress that draws one bar per stage."""

    def __init__(self, bars: Bars) -> None:
        super().__init__()
        self._bars = bars

    def say(self, text: str) -> None:
        super().say(text)
        self._bars.console.print(f"pcns-onnx: {text}", markup=False, highlight=False, emoji=False)

    def track(self, items: Iterable[T], title: str, total: int | None) -> Iterator[T]:
        task = self._bars.add_task(title, total=total)
        for item in super().track(items, title, total):
            yield item
            self._bars.advance(task)


class _Minutes(_Interruptible, Watched):
    """Progress that is told once a minute (`told`), with what there is to be known by then."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[str] = []

    def say(self, text: str) -> None:
        self._waiting.append(text)

    def news(self) -> Iterator[str]:
        """What is to be told now."""
        while self._waiting:
            self.notices.append(self._waiting.pop(0))
            yield self.notices[-1]
        yield self.now()


class _Lines(_Minutes):
    """The same, and what was done, and how fast."""

    def track(self, items: Iterable[T], title: str, total: int | None) -> Iterator[T]:
        count, before = 0, self.seconds.get(title, 0.0)
        for item in super().track(items, title, total):
            yield item
            count += 1
        spent = self.seconds[title] - before
        print(f"{title}: {count} in {spent:.2f} s{rate_of(count, spent)}", file=sys.stderr, flush=True)


@contextmanager
def told(progress: _Minutes, wait: Callable[[float], bool] | None = None) -> Iterator[None]:
    """Inside, a line a minute on stderr says what is being done, however long a single step takes.

    `wait` waits for so many seconds, or until it is over, which it then says.
    """
    over = threading.Event()
    pause = over.wait if wait is None else wait

    def tell() -> None:
        while not pause(_pause()):
            for line in progress.news():
                print(f"pcns-onnx: {line}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _pause() -> float:
    """Seconds until the next line."""
    try:
        seconds = float(os.environ.get(EVERY_VARIABLE, MINUTE))
    except ValueError:
        return MINUTE
    return seconds if 0.1 <= seconds <= threading.TIMEOUT_MAX else MINUTE


def rate_of(count: float, seconds: float) -> str:
    """', 12.3/s', or nothing where that cannot be told yet."""
    return f", {count / seconds:.3g}/s" if count and seconds > 0 else ""


@contextmanager
def bars(*, quiet: bool = False, verbose: bool = False) -> Iterator[Progress]:
    """Bars on a terminal's stderr, a line a minute elsewhere; `quiet` keeps silent."""
    if quiet:
        yield _Interruptible()
        return
    if not sys.stderr.isatty():
        lines = _Lines() if verbose else _Minutes()
        with told(lines):
            yield lines
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
