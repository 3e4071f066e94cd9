"""The latency table: measured values on disk, one file for each key and machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import platformdirs

from pcns_onnx.cost.profiler import T
from pcns_onnx.errors import InputError
from pcns_onnx.files import write_atomic
from pcns_onnx.numerics.arrays import processor
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.targets.registry import ONNXRUNTIME
from pcns_onnx.runtime.targets.timer import target_of, timed_in, timed_on, timed_threads, version_of


class Table:
    """Measured values on disk, one file for each key and machine; a damaged file counts as missing.

    A machine is a processor, a runtime (its provider), its version and a number of threads.
    """

    def __init__(self, engine: Engine, folder: Path | None = None) -> None:
        """`folder` None: the user's cache, where the system keeps such or XDG_CACHE_HOME says."""
        self._folder = folder or platformdirs.user_cache_path("pcns-onnx", appauthor=False)
        threads = timed_threads(engine) or os.cpu_count()
        runtime = timed_in(engine)
        if target_of(engine) is ONNXRUNTIME:
            runtime = f"{runtime} {version_of(ONNXRUNTIME)}"
        self._machine = f"{processor(timed_on(engine))}; {runtime}; {threads} threads"

    def look_up(self, key: str, kind: type[T], measure: Callable[[], T]) -> T:
        """The value of `key`; measured, and kept if the folder can be written, where it is not there yet."""
        whole = f"{self._machine}; {key}"
        path = self._folder / f"{hashlib.sha256(whole.encode()).hexdigest()[:32]}.json"
        try:
            entry = msgspec.json.decode(path.read_bytes(), type=_Entry)
            if entry.key == whole:
                return msgspec.json.decode(entry.value, type=kind)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            pass
        value = measure()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, msgspec.json.encode(_Entry(whole, msgspec.Raw(msgspec.json.encode(value)))))
        except (OSError, InputError):  # the next run measures again
            pass
        return value


class _Entry(msgspec.Struct):
    key: str
    value: msgspec.Raw
