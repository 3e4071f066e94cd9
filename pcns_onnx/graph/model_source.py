"""What is taken for a model: a path, a folder that holds one, a ModelProto or its bytes, or what other libraries make.

A `graphsurgeon.Graph` is translated by `interop`; an `onnx_ir.Model` and a `torch.onnx.ONNXProgram` by themselves.

A folder is what optimum, sentence-transformers and others keep: a tokenizer, configurations and small modules lie
beside `model.onnx`, or above `onnx/model.onnx`. What loads such a folder wants all of it, so a folder goes in and a
folder comes out: the new model lies in the same place, and what lies around it goes along. What holds the weights of
the model that was there does not: other ONNX files, and whatever other libraries call their weights at the top.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import onnx
from google.protobuf.message import DecodeError

from pcns_onnx.errors import InputError, first_line
from pcns_onnx.files import write_atomic

TRANSLATORS = {"onnx_graphsurgeon": "pcns_onnx.interop.graphsurgeon"}
"""Modules with `import_model` and `export_model` for another library's models, by that library's name.

Names, imported when such a model comes: `interop` stands above the graph and may import it, never the other way
round; and nobody who has no such model needs the library.
"""


class ForeignGraph(Protocol):
    """A `graphsurgeon.Graph`, as type checkers see it: graphsurgeon has no types of its own."""

    nodes: Any
    inputs: Any
    outputs: Any
    opset: Any


class ExportedProgram(Protocol):
    """A `torch.onnx.ONNXProgram`, as far as it is used."""

    @property
    def model_proto(self) -> onnx.ModelProto:
        """The model as one message."""


class IrModel(Protocol):
    """An `onnx_ir.Model`, as far as it is used."""

    @property
    def graph(self) -> Any:
        """Its main graph."""

    @property
    def opset_imports(self) -> Any:
        """Versions by domain."""


ModelSource = str | os.PathLike[str] | bytes | onnx.ModelProto | ForeignGraph | ExportedProgram | IrModel


def translator(library: str) -> Any:
    """The module that reads and makes the models of `library`; raises `UnsupportedError` without that library."""
    return import_module(TRANSLATORS[library])


def path_or_message(source: ModelSource) -> str | os.PathLike[str] | onnx.ModelProto:
    """`source`, as a message where it is another library's model; raises `InputError` for what is no model."""
    if isinstance(source, str | os.PathLike | onnx.ModelProto):
        folder = ModelFolder.of(source)
        return source if folder is None else folder.model
    if isinstance(source, bytes | bytearray | memoryview):
        return _parsed(bytes(source))
    foreign = _serialized(source)
    if foreign is not None:
        return foreign
    for base in type(source).__mro__:
        library = base.__module__.partition(".")[0]
        if library in TRANSLATORS:
            message: onnx.ModelProto = translator(library).export_model(source)
            return message
    known = "give a path, a ModelProto or its bytes, an onnx_ir.Model, an ONNXProgram or a graphsurgeon.Graph"
    raise InputError(f"a model cannot be a {type(source).__name__}: {known}")


def _parsed(content: bytes) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(content)
    except DecodeError:
        raise InputError("the given bytes are no ONNX model: give the content of a .onnx file") from None


def _serialized(source: object) -> onnx.ModelProto | None:
    """The message of a model that can write itself; None for all else."""
    library = type(source).__module__.partition(".")[0]
    try:
        if hasattr(source, "model_proto"):
            message = source.model_proto
        elif library == "onnx_ir" and hasattr(source, "graph"):
            message = sys.modules[library].to_proto(source)  # it is there, since it made the model
        else:
            return None
    except Exception as error:  # libraries raise anything, and above 2 GB they do
        raise InputError(
            f"the given {type(source).__name__} cannot be written as one message ({first_line(error)}): save it, and "
            "give the path"
        ) from None
    return message if isinstance(message, onnx.ModelProto) else None


# -- folders ----------------------------------------------------------------------------------

