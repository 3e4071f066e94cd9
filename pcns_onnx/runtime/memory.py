"""--memory: what a run may take, and how it keeps to that.

What it gathers at once (`MemoryBudget`: second moments, activations between layers, windows of the refinement)
is cut down to shares of the limit; second moments that do not fit take another pass over the data, activations go
to disk. On the command line the kernel holds the limit, too (Linux: RLIMIT_DATA): it counts the memory that a process
may write to and shares with nobody, so the weights that are mapped from files and memory that is only reserved do
not count. What needs more, say a sample that claims to be huge, fails in one line.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

from pcns_onnx.errors import InputError

if sys.platform != "win32":
    import resource

LEAST = 1 << 28
"""Bytes below which the interpreter and its libraries have no room to work."""
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes of second moments gathered at once, of activations that a stream keeps in memory, of windows."""

    statistics: int = 3 << 29
    stream: int = 1 << 26
    windows: int = 1 << 27

    @classmethod
    def of(cls, limit: int | None) -> MemoryBudget:
        """The defaults, or shares of `limit` bytes where that is less."""
        whole = cls()
        if limit is None:
            return whole
        return cls(min(whole.statistics, limit // 4), min(whole.stream, limit // 16), min(whole.windows, limit // 16))


def parse_bytes(text: str | int) -> int:
    """'4GB', '512MiB' or a number of bytes; raises `InputError`."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,3})?) ?([KMGT]?I?B?)", str(text).strip().upper())
    unit = None if match is None else _UNITS.get(match[2] if match[2].endswith("B") or not match[2] else match[2] + "B")
    if match is None or unit is None:
        raise InputError(f"--memory {text} is not understood: write a size, as in 4GB or 512MB")
    size = int(float(match[1]) * unit)
    if size < LEAST:
        raise InputError(f"--memory {text} is too small: it must be at least {LEAST >> 20} MiB")
    return size


def limit_process(size: int) -> None:
    """Make the kernel refuse this process more than `size` bytes of its own; for good."""
    if sys.platform != "win32":
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))
