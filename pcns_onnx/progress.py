"""Stages of a run: how long each took, and a hook to show how far it is.

The base class only keeps time (seconds per stage, in `seconds`); the CLI hands in one that
draws bars, or one that can be asked at any time what is being done. Numeric code never prints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

EVERY_VARIABLE = "PCNS_ONNX_PROGRESS"
"""The environment's word on how often a line says how far a run is, in seconds, where there is no terminal."""
WHOLE = "total"
"""The stage that the whole run is."""


class Progress:
    """Silent progress: keeps the time of every stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.notices: list[str] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time everything inside as stage `name`; stages of the same name add up."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def say(self, text: str) -> None:
        """What is to be known before the end; kept in `notices`."""
        self.notices.append(text)

    def track(self, items: Iterable[T], title: str, total: int | None) -> Iterator[T]:
        """Pass items through, showing how many of `total` are done; counts as stage `title`."""
        with self.stage(title):
            yield from items


@dataclass
class _Current:
    """A stage that is going on: `done` of `total` items (None: nobody knows) since `start`."""

    name: str
    start: float
    done: int = 0
    total: int | None = None


class Watched(Progress):
    """Progress that knows what is being done just now, in seconds of `clock`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock, self._start = clock, clock()
        self._current: list[_Current] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time everything inside as stage `name`, which is being done meanwhile."""
        current = _Current(name, self._clock())
        self._current.append(current)
        try:
            with super().stage(name):
                yield
        finally:
            self._current = [other for other in self._current if other is not current]

    def track(self, items: Iterable[T], title: str, total: int | None) -> Iterator[T]:
        """Pass items through, counting those that are done; counts as stage `title`."""
        with self.stage(title):
            current = self._current[-1]
            current.total = total
            for item in items:
                yield item
                current.done += 1

    def now(self) -> str:
        """'3 min: re-fit, 4 of 12, about 6 min left; refine': since when, what, and what is left of it."""
        now, stages = self._clock(), [current for current in self._current if current.name != WHOLE]
        doing = "; ".join(_told(current, now) for current in stages) or "at work"
        return f"{duration_text(now - self._start)}: {doing}"


def _told(current: _Current, now: float) -> str:
    parts = [current.name]
    if current.total:
        parts.append(f"{current.done:,} of {current.total:,}")
    elif current.done:
        parts.append(f"{current.done:,} so far")
    if current.total and current.done:
        left = (now - current.start) / current.done * (current.total - current.done)
        parts.append(f"about {duration_text(left)} left")
    return ", ".join(parts)


def duration_text(seconds: float) -> str:
    """'40 s', '3 min' or '2 h 5 min'."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
