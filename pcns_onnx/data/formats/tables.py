"""Tables: `.parquet`, Arrow files, and folders of them as Hugging Face saves datasets, through pyarrow (an extra).

A column feeds the input of its name. Numbers and lists of numbers are arrays, encoded images (bytes, or the
struct with `bytes` that Hugging Face writes) are decoded, texts are tokenised; `label` or `labels` are labels.
Files are read in runs of rows, never whole.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pcns_onnx.data.columns import LABELS, Array, Column, Part, reading
from pcns_onnx.data.formats.images import decoded, stacked
from pcns_onnx.data.formats.preprocess import Preprocess
from pcns_onnx.data.formats.text import token_columns, token_note
from pcns_onnx.errors import InputError, UnsupportedError
from pcns_onnx.graph import TensorSpec

SUFFIXES = (".parquet", ".arrow", ".feather", ".ipc")


class _Piece(msgspec.Struct):
    filename: str


class _State(msgspec.Struct):
    """What `datasets.save_to_disk` says of the files beside it."""

    data_files: list[_Piece] = msgspec.field(name="_data_files", default_factory=list)


def table_files(folder: Path) -> list[Path]:
    """The tables of a folder: as its `state.json` lists them, else by name; raises InputError for a dict of splits."""
    if (folder / "dataset_dict.json").exists():
        splits = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        raise InputError(f"{folder} holds several splits: name the folder of one of them ({splits})")
    if (folder / "state.json").exists():
        with reading(str(folder / "state.json")):
            state = msgspec.json.decode((folder / "state.json").read_bytes(), type=_State)
        return [folder / Path(piece.filename).name for piece in state.data_files]
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and not path.name.startswith("."))


@dataclass(frozen=True)
class _Table:
    """One file: its schema, how many rows it has, and its record batches of some columns."""

    path: Path
    schema: Any
    count: int
    batches: Callable[[str, int], Iterator[Any]]


def table_part(path: Path, inputs: Sequence[TensorSpec], preprocess: Preprocess) -> Part:
    """The columns of one file that the model has a use for."""
    with reading(str(path)):
        table = _opened(path)
    kinds = {field.name: field.type for field in table.schema}
    wanted = {spec.name: spec.name for spec in inputs if spec.name in kinds}
    missing = [spec for spec in inputs if spec.name not in kinds]
    pictures = [name for name, kind in kinds.items() if _is_image(kind)]
    if len(missing) == 1 and len(pictures) == 1:
        wanted[missing[0].name] = pictures[0]
    columns = {name: _column(table, source, kinds[source], preprocess) for name, source in wanted.items()}
    note = None
    texts = [name for name, kind in kinds.items() if _arrow().types.is_string(kind)] if missing else []
    if texts and (preprocess.tokenizer or not columns):
        name = _text_column(path, texts, preprocess)

        def runs(size: int) -> Iterator[list[str]]:
            return (_texts(batch.column(0)) for batch in table.batches(name, size))

        columns |= token_columns(runs, table.count, f"{path}: `{name}`", missing, preprocess)
        note = token_note(preprocess)
    label = next((name for name in (LABELS, "label") if name in kinds and name not in columns), None)
    if label is not None:
        columns[LABELS] = _column(table, label, kinds[label], preprocess)
    ignored = tuple(name for name in kinds if name not in {*wanted.values(), label, *columns})
    return Part(str(path), columns, ignored, note=note)


def _opened(path: Path) -> _Table:
    if path.suffix == ".parquet":
        parquet = _module("pyarrow.parquet")
        with parquet.ParquetFile(path) as file:
            schema, count = file.schema_arrow, file.metadata.num_rows

        def batches(name: str, size: int) -> Iterator[Any]:
            with reading(str(path)), parquet.ParquetFile(path) as file:
                yield from file.iter_batches(size, columns=[name])

        return _Table(path, schema, count, batches)
    with _arrow().memory_map(str(path)) as source:
        record_batches = _arrow_batches(source)
        schema, count = (
            record_batches[0].schema if record_batches else _arrow().schema([]),
            sum(batch.num_rows for batch in record_batches),
        )

    def mapped(name: str, size: int) -> Iterator[Any]:
        with reading(str(path)), _arrow().memory_map(str(path)) as source:
            for batch in _arrow_batches(source):
                for start in range(0, batch.num_rows, size):
                    yield batch.select([name]).slice(start, size)

    return _Table(path, schema, count, mapped)


def _arrow_batches(source: Any) -> list[Any]:
    """The record batches of an Arrow file (mapped, not read), or of a stream as Hugging Face caches it."""
    ipc = _module("pyarrow.ipc")
    try:
        file = ipc.open_file(source)
    except _arrow().ArrowInvalid:
        source.seek(0)
        return list(ipc.open_stream(source))
    return [file.get_batch(i) for i in range(file.num_record_batches)]


def _column(table: _Table, name: str, kind: Any, preprocess: Preprocess) -> Column:
    where = f"{table.path}: `{name}`"
    is_image = _is_image(kind)

    def read(array: Any) -> Array:
        return _images(array, where, table.path.parent, preprocess) if is_image else numbers(array, where)

    with reading(where):
        first = next((batch for batch in table.batches(name, 1) if batch.num_rows), None)
    if first is None:
        raise InputError(f"{where} has no samples: give at least one")
    sample = read(first.column(0))

    def rows(size: int) -> Iterator[Array]:
        for batch in table.batches(name, size):
            if not batch.num_rows:
                continue
            run = read(batch.column(0))
            if run.shape[1:] != sample.shape[1:]:
                raise InputError(f"{where} has rows of shape {sample.shape[1:]} and {run.shape[1:]}: make them equal")
            yield run

    return Column(where, sample.dtype, (table.count, *sample.shape[1:]), rows)


def numbers(array: Any, where: str) -> Array:
    """Numbers, or lists (of lists) of as many numbers each, as an array (rows, ...)."""
    types, shape = _arrow().types, [len(array)]
    if isinstance(array.type, _arrow().BaseExtensionType):
        array = array.storage
    while types.is_list(array.type) or types.is_large_list(array.type) or types.is_fixed_size_list(array.type):
        sizes = set(_module("pyarrow.compute").list_value_length(array).to_pylist())
        if len(sizes) != 1 or None in sizes:
            raise InputError(f"{where} has rows of several lengths, or without a value: pad them to one length")
        shape.append(sizes.pop())
        array = array.flatten()
    if array.null_count:
        raise InputError(f"{where} has rows without a value: repair or drop them")
    if not (types.is_integer(array.type) or types.is_floating(array.type) or types.is_boolean(array.type)):
        raise InputError(f"{where} holds {array.type}, no numbers: convert it, or drop the column")
    return np.asarray(array.to_numpy(zero_copy_only=False)).reshape(shape)


def _images(array: Any, where: str, folder: Path, preprocess: Preprocess) -> Array:
    sources: list[Path | bytes] = []
    for row, value in enumerate(array.to_pylist()):
        entry = value if isinstance(value, dict) else {"bytes": value}
        content, file = entry.get("bytes"), folder / Path(entry.get("path") or "?").name
        if content is None and not file.is_file():
            raise InputError(f"{where}: row {row} of a run has no bytes and no file: save the data with its images")
        sources.append(file if content is None else content)
    names = [f"{where}: row {row} of a run" for row in range(len(sources))]
    images = [decoded(source, name, preprocess) for source, name in zip(sources, names, strict=True)]
    return stacked(images, names, images[0])


def _texts(array: Any) -> list[str]:
    return ["" if text is None else str(text) for text in array.to_pylist()]


def _text_column(path: Path, texts: list[str], preprocess: Preprocess) -> str:
    name = preprocess.text or texts[0]
    if name not in texts or (preprocess.text is None and len(texts) > 1):
        raise InputError(f'{path} has texts in {", ".join(texts)}: say which by --preprocess "text=NAME"')
    return name


def _is_image(kind: Any) -> bool:
    types = _arrow().types
    is_struct = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return bool(is_struct or types.is_binary(kind) or types.is_large_binary(kind))


def _arrow() -> Any:
    return _module("pyarrow")


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UnsupportedError("tables are read by pyarrow: `pip install 'pcns-onnx[tables]'`") from None
