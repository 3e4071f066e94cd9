"""Where data comes from: every source a user may name, as a replayable sequence of `Part`s.

| source | parts |
|---|---|
| `.npz` | one, with a column per array |
| `.npy`, array | one, for a model with one input |
| `.parquet`, `.arrow` | one, with a column per input (`tables`) |
| `.txt` | one, a text per line, tokenised (`text`) |
| folder | one per file in sorted order; or one in all, if its `.npy` files are named after the inputs |
| folder of images, or of folders of them | one (`images`) |
| mapping of arrays, tensor, tuple of arrays in the order of the inputs | one |
| `module:function`, callable | one per feed it yields; called again in each pass |
| iterable of feeds, map-style dataset | one per feed |
| iterator, `DataLoader`, `CalibrationDataReader` | one per feed, kept in a temporary folder as it is read |
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from pcns_onnx.data.columns import LABELS, Part, npy_column, npz_column, npz_names, reading, refusing, wanted_names
from pcns_onnx.data.feeds import (
    ArrayLike,
    Feed,
    FeedSpool,
    again,
    array_part,
    feed_parts,
    in_order,
    is_array,
    is_per_input,
    once_only,
)
from pcns_onnx.data.formats import tables
from pcns_onnx.data.formats.images import image_folder
from pcns_onnx.data.formats.preprocess import Preprocess
from pcns_onnx.data.formats.text import text_file
from pcns_onnx.data.references import resolve_here
from pcns_onnx.errors import InputError
from pcns_onnx.graph import TensorSpec

DataSource: TypeAlias = (
    str | os.PathLike[str] | ArrayLike | Mapping[str, ArrayLike] | Iterable[Feed] | Callable[[], Iterable[Feed]]
)


@dataclass(frozen=True)
class Source:
    """Parts to be read any number of times; `counted` if listing them reads no samples (files and arrays)."""

    parts: Callable[[], Iterator[Part]]
    counted: bool


def find_source(
    source: DataSource,
    specs: Sequence[TensorSpec],
    preprocess: Preprocess | None = None,
    optional: Collection[str] = (),
) -> Source:
    """The parts of `source` for a model with these inputs; raises InputError if there are none.

    `preprocess` says how images and texts become arrays. `optional` inputs are taken where they are named.
    """
    wanted = _Wanted(specs, [spec for spec in specs if spec.name not in optional], preprocess or Preprocess())
    inputs, needed = [spec.name for spec in specs], [spec.name for spec in wanted.needed]
    if isinstance(source, str | os.PathLike):
        return _named(os.fspath(source), wanted)
    if preprocess is not None and preprocess.is_stated:
        raise InputError("--preprocess is for files of images, tables and texts: give their path")
    if is_array(source):
        return _listed([array_part({_only(needed, "data"): source}, inputs, "data")])
    if isinstance(source, Mapping):
        return _listed([array_part(source, inputs, "data")])
    if is_per_input(source, needed):
        return _listed([array_part(in_order(source, needed, "data"), inputs, "data")])
    passing = once_only(source)
    if passing is not None:
        return Source(FeedSpool(passing, inputs, needed).parts, counted=False)
    repeatable = again(source)
    if repeatable is not None:
        return Source(partial(feed_parts, repeatable, inputs, needed, "data"), counted=False)
    if callable(source):
        return Source(partial(feed_parts, source, inputs, needed, f"`{_title(source)}`"), counted=False)
    raise InputError(f"data cannot be a {type(source).__name__}: give a path, an array, a mapping or feeds")


def is_fed(source: DataSource) -> bool:
    """Whether a source yields what the model takes at once, one by one."""
    if isinstance(source, str | os.PathLike):
        return not Path(source).exists()
    return not (is_array(source) or isinstance(source, Mapping | tuple))


@dataclass(frozen=True)
class _Wanted:
    """The inputs of the model, those that the data needs to have, and how images and texts become arrays."""

    inputs: Sequence[TensorSpec]
    needed: Sequence[TensorSpec]
    preprocess: Preprocess


def _listed(parts: list[Part]) -> Source:
    return Source(lambda: iter(parts), counted=True)


def _named(name: str, wanted: _Wanted) -> Source:
    path, inputs = Path(name), [spec.name for spec in wanted.inputs]
    with reading(name):
        exists, is_folder = path.exists(), path.is_dir()
    if exists:
        parts = _folder_parts(path, wanted) if is_folder else [_file_part(path, wanted)]
        return _listed(parts)
    if re.fullmatch(r"[\w.]+:[\w.]+", name):
        return Source(
            partial(feed_parts, _imported(name), inputs, [spec.name for spec in wanted.needed], f"`{name}`"),
            counted=False,
        )
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
    wanted = [name for name in wanted_names([spec.name for spec in specs]) if name in names]
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


def _file_part(path: Path, wanted: _Wanted) -> Part:
    if path.suffix not in FILES:
        raise InputError(f"{path} is none of {KINDS}: convert it, or name a module:function to read it")
    specs = wanted.inputs if path.suffix == ".npz" else wanted.needed
    return FILES[path.suffix](path, specs, wanted.preprocess)


def _folder_parts(folder: Path, wanted: _Wanted) -> list[Part]:
    inputs, preprocess = [spec.name for spec in wanted.needed], wanted.preprocess
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
    return [_file_part(path, wanted) for path in files]


def _only(inputs: Sequence[str], where: str) -> str:
    """The name of the model's one input, to which an array without a name belongs."""
    if len(inputs) != 1:
        names = ", ".join(f"`{name}`" for name in inputs)
        raise InputError(f"{where} is one array but the model takes {names}: give one per input, by name")
    return inputs[0]


def _imported(name: str) -> Callable[[], Iterable[Feed]]:
    """The function that `module:function` names."""
    with refusing(f"`{name}` cannot be imported", "run from the folder of the module, and check both names"):
        function = resolve_here(name)
    if not callable(function):
        raise InputError(f"`{name}` is a {type(function).__name__}: name a function that yields feeds")
    return function  # type: ignore[no-any-return]


def _title(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
