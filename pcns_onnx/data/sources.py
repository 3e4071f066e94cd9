"""Where data comes from: every source a user may name, as a replayable sequence of `Part`s.

| source | parts |
|---|---|
| `.npz` | one, with a column per array |
| `.npy`, array | one, for a model with one input |
| `.parquet`, `.arrow` | one, with a column per input (`tables`) |
| `.txt` | one, a text per line, tokenised (`text`) |
| folder | one per file in sorted order; or one in all, if its `.npy` files are named after the inputs |
| folder of images, or of folders of them | one (`images`) |
| mapping of arrays | one |
| `module:function`, callable | one per feed it yields; called again in each pass |
| iterable of feeds | one per feed; an iterator is kept in a temporary folder as it is read |
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from pcns_onnx.data import tables
from pcns_onnx.data.columns import (
    LABELS,
    Array,
    Column,
    Part,
    array_column,
    npy_column,
    npz_column,
    npz_names,
    reading,
    refusing,
)
from pcns_onnx.data.images import image_folder
from pcns_onnx.data.preprocess import Preprocess
from pcns_onnx.data.references import resolve_here
from pcns_onnx.data.text import text_file
from pcns_onnx.errors import InputError
from pcns_onnx.files import Scratch
from pcns_onnx.graph import TensorSpec

Feed: TypeAlias = Mapping[str, Array]
DataSource: TypeAlias = str | os.PathLike[str] | Array | Feed | Iterable[Feed] | Callable[[], Iterable[Feed]]


@dataclass(frozen=True)
class Source:
    """Parts to be read any number of times; `counted` if listing them reads no samples (files and arrays)."""

    parts: Callable[[], Iterator[Part]]
    counted: bool


def find_source(source: DataSource, specs: Sequence[TensorSpec], preprocess: Preprocess | None = None) -> Source:
    """The parts of `source` for a model with these inputs; raises InputError if there are none.

    `preprocess` says how images and texts become arrays.
    """
    inputs = [spec.name for spec in specs]
    if isinstance(source, str | os.PathLike):
        return _named(os.fspath(source), specs, preprocess or Preprocess())
    if preprocess is not None:
        raise InputError("--preprocess is for files of images, tables and texts: give their path")
    if isinstance(source, np.ndarray):
        return _listed([_feed_part({_only(inputs, "data"): source}, inputs, "data")])
    if isinstance(source, Mapping):
        return _listed([_feed_part(source, inputs, "data")])
    if isinstance(source, Iterator):
        return Source(_Spool(source, inputs).parts, counted=False)
    if isinstance(source, Iterable):
        return Source(partial(_feed_parts, source.__iter__, inputs, "data"), counted=False)
    if callable(source):
        return Source(partial(_feed_parts, source, inputs, f"`{_title(source)}`"), counted=False)
    raise InputError(f"data cannot be a {type(source).__name__}: give a path, an array, a mapping or feeds")


def _listed(parts: list[Part]) -> Source:
    return Source(lambda: iter(parts), counted=True)


def _named(name: str, specs: Sequence[TensorSpec], preprocess: Preprocess) -> Source:
    path, inputs = Path(name), [spec.name for spec in specs]
    with reading(name):
        exists, is_folder = path.exists(), path.is_dir()
    if exists:
        parts = _folder_parts(path, specs, preprocess) if is_folder else [_file_part(path, specs, preprocess)]
        return _listed(parts)
    if re.fullmatch(r"[\w.]+:[\w.]+", name):
        return Source(partial(_feed_parts, _imported(name), inputs, f"`{name}`"), counted=False)
    raise InputError(f"{name} does not exist: give a file ({KINDS}), a folder, or module:function")


# --- files


Opener: TypeAlias = Callable[[Path, Sequence[TensorSpec], Preprocess], Part]
"""From a file, the model's inputs and how images and texts become arrays, to its samples."""


def _array_file(path: Path, specs: Sequence[TensorSpec], preprocess: Preprocess) -> Part:
    where = str(path)
    name = _only([spec.name for spec in specs], where)
    return Part(where, {name: npy_column(path, f"{where}: `{name}`")})


def _archive(path: Path, specs: Sequence[TensorSpec], preprocess: Preprocess) -> Part:
    where, names = str(path), npz_names(path)
    wanted = [name for name in _wanted([spec.name for spec in specs]) if name in names]
    columns = {name: npz_column(path, name, f"{where}: `{name}`") for name in wanted}
    return Part(where, columns, tuple(name for name in names if name not in wanted))


FILES: Mapping[str, Opener] = {
    ".npz": _archive,
    ".npy": _array_file,
    **dict.fromkeys(tables.SUFFIXES, tables.table_part),
    ".txt": text_file,
}
"""Files that are read, by suffix."""
KINDS = ", ".join(FILES)


def _file_part(path: Path, specs: Sequence[TensorSpec], preprocess: Preprocess) -> Part:
    if path.suffix not in FILES:
        raise InputError(f"{path} is none of {KINDS}: convert it, or name a module:function to read it")
    return FILES[path.suffix](path, specs, preprocess)


