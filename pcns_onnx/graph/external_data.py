"""External data: contents of tensors in files beside the model, mapped and never loaded whole.

Where a tensor lies is said by a path relative to the model's folder. A stranger may have
written it, so it must not lead out of that folder, be it as an absolute path, by `..` or
through a link; and offset and length must fit the tensor and the file. Where the model's own path is a link,
the folder that it leads to will do, too, as it does for onnxruntime.

`OUT.onnx` is written with one data file, `OUT.onnx.<hash of the contents>.data`, which is there
before the model is. An older model of that name never points into the new file, and its own
goes only when it has been replaced.

onnx-ir 1.1.0 has external tensors too. They keep a file open for each tensor, so that a model of
1,100 cannot be read where 1,024 files may be open; a length that is not the tensor's is taken, a pipe
waited on for ever; what is written is not synced, and put in place before the model is. All checks
here would stay, and SymPy (85 MB, a third of a second) would come.
"""

from __future__ import annotations

import glob
import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import Message
from numpy.typing import NDArray
from onnx import TensorProto, helper

from pcns_onnx.errors import InputError, first_line
from pcns_onnx.files import staged, write_atomic
from pcns_onnx.graph.initializers import is_large, is_left_out, leave_out, put_back, raw, take_out
from pcns_onnx.graph.protobuf import Array, copy_of, encode, parse

_BITS: dict[int, int] = {
    TensorProto.DataType.Value(name): bits
    for bits, names in ((2, ("UINT2", "INT2")), (4, ("UINT4", "INT4", "FLOAT4E2M1")), (6, ("FLOAT6E2M3", "FLOAT6E3M2")))
    for name in names
    if name in set(TensorProto.DataType.keys())  # older releases of onnx have fewer
}
"""Bits per element of the types that are packed; NumPy's have a byte."""

_PAGE = 4096
"""Contents are written at multiples of it, so that a runtime can map each."""

Files = dict[Path, NDArray[np.uint8]]


# -- reading ---------------------------------------------------------------------------------


def read_model(path: Path) -> tuple[onnx.ModelProto, dict[str, Array], frozenset[Path]]:
    """A model, the contents of large initializers that it leaves out, and the files that it came with."""
    model, weights, files = parse(path), dict[str, Array](), Files()
    for tensor in filter(is_left_out, model.graph.initializer):
        content = _content(path, tensor, files)
        if is_large(tensor):
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            weights[tensor.name] = content.view(dtype).reshape(tuple(tensor.dims))
            leave_out(tensor)
        else:
            put_back(tensor, content.tobytes())
    for tensor in filter(is_left_out, _other_tensors(model)):
        put_back(tensor, _content(path, tensor, files).tobytes())
    return model, weights | take_out(model.graph.initializer), frozenset(files)


def refuse_external(model: onnx.ModelProto) -> None:
    """Raise `InputError` if a model in memory needs files: nobody knows in which folder."""
    for tensor in filter(is_left_out, chain(model.graph.initializer, _other_tensors(model))):
        raise InputError(
            f"the given ModelProto leaves the data of '{tensor.name}' in a file: give the model's path instead"
        )


def _other_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """All tensors but the main graph's initializers: in attributes, subgraphs and functions."""
    for part in (*model.graph.node, *model.graph.sparse_initializer, *model.functions, *model.training_info):
        yield from _tensors_in(part)


def _tensors_in(message: Message) -> Iterator[TensorProto]:
    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                yield from _tensors_in(part)


