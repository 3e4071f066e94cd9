"""What the data holds against what the model takes: one check of names, shapes and dtypes, one conversion.

The check needs headers only, so files are refused before a row is read; what depends on values (NaN, Inf, an
integer out of range) is checked run by run while streaming. Conversions never change what a number means:
float to float and integer to integer, if in range. Pixels become floats only by an explicit `Normalize`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from pcns_onnx.data.columns import Array, Column, Part, npy_column, npz_column, npz_names
from pcns_onnx.data.feeds import as_array
from pcns_onnx.data.placement import Placement, fits, place
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Layout, TensorSpec


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


def match(part: Part, inputs: Sequence[TensorSpec], layout: Layout, normalize: Normalize | None) -> Placement:
    """Where the samples of `part` lie; raises InputError unless its headers suit the model.

    Looked at are names, counts, shapes, dtypes and labels.
    """
    _match_names(part, inputs)
    placement = place(part, inputs, layout)
    if normalize is not None:
        _match_normalize(part, inputs, placement, normalize)
    for spec in inputs:
        _match_dtype(part.columns[spec.name], spec, normalize)
    labels = placement.labels
    if labels is not None and labels.dtype.kind not in "iub":
        raise InputError(f"{labels.where} holds {labels.dtype}: labels are class numbers, save them as integers")
    return placement


def convert(rows: Array, spec: TensorSpec, normalize: Normalize | None, where: str, first: int) -> Array:
    """`rows` of a matched column as the model takes them: C-contiguous, of `spec.dtype`.

    `first` is the sample index of the first row, for messages. Raises InputError for NaN, Inf, a float too
    large for the dtype and an integer out of its range.
    """
    if spec.dtype.hasobject:
        return _texts(rows)
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


def check_classes(labels: Array, where: str, first: int, classes: int) -> None:
    """Raise InputError where labels (rows, ...) are no numbers of `classes` (0: of whatever number).

    Labels of several numbers per sample are for a metric of the caller's, unless they are one-hot.
    """
    width = int(np.prod(labels.shape[1:]))
    if labels.ndim == 2 and width > 1 and (width == classes or (not classes and len(labels) > 1)):
        if (labels.min() >= 0) and (np.asarray(labels, np.int64).sum(axis=1) == 1).all():
            raise InputError(f"{where} is one-hot {labels.shape}: save class numbers, as in labels.argmax(axis=1)")
    if classes and width == 1:
        values = labels.reshape(-1)
        bad = np.flatnonzero((values < 0) | (values >= classes))
        if bad.size:
            at = first + int(bad[0])
            raise InputError(
                f"{where} holds class {values[bad[0]]} at sample {at} but the model tells {classes} apart, 0 to "
                f"{classes - 1}: number them as its output does"
            )


def _texts(rows: Array) -> Array:
    """Texts as onnxruntime takes them: Python's own."""
    return (np.char.decode(rows, "utf-8") if rows.dtype.kind == "S" else rows).astype(object)


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
            + (f", or give --constant {missing[0]}=VALUE" if len(missing) < len(inputs) else "")
        )


def _match_dtype(column: Column, spec: TensorSpec, normalize: Normalize | None) -> None:
    have, want = column.dtype, spec.dtype
    if have == want or (is_floating(have) and is_floating(want)):
        return
    if (have.kind in "iub" and want.kind in "iu") or (have.kind in "US" and want.hasobject):
        return
    takes = "texts" if want.hasobject else want
    clash = f"{column.where} holds {have} but the model takes {takes}"
    if have == np.uint8 and is_floating(want):
        if normalize is not None:
            return
        raise InputError(f"{clash}: pass --normalize MEAN STD (per channel, after /255), or convert the data")
    # Saving as bfloat16 would not do: numpy forgets that dtype on the way to a file.
    raise InputError(f"{clash}: convert the data to {'float32' if is_floating(want) else takes}")


def _match_normalize(part: Part, inputs: Sequence[TensorSpec], placement: Placement, normalize: Normalize) -> None:
    """Refuse a Normalize that has nothing to do, or whose channels are not those of the data."""
    pixels = [
        (c, placement.placed[s.name].shape)
        for s in inputs
        if (c := part.columns[s.name]).dtype == np.uint8 and is_floating(s.dtype)
    ]
    if not pixels:
        dtypes = ", ".join(f"`{spec.name}` holds {part.columns[spec.name].dtype}" for spec in inputs)
        raise InputError(
            f"{part.where} has no uint8 pixels to normalise ({dtypes}): drop --normalize, or give raw pixels"
        )
    for column, shape in pixels:
        if normalize.channels == 1:
            continue
        if len(shape) < 3:
            raise InputError(f"{column.where} has no channels in its shape {shape}: give a single MEAN STD")
        if shape[1] != normalize.channels:
            raise InputError(
                f"{column.where} has shape {shape} but --normalize has {normalize.channels} values: "
                "give one per channel (axis 1), or a single one"
            )