def _folder_parts(folder: Path, specs: Sequence[TensorSpec], preprocess: Preprocess) -> list[Part]:
    inputs = [spec.name for spec in specs]
    with reading(str(folder)):
        files = sorted(folder.glob("[!.]*.np[yz]")) or tables.table_files(folder)
    if not files:
        images = image_folder(folder, _only(inputs, str(folder)), preprocess) if len(inputs) == 1 else None
        if images is None:
            raise InputError(f"{folder} holds no .npz or .npy files, no tables and no images: save the samples there")
        return [images]
    stems = {path.stem: path for path in files}
    if all(path.suffix == ".npy" for path in files) and stems.keys() - {LABELS} == set(inputs) - {LABELS}:
        columns = {name: npy_column(path, str(path)) for name, path in stems.items()}
        return [Part(str(folder), columns)]
    if folder / f"{LABELS}.npy" in files and LABELS not in inputs:
        raise InputError(
            f"{folder} holds {LABELS}.npy for several files: name the files after the inputs "
            f"({', '.join(f'{name}.npy' for name in inputs)}), or save each as .npz with its own `{LABELS}`"
        )
    return [_file_part(path, specs, preprocess) for path in files]


def _only(inputs: Sequence[str], where: str) -> str:
    """The name of the model's one input, to which an array without a name belongs."""
    if len(inputs) != 1:
        names = ", ".join(f"`{name}`" for name in inputs)
        raise InputError(f"{where} is one array but the model takes {names}: give one per input, by name")
    return inputs[0]


def _wanted(inputs: Sequence[str]) -> list[str]:
    return [*inputs, *({LABELS} - set(inputs))]


# --- feeds


def _imported(name: str) -> Callable[[], Iterable[Feed]]:
    """The function that `module:function` names."""
    with refusing(f"`{name}` cannot be imported", "run from the folder of the module, and check both names"):
        function = resolve_here(name)
    if not callable(function):
        raise InputError(f"`{name}` is a {type(function).__name__}: name a function that yields feeds")
    return function  # type: ignore[no-any-return]


def _feed_parts(make: Callable[[], Iterable[Feed]], inputs: Sequence[str], where: str) -> Iterator[Part]:
    """The feeds of one call of `make`, which is the user's code: whatever it raises is an InputError."""
    with refusing(f"{where} failed", "it must yield mappings of input names to arrays"):
        for index, feed in enumerate(make()):
            yield _feed_part(feed, inputs, f"{where}: feed {index}")


def _feed_part(feed: Feed, inputs: Sequence[str], where: str) -> Part:
    if not isinstance(feed, Mapping):
        raise InputError(f"{where} is a {type(feed).__name__}: give a mapping of input names to arrays")
    wanted = [name for name in _wanted(inputs) if name in feed]
    columns = {name: _value_column(feed[name], f"{where}: `{name}`") for name in wanted}
    return Part(where, columns, tuple(str(name) for name in feed if name not in wanted))


def _value_column(value: Any, where: str) -> Column:
    with refusing(f"{where} is no array", "give a NumPy array"):
        array = np.asarray(value)
    return array_column(array, where)


def _title(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


class _Spool:
    """Replays an iterator: a feed is written to a temporary folder when it is first asked for.

    Only what is asked for is read, so an endless iterator is fine where the caller stops by itself. The
    folder goes when the spool does, or at exit.
    """

    def __init__(self, feeds: Iterator[Feed], inputs: Sequence[str]) -> None:
        self._fresh = _feed_parts(lambda: feeds, inputs, "data")
        self._kept: list[Part] = []
        self._failure: InputError | None = None
        scratch = Scratch()
        self._folder = Path(scratch.name)
        weakref.finalize(self, scratch.cleanup)

    def parts(self) -> Iterator[Part]:
        index = 0
        while index < len(self._kept) or self._keep_next():
            yield self._kept[index]
            index += 1

    def _keep_next(self) -> bool:
        if self._failure is not None:
            # The iterator is finished after raising: another pass would take the rest for the whole.
            raise self._failure
        try:
            part = next(self._fresh, None)
            if part is not None:
                self._kept.append(self._written(part))
        except InputError as failure:
            self._failure = failure
            raise
        return part is not None

    def _written(self, part: Part) -> Part:
        columns: dict[str, Column] = {}
        for name, column in part.columns.items():
            path = self._folder / f"{len(self._kept)}-{len(columns)}.npy"
            (values,) = column.rows(column.shape[0])
            if column.dtype.isbuiltin == 2:
                # The .npy format knows no bfloat16 (nor its kin); float32 holds every value of it.
                values = values.astype(np.float32)
            with refusing(f"{column.where} cannot be kept in {self._folder}", "free space, or set TMPDIR"):
                np.save(path, values, allow_pickle=False)
            columns[name] = npy_column(path, column.where)
        return Part(part.where, columns, part.ignored)
