"""Which axis of the data counts samples, input by input.

| the array has | it holds |
|---|---|
| the input's shape, any size along the axis of the samples | `rows`: the samples, along that axis |
| one axis more, in front | `each`: what the model takes, sample by sample |
| one axis less, in a feed | `bare`: one sample without its batch axis |
| the input's shape, where no axis counts samples | `same`: what is fed in every run |

All that count must agree. Where they do not and the model's names leave it open, what is fed at once is one sample.
With `--carry`, an axis of time stands behind that of the samples: (sequences, steps, ...) becomes (steps, ...).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pcns_onnx.data.columns import LABELS, Array, Column, Part
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Layout, TensorSpec
from pcns_onnx.graph.layout import is_named


@dataclass(frozen=True)
class Placed:
    """How an array holds samples: `count` of them, None for what is the same in every run; `axis` is the input's."""

    column: Column
    kind: Literal["rows", "each", "bare", "same"]
    axis: int | None
    count: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """That of what `rows` yields: samples first."""
        shape, axis = self.column.shape, self.axis or 0
        if self.kind == "rows":
            return (shape[axis], *shape[:axis], *shape[axis + 1 :])
        if self.kind == "each" and self.axis is not None:
            return (*shape[: axis + 1], *shape[axis + 2 :])
        return shape if self.kind == "each" else (1, *shape)

    def rows(self, size: int) -> Iterator[Array]:
        """The samples in runs of at most `size`, along the first axis."""
        if self.kind == "rows" and self.axis:
            moved = np.moveaxis(self.column.whole(), self.axis, 0)
            return (moved[start : start + size] for start in range(0, len(moved), size))
        if self.kind == "rows":
            return self.column.rows(size)
        if self.kind == "each" and self.axis is not None:
            at = self.axis + 1
            return (run.reshape(*run.shape[:at], *run.shape[at + 1 :]) for run in self.column.rows(size))
        return self.column.rows(1) if self.kind == "each" else iter([self.column.whole()[None]])

    def arranged(self, values: Array) -> Array:
        """Samples along the first axis, as the model takes them."""
        if self.axis is None:
            return np.require(values[0], requirements="C")
        return np.ascontiguousarray(np.moveaxis(values, 0, self.axis))

    def repeated(self, value: Array, size: int) -> Array:
        """What is the same in every run, for a run of `size` samples."""
        if self.axis is None:
            return value
        return np.ascontiguousarray(np.repeat(value, size, self.axis))


@dataclass(frozen=True)
class Placement:
    """The arrays of a part as its `count` samples; `layout` is what is known now of the model's inputs."""

    placed: Mapping[str, Placed]
    count: int
    layout: Layout
    labels: Column | None = None

    def runs(self, size: int) -> Iterator[tuple[int, dict[str, Array], Array | None]]:
        """How many samples, their arrays (samples first) and labels, at most `size` at a time."""
        if any(p.axis is None and p.count is not None for p in self.placed.values()):
            size = 1
        streams = {name: p.rows(size) for name, p in self.placed.items() if p.count is not None}
        labels = None if self.labels is None else self._label_rows(self.labels, size)
        if not streams:
            yield 1, {}, None if labels is None else next(labels)
            return
        for arrays in zip(*streams.values(), strict=True):
            yield len(arrays[0]), dict(zip(streams, arrays, strict=True)), None if labels is None else next(labels)

    def _label_rows(self, labels: Column, size: int) -> Iterator[Array]:
        return labels.rows(size) if not self._is_one_label(labels) else iter([np.asarray(labels.whole())[None]])

    def _is_one_label(self, labels: Column) -> bool:
        return self.count == 1 and labels.shape[:1] != (1,)


def place(part: Part, inputs: Sequence[TensorSpec], layout: Layout) -> Placement:
    """Where the samples of a part lie; raises InputError where that cannot be."""
    if layout.whole:
        return _whole(part, inputs, layout)
    try:
        readings = {spec.name: _readings(part.columns[spec.name], spec, layout, part.is_feed) for spec in inputs}
    except InputError:
        if layout.certain or not (part.is_feed or is_named(layout.symbol)):
            raise
        return _whole(part, inputs, layout)
    agreed = _agreed(readings)
    if agreed is None or _is_doubtful(agreed, inputs, layout, part.is_feed):
        if _may_be_whole(part, inputs, layout):
            return _whole(part, inputs, layout)
        if agreed is None:
            raise _refusal(part, inputs, readings)
    placed, count = agreed
    labels = part.columns.get(LABELS) if LABELS not in placed else None
    placement = Placement(placed, count, _settled(layout, placed, inputs), labels)
    if labels is not None and labels.shape[:1] != (count,) and not (part.is_feed and placement._is_one_label(labels)):
        named = next(p for p in placed.values())
        raise InputError(_other_counts(named.column.where, count, labels.where, labels.shape[:1]))
    return placement


