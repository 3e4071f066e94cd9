"""Which axis of an output counts samples: where its size grows with the number of samples that are fed.

Where the model names its sizes, the name of the one that counts samples says so (`graph.layout`). Else the first axis
may be time, as in (T, N, C), or there may be none, as in a table that no sample changes. So one sample is run besides
the first batch: the axis whose size is that many times as large is the one. A model that takes one batch size only
cannot be asked; there the axis is the first that has this size. What is one sample however large has no such axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.data.batch import Batch
from pcns_onnx.errors import PcnsError
from pcns_onnx.evaluation.counts import on_host
from pcns_onnx.graph import Graph
from pcns_onnx.runtime.engine import Session

Array = NDArray[Any]


def batch_axes(
    session: Session, model: Graph, batch: Batch, outputs: Mapping[str, Array], *, fixed: bool
) -> dict[str, int | None]:
    """By output of `model`, the axis that counts samples, None where there is none; from a run of `batch`."""
    if model.layout.whole:
        return dict.fromkeys(outputs)
    axes: dict[str, int | None] = _named(model, outputs, batch.size)
    if len(axes) < len(outputs):
        one = {} if fixed or batch.size == 1 else _of_one(session, batch)
        measured = {name: _axis(array.shape, one.get(name), batch.size) for name, array in outputs.items()}
        axes = measured | axes
    return axes


def _named(model: Graph, outputs: Mapping[str, Array], size: int) -> dict[str, int | None]:
    """The axes that names speak for, where the sizes bear them out."""
    axes = dict[str, int | None]()
    for spec in model.outputs:
        axis, shape = model.layout.named_axis(spec), outputs[spec.name].shape
        if axis is not None and len(shape) == len(spec.symbols) and shape[axis] == size:
            axes[spec.name] = axis
    return axes


def _of_one(session: Session, batch: Batch) -> Mapping[str, tuple[int, ...]]:
    try:
        outputs = session.run(batch.rows(slice(0, 1)).feeds)
        return {name: on_host(array).shape for name, array in outputs.items()}
    except PcnsError:  # a model may take other sizes only
        return {}


def _axis(shape: tuple[int, ...], one: tuple[int, ...] | None, size: int) -> int | None:
    if one is None or len(one) != len(shape):
        return next((axis for axis, length in enumerate(shape) if length == size), None)
    grown = [axis for axis, (length, single) in enumerate(zip(shape, one, strict=True)) if length != single]
    return grown[0] if len(grown) == 1 and shape[grown[0]] == size * one[grown[0]] else None


def with_samples_first(values: Array, axis: int | None) -> Array:
    """The same with the axis that counts samples in front; where there is none, all is one sample's."""
    return values[None] if axis is None else np.moveaxis(values, axis, 0)


def by_sample(values: Array, axis: int | None, size: int) -> Array:
    """(size, values per sample) float64; (1, all values) where `axis` is None: what is told apart is a feed."""
    if axis is None or size == 1 or values.shape[axis] % size:
        return np.asarray(values, dtype=np.float64).reshape(1, -1)
    return with_samples_first(np.asarray(values, dtype=np.float64), axis).reshape(size, -1)
