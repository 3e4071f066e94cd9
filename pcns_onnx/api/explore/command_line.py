"""The command line of what was chosen: to be shown, copied and run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcns_onnx.api.options import FIELDS, flag_of, is_taken, takes_many
from pcns_onnx.data.sources import DataSource
from pcns_onnx.graph import ModelSource
from pcns_onnx.graph.model_source import ModelFolder

_NOT_CARRIED = ("html", "command", "budget")
"""Choices that a row has of its own, or that are of the command that shows it."""


def command_line(
    model: ModelSource, data: DataSource | None, choices: Mapping[str, Any], command: str, ending: str, *words: str
) -> str:
    """The command line of a row, with all that was said that the command takes, too."""
    line = command_words(model, data, choices, command, *words)
    return shlex.join([*line, "-o", output_beside(model, ending).name])


def command_words(
    model: ModelSource, data: DataSource | None, choices: Mapping[str, Any], command: str, *words: str
) -> list[str]:
    """The same as words, up to what is written."""
    line = ["pcns-onnx", command, _named(model, "MODEL.onnx")]
    line += [] if data is None else ["--data", _named(data, "DATA")]
    line += words
    for name, value in choices.items():
        option = FIELDS[name][1]
        if name in _NOT_CARRIED or not is_taken(option, command):
            continue
        line += _option_words(flag_of(option), value, many=takes_many(option), default=option.default)
    return line


def output_beside(model: ModelSource, ending: str) -> Path:
    """Where the result goes if nobody says: beside the model, a folder for one that is a folder."""
    if isinstance(model, str | os.PathLike) and ModelFolder.of(model) is not None:
        folder = Path(model)
        return folder.parent / f"{folder.absolute().name}.{ending}"
    path = Path(_named(model, "MODEL.onnx"))
    return path.parent / f"{path.stem}.{ending}.onnx"


def _named(source: object, otherwise: str) -> str:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else otherwise


def _option_words(flag: str, value: Any, *, many: bool, default: Any) -> list[str]:
    """An option as words; none where it says what is so by itself."""
    if value is None or value == default:
        return []
    if isinstance(value, bool):
        yes, _, no = flag.partition("/")
        return [no if no and not value else yes]
    if type(value).__name__ == "Normalize":
        return [flag, *(",".join(repr(number) for number in side) for side in (value.mean, value.std))]
    if isinstance(value, Mapping):
        value = [f"{name}={text}" for name, text in value.items()]
    texts = list(value) if many and not isinstance(value, str) else [value]
    return [word for text in texts for word in (flag, _named(text, str(text)))]