_PLACES = ("model.onnx", "onnx/model.onnx")
"""Where the model lies by custom; else it is the only one."""
_SUFFIX = ".onnx"
_WEIGHTS = (".bin", ".safetensors", ".h5", ".msgpack", ".ot", ".pt", ".pth", ".ckpt")
"""Weights of the same model for other libraries, where they lie at the top of the folder."""
_LISTED = 6
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Place:
    """Where a new model is to be written, and the files beside the old one that are not true of it."""

    target: Path
    untrue: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class ModelFolder:
    """A folder, and the model in it."""

    root: Path
    model: Path

    @classmethod
    def of(cls, source: object) -> ModelFolder | None:
        """The model of a folder; None if `source` is no folder. Raises `InputError` if it holds none, or several."""
        if not isinstance(source, str | os.PathLike) or not Path(source).is_dir():
            return None
        root = Path(source)
        by_custom = [root / place for place in _PLACES if (root / place).is_file()]
        models = sorted(path for path in root.rglob(f"*{_SUFFIX}") if path.is_file())
        if by_custom or len(models) == 1:
            return cls(root, (by_custom or models)[0])
        if not models:
            raise InputError(f"the folder {root} holds no {_SUFFIX} file: name the model")
        names = ", ".join(str(path.relative_to(root)) for path in models[:_LISTED])
        raise InputError(f"the folder {root} holds {len(models)} models: name one of them ({names})")

    def target(self, output: str | os.PathLike[str]) -> Path:
        """Where the new model lies in the folder `output`; raises `InputError` for what cannot be that folder."""
        folder = Path(output)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file, and {self.root} is a folder: name a folder for the result")
        if folder.suffix == _SUFFIX:
            raise InputError(f"{self.root} is a folder: name a folder for the result, and not {folder}")
        inner, outer = folder.resolve(), self.root.resolve()
        if inner == outer or outer in inner.parents or inner in outer.parents:
            raise InputError(f"{folder} and {self.root} lie in each other: name another folder for the result")
        taken = [path for path in self._around() if (folder / path).is_dir() or (folder / path.parent).is_file()]
        if taken:
            raise InputError(f"{folder / taken[0]} is in the way of a file that goes along: name another folder")
        return folder / self.model.relative_to(self.root)

    @property
    def left_out(self) -> list[Path]:
        """Files, relative to the folder, that hold weights of the original beside the model, and do not go along."""
        return [path for path in self._around() if _is_weights(path)]

    def __str__(self) -> str:
        """What goes along with the model, and what does not."""
        left_out = self.left_out
        more = f" and {len(left_out) - _LISTED} more" if len(left_out) > _LISTED else ""
        names = f" (not: {', '.join(map(str, left_out[:_LISTED]))}{more})" if left_out else ""
        return f"the model and what lay around it{names}"

    @contextmanager
    def brought_along(self, output: str | os.PathLike[str]) -> Iterator[Place]:
        """Where to write the new model. Once that is done, what lies around the old one is copied.

        A new folder is gone again where nothing was written into it.
        """
        target, folder = self.target(output), Path(output)
        place, is_new, before = Place(target), not folder.exists(), _marks(folder)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {folder}: {error.strerror or error}") from None
        try:
            yield place
        except BaseException:
            if is_new and not _marks(folder):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        written = {path for path, mark in _marks(folder).items() if before.get(path) != mark}
        untrue = {(self.model.parent / name).relative_to(self.root) for name in place.untrue}
        for path in self._around():
            if path not in written | untrue and not _is_weights(path):
                _copy(self.root / path, folder / path)

    def _around(self) -> list[Path]:
        return [path for path in _marks(self.root) if path != self.model.relative_to(self.root)]


def _is_weights(path: Path) -> bool:
    return _SUFFIX in path.name or (len(path.parts) == 1 and path.suffix in _WEIGHTS)


def _marks(folder: Path) -> dict[Path, tuple[int, int]]:
    """The files of a folder that are not hidden, by relative path, and what changes when one is written anew."""
    marks = dict[Path, tuple[int, int]]()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            stat = path.stat()
            marks[relative] = (stat.st_ino, stat.st_mtime_ns)
    return marks


def _copy(path: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "rb") as file:
            write_atomic(target, iter(lambda: file.read(_BLOCK), b""))
    except OSError as error:
        raise InputError(f"cannot copy {path} to {target}: {error.strerror or error}") from None
