"""One run at a time of a command that a page shows, in a process of its own.

The child is this interpreter with the words of the command, so that what runs is what the page shows. It is told by
`PCNS_ONNX_PROGRESS` to say every second how far it is. To cancel it is to interrupt it, as Ctrl-C does: it leaves
nothing half done. One that does not end by that is killed.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Literal

from pcns_onnx.errors import InputError
from pcns_onnx.progress import EVERY_VARIABLE

State = Literal["idle", "running", "done", "failed", "cancelled"]

_LINES, _LONGEST = 400, 2000
"""Lines of a run that are kept, and letters of each."""
_PATIENCE = 10.0
"""Seconds that a run has to end by itself."""
_PREFIX = "pcns-onnx: "


@dataclass
class _Run:
    """A child process, what it has said, and whether it was cancelled."""

    point: int
    path: str
    command: str
    process: subprocess.Popen[str]
    start: float
    end: float | None = None
    cancelled: bool = False
    messages: deque[str] = field(default_factory=lambda: deque(maxlen=_LINES))
    results: deque[str] = field(default_factory=lambda: deque(maxlen=_LINES))


class Job:
    """The run of a page, if there is one; methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._run: _Run | None = None
        self.threads: list[threading.Thread] = []

    def start(self, line: str, point: int, path: str) -> None:
        """Run this command line, of a point and to a path; raises `InputError` where one runs, or this cannot start."""
        with self._lock:
            if self._run is not None and self._run.end is None:
                raise InputError("a run is going on: wait for it or cancel it")
            command = [sys.executable, "-P", "-m", "pcns_onnx", *shlex.split(line)[1:]]
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    text=True, encoding="utf-8", errors="replace", start_new_session=True,
                    env={**os.environ, EVERY_VARIABLE: "1"},
                )  # fmt: skip
            except (OSError, ValueError) as error:
                raise InputError(f"the run cannot be started: {error}") from None
            self._run = run = _Run(point, path, line, process, time.monotonic())
        readers = [threading.Thread(target=_read, args=pair, daemon=True) for pair in _streams(run)]
        self.threads = [*readers, threading.Thread(target=self._wait, args=(run, readers), daemon=True)]
        for thread in self.threads:
            thread.start()

    def cancel(self) -> None:
        """Interrupt the run, if there is one; kill it where that does not help."""
        with self._lock:
            run = self._run
            if run is None or run.end is not None:
                return
            run.cancelled = True
            run.process.send_signal(signal.SIGINT)
        killer = threading.Timer(_PATIENCE, run.process.kill)
        killer.daemon = True
        killer.start()

    def close(self) -> None:
        """Cancel the run and wait until it is gone."""
        self.cancel()
        for thread in self.threads:
            thread.join()

    def described(self) -> dict[str, Any]:
        """How it is, for the page."""
        with self._lock:
            run = self._run
            if run is None:
                return {"state": "idle"}
            code = None if run.end is None else run.process.returncode
            return {
                "state": _state(run, code),
                "point": run.point,
                "path": run.path,
                "command": run.command,
                "latest": run.messages[-1] if run.messages else "",
                "output": "\n".join(run.results),
                "seconds": (run.end or time.monotonic()) - run.start,
                "code": code,
            }

    def _wait(self, run: _Run, readers: Sequence[threading.Thread]) -> None:
        for reader in readers:
            reader.join()
        run.process.wait()
        with self._lock:
            run.end = time.monotonic()


def _state(run: _Run, code: int | None) -> State:
    if code is None:
        return "running"
    if code == 0:
        return "done"
    return "cancelled" if run.cancelled else "failed"


def _streams(run: _Run) -> list[tuple[IO[str], deque[str]]]:
    assert run.process.stdout is not None and run.process.stderr is not None, "both are pipes"
    return [(run.process.stdout, run.results), (run.process.stderr, run.messages)]


def _read(stream: IO[str], lines: deque[str]) -> None:
    with stream:
        for line in stream:
            lines.append(line.rstrip()[:_LONGEST].removeprefix(_PREFIX))
