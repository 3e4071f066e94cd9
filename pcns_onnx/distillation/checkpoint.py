"""Where a run stands, beside its output: written whole at every look, gone when the run is done.

An .npz without pickled objects: arrays by 'kind/initializer', and one text that says which run it is and how far it
is. Numbers are stored as they are, so that a run that is taken up again ends with the same bytes.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pcns_onnx.errors import InputError
from pcns_onnx.evaluation.healing import Look
from pcns_onnx.files import write_atomic

Arrays = dict[str, NDArray[Any]]


class Course(msgspec.Struct):
    """How far a run is: `since` is the step at which its rate was last lowered, `factor` what the rates are times.

    `start` is the loss at the start, `loss` that of the best point since, after `taken` steps (0: there is none yet).
    """

    step: int = 0
    since: int = 0
    factor: float = 1.0
    retries: int = 0
    taken: int = 0
    loss: float | None = None
    looks: list[Look] = msgspec.field(default_factory=list)
    start: float = 0.0


class _Head(msgspec.Struct, frozen=True):
    run: str
    course: Course


def checkpoint_path(output: str | os.PathLike[str] | None) -> Path | None:
    """Beside the model that will be written."""
    return None if output is None else Path(f"{os.fspath(output)}.healing")


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint of one run: `run` tells it from every other (models, samples, options)."""

    path: Path | None
    run: str

    def save(self, course: Course, parts: Mapping[str, Arrays]) -> None:
        """Write the state of a run; `parts` are arrays by kind and initializer."""
        if self.path is None:
            return
        head = msgspec.json.encode(_Head(self.run, course))
        arrays = {f"{kind}/{name}": value for kind, by_name in parts.items() for name, value in by_name.items()}
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **{"head": np.frombuffer(head, dtype=np.uint8), **arrays})
        write_atomic(self.path, content.getvalue())

    def load(self) -> tuple[Course, dict[str, Arrays]] | None:
        """The state that a killed run left, None where it left none; raises `InputError` for that of another run."""
        if self.path is None or not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            head = msgspec.json.decode(arrays.pop("head").tobytes(), type=_Head)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, msgspec.MsgspecError) as error:
            raise InputError(
                f"--resume: '{self.path}' is no checkpoint of a healing ({type(error).__name__}): remove it"
            ) from None
        if head.run != self.run:
            raise InputError(
                f"--resume: '{self.path}' is of another run (other models, samples or options): remove it, or leave "
                "out --resume"
            )
        parts = dict[str, Arrays]()
        for name, value in arrays.items():
            kind, _, own = name.partition("/")
            parts.setdefault(kind, {})[own] = value
        return head.course, parts

    def remove(self) -> None:
        """The run is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