def _content(model: Path, tensor: TensorProto, files: Files) -> NDArray[np.uint8]:
    """The raw content of a tensor, mapped; raises `InputError`."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        file = _inside(model, entries.get("location", ""))
        if file not in files:
            empty = np.empty(0, dtype=np.uint8)
            files[file] = np.asarray(np.memmap(file, dtype=np.uint8, mode="r")) if file.stat().st_size else empty
        expected = _content_size(tensor)
        start, length = _number(entries, "offset", 0), _number(entries, "length", expected)
        if length != expected:
            raise ValueError(f"tensor '{tensor.name}' takes {expected} bytes but its length is {length}")
        if start + length > len(files[file]):
            raise ValueError(
                f"tensor '{tensor.name}' ends at byte {start + length} of '{file.name}', which has {len(files[file])}"
            )
        return files[file][start : start + length]
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"cannot read the external data of '{model}': {first_line(error)}") from None


def _inside(model: Path, location: str) -> Path:
    file = (model.parent / location).resolve()
    folders = (model.parent.resolve(), model.resolve().parent)
    outside = Path(location).is_absolute() or ".." in Path(location).parts
    outside = outside or not any(file.is_relative_to(folder) for folder in folders)
    if not location or outside:
        raise ValueError(f"'{location}' leads out of the model's folder")
    if not file.is_file():
        raise ValueError(f"there is no file '{location}'")
    return file


def _content_size(tensor: TensorProto) -> int:
    kind, dims = tensor.data_type, tuple(tensor.dims)
    if kind in (TensorProto.UNDEFINED, TensorProto.STRING) or kind not in TensorProto.DataType.values():
        raise ValueError(f"tensor '{tensor.name}' is of a type that has no raw data")
    if any(size < 0 for size in dims):
        raise ValueError(f"tensor '{tensor.name}' has the shape {dims}")
    bits = _BITS.get(kind) or 8 * helper.tensor_dtype_to_np_dtype(kind).itemsize
    return -(-math.prod(dims) * bits // 8)


def _number(entries: Mapping[str, str], key: str, default: int) -> int:
    text = entries.get(key, str(default))
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise ValueError(f"{key} '{text[:30]}' is not understood")
    return int(text)


# -- writing ---------------------------------------------------------------------------------


def save_with_data(target: Path, model: onnx.ModelProto, weights: Mapping[str, Array], files: frozenset[Path]) -> Path:
    """Write a model and the contents that it leaves out, neither into one of `files`; where the contents are.

    The new file is as private as the model that is written over.
    """
    located, contents, end = copy_of(model), list[memoryview | bytes](), 0
    digest = hashlib.sha256()
    placeholders = [tensor for tensor in located.graph.initializer if tensor.name in weights]
    for tensor in placeholders:
        content = raw(weights[tensor.name])
        digest.update(content)
        contents += [bytes(-end % _PAGE), content]
        end += -end % _PAGE
        tensor.external_data.add(key="offset", value=str(end))
        tensor.external_data.add(key="length", value=str(len(content)))
        end += len(content)
    data = target.with_name(f"{target.name}.{digest.hexdigest()[:8]}.data")
    for tensor in placeholders:
        tensor.external_data[0].value = data.name
    encoded = encode(located)
    refuse_source(data, files)
    new = set() if os.path.exists(data) else {data.name}
    with (
        staged(data, contents, like=target) as place_data,
        staged(target, encoded) as place_model,
        replacing(target, new, files),
    ):  # both are on the disk: from here on it takes an instant
        place_data()
        place_model()
    return data


def link_beside(path: Path, target: Path, data: Path) -> None:
    """Where the link `path` leads to `target` in another folder, runtimes look for `data` here: put a link to it here.

    Those that lead nowhere any more go.
    """
    if path.parent.resolve() == target.parent.resolve():
        return
    with suppress(OSError):  # the model is there; a link that is, too, leads to the same contents
        for old in path.parent.glob(f"{glob.escape(target.name)}.*.data"):
            if _pattern(target).fullmatch(old.name) and old.is_symlink() and not old.exists():
                old.unlink()
        os.symlink(os.path.relpath(data.resolve(), path.parent.resolve()), path.with_name(data.name))


@contextmanager
def replacing(target: Path, new: AbstractSet[str], files: frozenset[Path]) -> Iterator[None]:
    """Put a model at `target` inside; then data files go that it does not point to: old ones, or `new` if it failed.

    None of `files` goes. What has to go is noted down first, for the case that this run is killed: see `tidy`.
    """
    old = {path.name for path in data_files_of(target) if path.resolve() not in files}
    if old | new:
        write_atomic(_notes(target), "\n".join(sorted(old | new)).encode())
    try:
        yield
    finally:
        tidy(target)


def tidy(target: Path) -> None:
    """Remove what was noted down of data files, unless the model at `target` points to it."""
    try:
        noted = set(_notes(target).read_text().split("\n"))
    except (OSError, UnicodeDecodeError):
        return
    left = noted - {path.name for path in data_files_of(target)}
    for name in filter(_pattern(target).fullmatch, left):
        with suppress(OSError):  # the model is there; what is left over does no harm
            target.with_name(name).unlink()
    _notes(target).unlink(missing_ok=True)


def _notes(target: Path) -> Path:
    return target.with_name(f".{target.name}.todo")


def _pattern(target: Path) -> re.Pattern[str]:
    return re.compile(re.escape(target.name) + r"\.[0-9a-f]{8}\.data")


def refuse_source(target: Path, files: frozenset[Path]) -> None:
    """Raise `InputError` if `target` is one of the files that contents are mapped from."""
    if os.path.exists(target) and any(os.path.exists(file) and os.path.samefile(target, file) for file in files):
        raise InputError(f"cannot write '{target}': it holds the data of the model that was read")


def data_files_of(target: Path) -> set[Path]:
    """The data files, written by `save_with_data`, that the model which is now at `target` points to."""
    candidates = target.parent.glob(f"{glob.escape(target.name)}.*.data")
    ours = {file.name for file in candidates if _pattern(target).fullmatch(file.name)}
    try:
        replaced = parse(target) if ours else onnx.ModelProto()
    except InputError:
        return set()
    entries = (entry for tensor in replaced.graph.initializer for entry in tensor.external_data)
    return {target.with_name(entry.value) for entry in entries if entry.key == "location" and entry.value in ours}
