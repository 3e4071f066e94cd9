"""What a run of the command line leaves behind."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ran:
    """What one run left behind."""

    code: int
    out: str
    err: str
