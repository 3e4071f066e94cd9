"""The exception tree: every failure a user can cause or meet is a `PcnsError` with one clear line.

The CLI turns `exit_code` into the process's exit status; a library user catches `PcnsError`.
"""

from __future__ import annotations

from typing import ClassVar


class PcnsError(Exception):
    """Base of all errors raised on purpose; the message is one line: what, where, what to do."""

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class InputError(PcnsError):
    """The model, the data, the plan or an option cannot be used as given."""


class UnsupportedError(PcnsError):
    """The request is well formed but this method or machine cannot honour it."""


class NothingToShrinkError(PcnsError):
    """No layer could be narrowed; the message says why, layer by layer in the report."""

    exit_code: ClassVar[int] = 3


class GateError(PcnsError):
    """The shrunk model differs from the original by more than the caller allows."""

    exit_code: ClassVar[int] = 4
