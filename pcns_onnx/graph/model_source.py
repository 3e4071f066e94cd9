"""What is taken for a model: a path, a ModelProto or its bytes, or what other libraries make.

A `graphsurgeon.Graph` is translated by `interop`; an `onnx_ir.Model` and a `torch.onnx.ONNXProgram` by themselves.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any, Protocol

import onnx
from google.protobuf.message import DecodeError

from pcns_onnx.errors import InputError, first_line

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
        return source
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
