"""What the data holds against what the model takes: one check of names, shapes and dtypes, one conversion.

The check needs headers only, so files are refused before a row is read; what depends on values (NaN, Inf, an
integer out of range) is checked run by run while streaming. Conversions never change what a number means:
float to float and integer to integer, if in range. Pixels become floats only by an explicit `Normalize`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pcns_onnx.data.columns import LABELS, Array, Column, Part
from pcns_onnx.errors import InputError
from pcns_onnx.graph import TensorSpec


@dataclass(frozen=True)
class Normalize:
    """uint8 pixels to floats, `(x / 255 - mean) / std`: one value each, or one per channel (axis 1).

    Raises InputError unless every value is finite, every std positive, and the lengths agree (or are 1).
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse values that do not go together; lists, arrays and single numbers become tuples."""
        for name in ("mean", "std"):
            values = np.ravel(getattr(self, name))
            if values.dtype.kind not in "iuf":
                raise InputError(f"normalize's {name} {getattr(self, name)!r} is not understood: give numbers")
            object.__setattr__(self, name, tuple(values.tolist()))
        means, stds = len(self.mean), len(self.std)
        if not means or not stds or len({1, means, stds}) > 2:
            raise InputError(
                f"normalize has {means} means and {stds} stds: give one of each per channel, or a single one"
            )
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise InputError(
                f"normalize by mean {self.mean} and std {self.std} is undefined: give finite means and positive stds"
            )

    @classmethod
    def parse(cls, mean: str, std: str, option: str = "--normalize") -> Normalize:
        """Read '0.485,0.456,0.406' and '0.229,0.224,0.225'; raises `InputError` for anything but numbers."""
        try:
            return cls(*(tuple(float(number) for number in text.split(",")) for text in (mean, std)))
        except ValueError:
            example = "as in 0.485,0.456,0.406 0.229,0.224,0.225"
            raise InputError(f"{option} takes two lists of numbers, {example}") from None

    @property
    def channels(self) -> int:
        """How many channels the values are for; 1 means any."""
        return max(len(self.mean), len(self.std))

    def __call__(self, pixels: Array, dtype: np.dtype[Any]) -> Array:
        """Normalise `pixels` (uint8, sample axis first) to the float `dtype`."""
        # A half-precision target would lose digits to every step, so only the result is rounded to it.
        problem = np.promote_types(dtype, np.float32) if dtype.kind == "f" else np.dtype(np.float32)
        column = (-1,) + (1,) * (pixels.ndim - 2) if self.channels > 1 else ()
        values = pixels.astype(problem)
        values /= 255
        values -= _along(self.mean, problem, column)
        values /= _along(self.std, problem, column)
        return values.astype(dtype, copy=False)


def _along(values: tuple[float, ...], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    return np.asarray(values, dtype).reshape(shape if len(values) > 1 else ())


def match(part: Part, inputs: Sequence[TensorSpec], normalize: Normalize | None) -> None:
    """Raise InputError unless the headers of `part` suit the model: names, counts, shapes, dtypes, labels."""
    _match_names(part, inputs)
    first, *others = part.columns.values()
    for other in others:
        if other.shape[0] != first.shape[0]:
            raise InputError(
                f"{first.where} has {first.shape[0]} samples but {other.where} has {other.shape[0]}: "
                "every array needs one row per sample"
            )
    for spec in inputs:
        _match_shape(part.columns[spec.name], spec)
    if normalize is not None:
        _match_normalize(part, inputs, normalize)
    for spec in inputs:
        _match_dtype(part.columns[spec.name], spec, normalize)
    names = {spec.name for spec in inputs}
    if LABELS in part.columns and LABELS not in names and part.columns[LABELS].dtype.kind not in "iub":
        labels = part.columns[LABELS]
        raise InputError(f"{labels.where} holds {labels.dtype}: labels are class numbers, save them as integers")


def convert(rows: Array, spec: TensorSpec, normalize: Normalize | None, where: str, first: int) -> Array:
    """`rows` of a matched column as the model takes them: C-contiguous, of `spec.dtype`.

    `first` is the sample index of the first row, for messages. Raises InputError for NaN, Inf, a float too
    large for the dtype and an integer out of its range.
    """
    if not is_floating(spec.dtype):
        if not np.can_cast(rows.dtype, spec.dtype) and rows.size:
            limits = np.iinfo(spec.dtype)
            bad = (rows < limits.min) | (rows > limits.max)
            _refuse_where(bad, where, first, f"is out of range for {spec.dtype}")
        return np.ascontiguousarray(rows, spec.dtype)
    if rows.dtype == np.uint8:
        assert normalize is not None, "match() lets uint8 through only with a Normalize"
        values = normalize(rows, spec.dtype)
    else:
        _refuse_where(~np.isfinite(rows), where, first, "is NaN or Inf")
        with np.errstate(over="ignore"):
            values = rows.astype(spec.dtype, copy=False)
    if values.dtype != rows.dtype:
        _refuse_where(~np.isfinite(values), where, first, f"is too large for {spec.dtype}")
    return np.ascontiguousarray(values)


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is a float; numpy itself files ml_dtypes' bfloat16 under void."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _refuse_where(bad: npt.NDArray[np.bool_], where: str, first: int, what: str) -> None:
    if bad.any():
        index = first + int(np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0])
        raise InputError(f"{where} {what} at sample {index}: repair or drop that sample")


def _match_names(part: Part, inputs: Sequence[TensorSpec]) -> None:
    missing = [spec.name for spec in inputs if spec.name not in part.columns]
    if missing:
        names = [*part.columns, *part.ignored]
        raise InputError(
            f"{part.where} lacks {_names(missing)}: it has {_names(names) or 'no arrays'}, "
            f"the model takes {_names([spec.name for spec in inputs])}: name one array after each input"
        )


def _match_shape(column: Column, spec: TensorSpec) -> None:
    fits = len(column.shape) == len(spec.shape) and all(
        want is None or have == want for have, want in zip(column.shape[1:], spec.shape[1:], strict=True)
    )
    if not fits:
        takes = ", ".join(["N", *("?" if size is None else str(size) for size in spec.shape[1:])])
        raise InputError(f"{column.where} has shape {column.shape} but the model takes ({takes}): reshape it")


def _match_dtype(column: Column, spec: TensorSpec, normalize: Normalize | None) -> None:
    have, want = column.dtype, spec.dtype
    if have == want or (is_floating(have) and is_floating(want)):
        return
    if have.kind in "iub" and want.kind in "iu":
        return
    clash = f"{column.where} holds {have} but the model takes {want}"
    if have == np.uint8 and is_floating(want):
        if normalize is not None:
            return
        raise InputError(f"{clash}: pass --normalize MEAN STD (per channel, after /255), or convert the data")
    # Saving as bfloat16 would not do: numpy forgets that dtype on the way to a file.
    raise InputError(f"{clash}: convert the data to {'float32' if is_floating(want) else want}")


def _match_normalize(part: Part, inputs: Sequence[TensorSpec], normalize: Normalize) -> None:
    """Refuse a Normalize that has nothing to do, or whose channels are not those of the data."""
    pixels = [c for s in inputs if (c := part.columns[s.name]).dtype == np.uint8 and is_floating(s.dtype)]
    if not pixels:
        dtypes = ", ".join(f"`{spec.name}` holds {part.columns[spec.name].dtype}" for spec in inputs)
        raise InputError(
            f"{part.where} has no uint8 pixels to normalise ({dtypes}): drop --normalize, or give raw pixels"
        )
    for column in pixels:
        if normalize.channels == 1:
            continue
        if len(column.shape) < 3:
            raise InputError(f"{column.where} has no channels in its shape {column.shape}: give a single MEAN STD")
        if column.shape[1] != normalize.channels:
            raise InputError(
                f"{column.where} has shape {column.shape} but --normalize has {normalize.channels} values: "
                "give one per channel (axis 1), or a single one"
            )


def _names(names: Sequence[str]) -> str:
    # A zip's names may hold anything, and a message is one line.
    return ", ".join(f"`{' '.join(name.split())}`" for name in names)
