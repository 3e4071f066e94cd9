"""A page of `explore` that is served, by this process or by another."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pcns_onnx.api.explore.server import PageServer
from pcns_onnx.report.explore.record import Exploration

ROOT = Path(__file__).parents[2]


@contextmanager
def served(exploration: Exploration, **choices: Any) -> Iterator[PageServer]:
    """A server in a thread: it answers as long as the block lasts."""
    import uvicorn

    server = PageServer(exploration, **choices)
    inner = uvicorn.Server(uvicorn.Config(server.app(), log_level="error", lifespan="on", ws="none"))
    thread = threading.Thread(target=inner.run, kwargs={"sockets": [server.socket]})
    thread.start()
    try:
        yield server
    finally:
        inner.should_exit = True
        thread.join()
        server.close()


@contextmanager
def command(*words: object, folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`pcns-onnx explore` as a process, and the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pcns_onnx", "explore", *map(str, words)],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        address = re.search(r"http://\S+", process.stdout.readline())
        assert address is not None, process.communicate()[1]
        yield address[0], process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate()
