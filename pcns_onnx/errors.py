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
    """No layer could be narrowed; `reasons` holds (layer, why) for each."""

    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, reasons: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.reasons = reasons


class GateError(PcnsError):
    """The models differ by more than the caller allows; `report` has the figures."""

    exit_code: ClassVar[int] = 4

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(message)
        self.report = report


class PrecisionError(PcnsError):
    """A precision that was asked for could not be made; the float32 model is written. Raised by the command alone."""

    exit_code: ClassVar[int] = 5


class RoundError(PcnsError):
    """A later one of several rounds failed; the model of the rounds before is written. Raised by the command alone."""

    exit_code: ClassVar[int] = 5


def first_line(error: Exception) -> str:
    """The first line of an error's message, its type's name if it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
