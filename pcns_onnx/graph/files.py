"""Model files in and out: every failure one line."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError

from pcns_onnx.errors import InputError


def parse(path: Path) -> onnx.ModelProto:
    """Parse a model without its external data; raises `InputError`."""
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except FileNotFoundError:
        raise InputError(f"no such model file: '{path}'") from None
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror or error}") from None
    except (DecodeError, ValueError):
        raise InputError(f"'{path}' is not an ONNX model, or is truncated: cannot parse it as protobuf") from None
    if not proto.graph.node or not proto.ir_version:
        raise InputError(f"'{path}' is not an ONNX model: it holds no graph")
    return proto


def encode(model: onnx.ModelProto) -> bytes:
    """A model as bytes, the same for equal content; raises `InputError` above 2 GB."""
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise InputError(f"the model cannot be written as one protobuf: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """The first line of an error's message, its type's name if it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
