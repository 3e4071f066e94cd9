"""Stages of a run: how long each took, and a hook to show how far it is.

The base class only keeps time (seconds per stage, in `seconds`); the CLI hands in one that
draws bars. Numeric code never prints.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Progress:
    """Silent progress: keeps the time of every stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time everything inside as stage `name`; stages of the same name add up."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def track(self, items: Iterable[T], title: str, total: int | None) -> Iterator[T]:
        """Pass items through, showing how many of `total` are done; counts as stage `title`."""
        with self.stage(title):
            yield from items
