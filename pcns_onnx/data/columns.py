"""Arrays read row by row: what a `.npy` file, a member of an `.npz` and an array in memory have in common.

A `Column` knows dtype and shape from the header alone and yields its rows in runs, so memory is bounded by
the run, however long the file. `np.load` reads an `.npz` member whole, hence the small reader here.
"""

from __future__ import annotations

import math
import os
import textwrap
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from pcns_onnx.errors import InputError, PcnsError

Array = npt.NDArray[Any]

LABELS = "labels"
"""The array that holds the samples' classes, unless the model has an input of that name."""


def wanted_names(inputs: Sequence[str]) -> list[str]:
    """The arrays that are looked for: the inputs, and labels."""
    return [*inputs, *({LABELS} - set(inputs))]


PIECE = 1 << 20
"""Most bytes asked of a zip stream at once: it hands them over as a second copy."""


@contextmanager
def refusing(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever the body raises into one line, `what (the cause): remedy`; a `PcnsError` passes."""
    try:
        yield
    except PcnsError:
        raise
    except Exception as cause:
        detail = textwrap.shorten(f"{type(cause).__name__}: {cause}", 240, placeholder=" ...")
        raise InputError(f"{what} ({detail}): {remedy}") from cause


def reading(where: str) -> AbstractContextManager[None]:
    """Context in which a file's own defects (and the system's refusals) become an `InputError`."""
    return refusing(f"{where} cannot be read", "check the file, or write it again with np.save or np.savez")


@dataclass(frozen=True)
class Column:
    """One array.

    `where` starts every message about it ("data.npz: `x`"), `dtype` and `shape` are the array's own, and
    `rows(size)` yields it from the start in runs of at most `size` rows, each of shape (rows, *shape[1:]); a
    single number as it is. Raises InputError for Python objects.
    """

    where: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    rows: Callable[[int], Iterator[Array]]

    def __post_init__(self) -> None:
        """Refuse what is never loaded."""
        if self.dtype.hasobject:
            raise InputError(f"{self.where} holds Python objects (a pickle, never loaded): save it as numbers")

    def whole(self) -> Array:
        """The array."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        return np.concatenate(list(self.rows(self.shape[0]))) if self.shape else next(self.rows(1))


@dataclass(frozen=True)
class Part:
    """Some consecutive samples: arrays by name; `placement` says where their samples lie.

    `columns` holds the arrays that the model has a use for, `ignored` the names of the others. `is_feed`: it was
    yielded one by one, as what the model takes at once. `note`: what the user should know of how it was read.
    """

    where: str
    columns: Mapping[str, Column]
    ignored: tuple[str, ...] = ()
    is_feed: bool = False
    note: str | None = None


def array_column(array: Array, where: str) -> Column:
    """The rows of an array in memory, as views."""
    return Column(where, array.dtype, array.shape, lambda size: _runs(array, size))


def npy_column(path: Path, where: str) -> Column:
    """The rows of a `.npy` file, memory-mapped anew in each pass: a folder of many needs few open files."""
    with reading(where), open(path, "rb") as stream:
        header = _read_header(stream)
        nbytes = os.fstat(stream.fileno()).st_size

    def rows(size: int) -> Iterator[Array]:
        order: Literal["C", "F"] = "F" if header.fortran else "C"
        with reading(where):
            if 0 in header.shape:  # an empty file cannot be mapped
                yield from _runs(np.empty(header.shape, header.dtype), size)
                return
            yield from _runs(np.memmap(path, header.dtype, "r", header.offset, header.shape, order), size)

    return _whole(Column(where, header.dtype, header.shape, rows), header, nbytes)


def npz_names(path: Path) -> list[str]:
    """The names of the arrays in an `.npz`, in the file's order."""
    with reading(str(path)), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def npz_column(path: Path, name: str, where: str) -> Column:
    """The rows of one array of an `.npz`, decompressed as they are asked for.

    A Fortran-ordered member has no contiguous rows, so that one is read whole.
    """
    member = name + ".npy"
    with reading(where), zipfile.ZipFile(path) as archive, archive.open(member) as stream:
        header = _read_header(stream)
        nbytes = archive.getinfo(member).file_size

    def rows(size: int) -> Iterator[Array]:
        with reading(where), zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            if header.fortran or not header.shape:
                yield from _runs(npy.read_array(stream, allow_pickle=False), size)
                return
            stream.read(header.offset)
            for start in range(0, header.shape[0], size):
                run = np.empty((min(size, header.shape[0] - start), *header.shape[1:]), header.dtype)
                _fill(run, stream)
                yield run

    return _whole(Column(where, header.dtype, header.shape, rows), header, nbytes)


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    offset: int
    """Bytes before the data."""


def _read_header(stream: IO[bytes]) -> _Header:
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"unknown .npy version {version}")
    # 3.0 is 2.0 with field names in UTF-8 rather than Latin-1, and arrays with fields fit no model input.
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return _Header(shape, fortran, dtype, stream.tell())


def _whole(column: Column, header: _Header, nbytes: int) -> Column:
    """`column`, if its file has the bytes that the header promises; else a CRC would never be reached."""
    promised = header.offset + math.prod(header.shape) * header.dtype.itemsize
    if promised != nbytes:
        raise InputError(
            f"{column.where} is damaged: {header.dtype} of shape {header.shape} takes {promised} bytes "
            f"but the file has {nbytes}: write it again with np.save or np.savez"
        )
    return column


def _runs(array: Array, size: int) -> Iterator[Array]:
    if not array.ndim:
        yield np.asarray(array)
        return
    for start in range(0, len(array), size):
        yield np.asarray(array[start : start + size])


def _fill(run: Array, stream: IO[bytes]) -> None:
    """Read exactly `run.nbytes` bytes into `run`."""
    room = run.reshape(-1).view(np.uint8).data
    while room:
        piece = stream.read(min(len(room), PIECE))
        if not piece:
            raise EOFError("the data ends early")
        room[: len(piece)] = piece
        room = room[len(piece) :]