def _readings(column: Column, spec: TensorSpec, layout: Layout, is_feed: bool) -> list[Placed]:
    """What an array may hold, the likeliest first; raises InputError for nothing."""
    axis, shape, takes = layout.axes[spec.name], column.shape, spec.shape
    readings = list[Placed]()
    if axis is not None:
        free = (*takes[:axis], None, *takes[axis + 1 :])
        if fits(shape, free):
            readings.append(Placed(column, "rows", axis, shape[axis]))
        if fits(shape[1:], free) and shape[1 + axis] == 1:
            readings.append(Placed(column, "each", axis, shape[0]))
        if is_feed and fits(shape, (*takes[:axis], *takes[axis + 1 :])):
            readings.append(Placed(column, "bare", axis, 1))
        if fits(shape, takes) and (spec.name in layout.tentative or (layout.fixed == 1 and None not in takes)):
            readings.append(Placed(column, "same", axis if shape[axis] == 1 and takes[axis] is None else None))
    else:
        if fits(shape, takes):
            readings.append(Placed(column, "same", None))
        if shape and fits(shape[1:], takes):
            readings.append(Placed(column, "each", None, shape[0]))
        if takes[:1] == (1,) or (len(takes) > 1 and takes[0] is not None):
            # The model's own batch, of this input alone.
            readings += [Placed(column, "rows", 0, shape[0])] if fits(shape, (None, *takes[1:])) else []
    if not readings:
        raise _misfit(column, spec, axis)
    empty = all(reading.count == 0 for reading in readings)
    if empty:
        raise InputError(f"{column.where} has no samples (shape {column.shape}): give at least one")
    return [reading for reading in readings if reading.count != 0]


def fits(shape: Sequence[int], takes: Sequence[int | None]) -> bool:
    """Whether an array of this shape is one that the model takes."""
    return len(shape) == len(takes) and all(want in (None, have) for have, want in zip(shape, takes, strict=True))


def _agreed(readings: Mapping[str, list[Placed]]) -> tuple[dict[str, Placed], int] | None:
    """A reading of every array by which all have the same number of samples, and that number."""
    depth = max(len(several) for several in readings.values())
    ranked = [several[at] for at in range(depth) for several in readings.values() if at < len(several)]
    for count in dict.fromkeys(reading.count for reading in ranked if reading.count is not None):
        placed = {
            name: next((reading for reading in several if reading.count in (count, None)), None)
            for name, several in readings.items()
        }
        if all(placed.values()):
            return {name: reading for name, reading in placed.items() if reading is not None}, count
    if all(several[0].count is None for several in readings.values()):
        return {name: several[0] for name, several in readings.items()}, 1
    return None


def _is_doubtful(
    agreed: tuple[Mapping[str, Placed], int], inputs: Sequence[TensorSpec], layout: Layout, is_feed: bool
) -> bool:
    """Whether several samples would share an array of open size, which may well be a part of one sample."""
    placed, count = agreed
    if layout.certain or count == 1:
        return False
    shared = [spec for spec in inputs if placed[spec.name].count is None and None in spec.shape]
    return any(is_feed or any(map(is_named, spec.symbols)) for spec in shared)


def _may_be_whole(part: Part, inputs: Sequence[TensorSpec], layout: Layout) -> bool:
    leaves_open = not layout.certain and (part.is_feed or is_named(layout.symbol))
    return leaves_open and all(fits(part.columns[spec.name].shape, spec.shape) for spec in inputs)


