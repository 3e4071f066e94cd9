"""Whether samples can be run at once: the model says so, by being run on two of them.

Exporters write a batch of 1 into models whose inputs name theirs: such a model fails on two samples, or takes them for
one, and is run sample by sample. Where the names of sizes leave a doubt and one sample alone does not give what it
gives among others, the axis that was taken for that of the samples is one of time, or of nodes: what is fed at once
is one sample.
"""

from __future__ import annotations

from enum import Enum, auto

import numpy as np

from pcns_onnx.data.batch import Batch, joined
from pcns_onnx.data.dataset import Dataset
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.graph.layout import is_named
from pcns_onnx.numerics.arrays import Array, to_numpy
from pcns_onnx.runtime.engine import Engine, Session, Tensors

_SAME = 1e-2
"""Largest difference, of the largest value, that other batches may make: kernels round, scales follow the batch."""


class Batching(Enum):
    """How samples go together."""

    JOINED = auto()
    SINGLE = auto()
    WHOLE = auto()


def batching_of(engine: Engine, graph: Graph, dataset: Dataset, batch: int, *, is_fed: bool) -> Batching:
    """How the samples of `dataset` can be run: many at once, one by one, or not cut as they are at all.

    `is_fed`: what holds them was yielded one by one. With a `batch` of 1 no two are run at once unless there is a doubt
    whether they are two.
    """
    layout = dataset.layout or graph.layout
    if dataset.is_single or layout.fixed is not None:
        return Batching.SINGLE if dataset.is_single else Batching.JOINED
    is_doubtful = not layout.certain and (is_fed or is_named(layout.symbol))
    if batch == 1 and not is_doubtful:
        return Batching.SINGLE
    pair = next(dataset.batches(2))
    if pair.size < 2 and (batch == 1 or not is_doubtful):
        return Batching.SINGLE if batch == 1 else Batching.JOINED
    if pair.size < 2:
        pair = joined([pair, pair])
    try:
        session = engine.session(graph.program())
    except InputError:
        return Batching.JOINED  # the error comes up where the model is needed
    alone = pair.rows(slice(0, 1))
    both, first, again = (_outputs(session, samples) for samples in (pair, alone, alone))
    differs = (
        both is not None
        and first is not None
        and again is not None
        and _differs(graph, both, first, again, numbers=is_doubtful)
    )
    if is_doubtful and (first is None or differs):
        return Batching.WHOLE
    if batch == 1 or differs or (both is None and first is not None):
        return Batching.SINGLE
    return Batching.JOINED


def runs(engine: Engine, graph: Graph, dataset: Dataset) -> bool:
    """Whether the model takes the first sample."""
    try:
        return _outputs(engine.session(graph.program()), next(dataset.batches(1))) is not None
    except InputError:
        return False


def _outputs(session: Session, batch: Batch) -> Tensors | None:
    try:
        return session.run(batch.feeds)
    except InputError:
        return None


def _differs(graph: Graph, both: Tensors, first: Tensors, again: Tensors, *, numbers: bool) -> bool:
    """Whether the first of two samples gives something else when it is alone, and the same thing each time.

    Single `numbers` may be of all samples, and tell only whether what is fed has parts that are samples.
    """
    names = [spec.name for spec in graph.outputs if numbers or len(getattr(first[spec.name], "shape", ()))]
    is_random = any(_is_other(again[name], first[name]) for name in names)
    return not is_random and any(_is_other(both[name], first[name]) for name in names)


def _is_other(both: Array, first: Array) -> bool:
    if getattr(first, "dtype", np.dtype("O")).kind != "f" or both.ndim != first.ndim:
        return False
    a, b = to_numpy(both), to_numpy(first)
    grown = [axis for axis in range(a.ndim) if a.shape[axis] == 2 * b.shape[axis] and b.shape[axis]]
    if len(grown) == 1 and a.size == 2 * b.size:
        if grown[0] and b.shape[grown[0]] != 1:
            return True  # one sample's axis goes through both: they have become one
        a = np.take(a, range(b.shape[grown[0]]), grown[0])
    if a.shape != b.shape or not (a.size and np.isfinite(a).all() and np.isfinite(b).all()):
        return False
    scale = float(np.max(np.abs(b), initial=0.0))
    return not bool(np.max(np.abs(a.astype(np.float64) - b)) <= _SAME * scale + 1e-6)
