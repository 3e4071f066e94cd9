"""What is taken for a model: a path, a ModelProto, or the model of a library that `interop` knows."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any, Protocol

import onnx

from pcns_onnx.errors import InputError

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


ModelSource = str | os.PathLike[str] | onnx.ModelProto | ForeignGraph


def translator(library: str) -> Any:
    """The module that reads and makes the models of `library`; raises `UnsupportedError` without that library."""
    return import_module(TRANSLATORS[library])


def path_or_message(source: ModelSource) -> str | os.PathLike[str] | onnx.ModelProto:
    """`source`, as a message where it is another library's model; raises `InputError` for what is no model."""
    if isinstance(source, str | os.PathLike | onnx.ModelProto):
        return source
    for base in type(source).__mro__:
        library = base.__module__.partition(".")[0]
        if library in TRANSLATORS:
            message: onnx.ModelProto = translator(library).export_model(source)
            return message
    known = "give a path, a ModelProto or a graphsurgeon.Graph"
    raise InputError(f"a model cannot be a {type(source).__name__}: {known}")