def _whole(part: Part, inputs: Sequence[TensorSpec], layout: Layout) -> Placement:
    """What is fed at once as one sample; or, with one axis more in all arrays that vary, sample by sample."""
    layout = layout.as_whole()
    readings = {spec.name: _readings(part.columns[spec.name], spec, layout, part.is_feed)[:2] for spec in inputs}
    agreed = _agreed({name: [r for r in several if r.kind != "rows"] or several for name, several in readings.items()})
    if agreed is None or any(reading.kind == "rows" for reading in agreed[0].values()):
        raise _refusal(part, inputs, readings)
    placed, count = agreed
    labels = part.columns.get(LABELS) if LABELS not in placed else None
    if labels is not None and count > 1 and labels.shape[:1] != (count,):
        raise InputError(_other_counts(part.where, count, labels.where, labels.shape[:1]))
    return Placement(placed, count, layout, labels)


def _settled(layout: Layout, placed: Mapping[str, Placed], inputs: Sequence[TensorSpec]) -> Layout:
    """The layout as the data shows it: guesses are settled, and a batch of one input's own is the model's."""
    axes = {name: reading.axis for name, reading in placed.items()}
    own = [
        spec.shape[axis]
        for spec in inputs
        if layout.axes[spec.name] is None and (axis := axes[spec.name]) is not None and placed[spec.name].kind == "rows"
    ]
    return replace(layout, axes={**layout.axes, **axes}, fixed=layout.fixed or next(iter(own), None))


def _misfit(column: Column, spec: TensorSpec, axis: int | None) -> InputError:
    if not column.shape and spec.shape:
        return InputError(f"{column.where} is a single number: give it a leading sample axis")
    sizes = ["N" if at == axis else "?" if size is None else str(size) for at, size in enumerate(spec.shape)]
    takes = f"({', '.join(sizes)}{',' if len(sizes) == 1 and axis is None else ''})"
    return InputError(f"{column.where} has shape {column.shape} but the model takes {takes}: reshape it")


def _refusal(part: Part, inputs: Sequence[TensorSpec], readings: Mapping[str, list[Placed]]) -> InputError:
    counted = [several[0] for several in readings.values() if several[0].count is not None]
    first = counted[0]
    other = next((reading for reading in counted if reading.count != first.count), None)
    if other is None or other.count is None or first.count is None:
        return InputError(f"{part.where} cannot be told apart into samples: name axes with --batch-axis NAME=1")
    counts = _other_counts(first.column.where, first.count, other.column.where, (other.count,))
    return InputError(f"{counts} (--constant NAME=FILE for what all share, --batch-axis NAME=1 for another axis)")


def _other_counts(where: str, count: int, other: str, size: tuple[int, ...]) -> str:
    has = size[0] if size else "one number"
    return f"{where} has {count} samples but {other} has {has}: every array needs one row per sample"


# --- sequences


def unrolled(part: Part, inputs: Sequence[TensorSpec], layout: Layout, carried: Collection[str]) -> tuple[Part, int]:
    """A part of sequences as its steps, and how many each has; 0 where the part is one sequence already.

    Arrays (sequences, steps, ...) become (sequences * steps, ...), and those with one row for a sequence are repeated.
    """
    steps = None
    for spec in inputs:
        column, axis = part.columns.get(spec.name), layout.axes[spec.name]
        if spec.name not in carried and column is not None and axis is not None:
            sizes = (*spec.shape[:axis], *spec.shape[axis + 1 :])
            if len(column.shape) == len(spec.shape) + 1 and fits(column.shape[2:], sizes):
                steps = steps or column.shape[:2]
    if steps is None:
        return part, 0
    sequences, length = steps
    ranks = {spec.name: len(spec.shape) for spec in inputs}
    columns = dict[str, Column]()
    for name, column in part.columns.items():
        if name in carried or column.shape[:1] != (sequences,):
            columns[name] = column
            continue
        has_time = len(column.shape) > ranks.get(name, 1) and column.shape[:2] == steps
        columns[name] = _flat(column, length, is_step=has_time)
    return replace(part, columns=columns), length


def _flat(column: Column, length: int, *, is_step: bool) -> Column:
    def rows(size: int) -> Iterator[Array]:
        for run in column.rows(1):
            steps = run[0] if is_step else np.repeat(run, length, axis=0)
            yield from (steps[start : start + size] for start in range(0, length, size))

    shape = column.shape[2:] if is_step else column.shape[1:]
    return Column(column.where, column.dtype, (column.shape[0] * length, *shape), rows)