def _names(names: Sequence[str]) -> str:
    # A zip's names may hold anything, and a message is one line.
    return ", ".join(f"`{' '.join(name.split())}`" for name in names)


# --- constants: inputs that are the same in every run, as `--constant NAME=VALUE|FILE` gives them


def settled_constants(
    values: Mapping[str, Any], inputs: Sequence[TensorSpec], layout: Layout, shapes: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Array], Layout]:
    """The constants as the model takes one sample of them, and the layout that follows; raises `InputError`.

    A number fills the input's shape, whose open sizes are 1 along the axis of the samples and else those of `shapes`.
    """
    specs = {spec.name: spec for spec in inputs}
    arrays, axes = dict[str, Array](), dict(layout.axes)
    for name, value in values.items():
        if name not in specs:
            names = ", ".join(f"`{known}`" for known in specs)
            raise InputError(f"--constant names '{name}', which is no input: the model takes {names}")
        array = _cast(_stated(name, value, specs[name]), specs[name])
        arrays[name], axes[name] = _shaped(array, specs[name], layout, shapes.get(name, ()))
    return arrays, replace(layout, axes=axes)


def _stated(name: str, value: Any, spec: TensorSpec) -> Array:
    """The array that is meant: that of a file, or the numbers themselves."""
    where = f"--constant {name}"
    if not isinstance(value, str | os.PathLike):
        try:
            return as_array(value)
        except Exception as error:  # whatever a foreign array raises
            raise InputError(f"{where} is no array ({type(error).__name__}): give numbers or an array") from None
    text = os.fspath(value)
    path = Path(text)
    if path.suffix in (".npy", ".npz"):
        if not path.is_file():
            raise InputError(f"{where}: {path} does not exist: give a number, a list as in [1, 2], or a file")
        if path.suffix == ".npy":
            return npy_column(path, f"{where}: {path}").whole()
        names = npz_names(path)
        member = name if name in names else names[0] if len(names) == 1 else None
        if member is None:
            raise InputError(f"{where}: {path} holds {', '.join(names) or 'no arrays'}: name one after the input")
        return npz_column(path, member, f"{where}: {path}").whole()
    try:
        return np.asarray(msgspec.json.decode(text))
    except (msgspec.DecodeError, ValueError):
        if spec.dtype.hasobject:
            return np.asarray(text)
        raise InputError(
            f"{where}={text} is not understood: give a number, a list as in [1, 2], or a .npy or .npz file"
        ) from None


def _cast(array: Array, spec: TensorSpec) -> Array:
    """In the input's dtype, if that changes no value but by rounding."""
    name, want = spec.name, spec.dtype
    if want.hasobject:
        if array.dtype.kind != "U":
            raise InputError(f"--constant {name} holds {array.dtype} but the model takes texts: give a text")
        return array.astype(object)
    if array.dtype.kind not in "iubf" and not is_floating(array.dtype):
        raise InputError(f"--constant {name} holds {array.dtype} but the model takes {want}: give numbers")
    if is_floating(want):
        if np.isnan(array.astype(np.float64)).any():
            raise InputError(f"--constant {name} holds NaN: give numbers")
        return array.astype(want)
    with np.errstate(invalid="ignore"):
        cast = array.astype(want)
    if not np.array_equal(cast, array):
        raise InputError(f"--constant {name} holds numbers that {want} cannot: the model takes {want}")
    return cast


def _shaped(array: Array, spec: TensorSpec, layout: Layout, known: Sequence[int]) -> tuple[Array, int | None]:
    """In the input's shape, for one sample, and the axis along which it is repeated."""
    axis = layout.axes[spec.name]
    takes = tuple(size or (known[at] if at < len(known) else None) for at, size in enumerate(spec.shape))
    if axis is not None and spec.shape[axis] is None:
        takes = (*takes[:axis], 1, *takes[axis + 1 :])
    else:
        axis = None
    if not array.ndim and takes:
        if None in takes:
            raise InputError(
                f"--constant {spec.name} is a number and the input has open sizes: say them with --shape "
                f"{spec.name}={'x'.join(str(size or 1) for size in takes)}, or give an array"
            )
        return np.full([size or 0 for size in takes], array, array.dtype), axis
    if fits(array.shape, takes):
        return array, axis
    if axis is not None and fits(array.shape, (*takes[:axis], *takes[axis + 1 :])):
        return np.expand_dims(array, axis), axis
    if spec.name in layout.tentative and fits(array.shape, spec.shape):
        return array, None
    sizes = ", ".join("?" if size is None else str(size) for size in takes)
    raise InputError(f"--constant {spec.name} has shape {array.shape} but the model takes ({sizes}): reshape it")
