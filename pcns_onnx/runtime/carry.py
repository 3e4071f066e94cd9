"""Recurrent state over time: `--carry stateN=state` feeds an output back as the next step's input.

    state_1 = the first state,  (y_t, state_t+1) = model(x_t, state_t)

The original model is run through every sequence once, step by step, and the states that it saw are kept. After that
each step is a sample like any other, with its state among the feeds: what is gathered, solved and checked sees what
a streaming model really sees, and batches mix steps as they please.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from tempfile import SpooledTemporaryFile

import numpy as np

from pcns_onnx.data.batch import Batch, Feeds, recut
from pcns_onnx.data.columns import Array
from pcns_onnx.data.dataset import Dataset
from pcns_onnx.data.placement import fits
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph, TensorSpec
from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.nonfinite import is_finite

IN_MEMORY = 1 << 26
"""Bytes of states that are kept in memory; more go to disk."""


def check_carries(graph: Graph, carries: Mapping[str, str]) -> None:
    """Raise InputError unless `carries` (input -> output) names inputs and outputs of the model."""
    sides = (
        (carries.keys(), {spec.name for spec in graph.inputs}, "input"),
        (carries.values(), {spec.name for spec in graph.outputs}, "output"),
    )
    for names, known, side in sides:
        for name in names:
            if name not in known:
                listed = ", ".join(f"`{other}`" for other in sorted(known))
                raise InputError(f"--carry names '{name}', which is no {side}: the model has {listed}")


def with_states(
    dataset: Dataset, engine: Engine, graph: Graph, carries: Mapping[str, str], first: Mapping[str, Array]
) -> Dataset:
    """The steps of `dataset` with the states that `graph` has there, as samples of their own.

    `carries` names the output that is fed back to each input; a sequence begins with what the data gives for that
    input, else with `first`, else with zeros. Raises InputError, also while samples are read.
    """
    layout = dataset.layout or graph.layout
    if (layout.fixed or 1) != 1:
        raise InputError(f"--carry feeds one sample at a time, and the model takes batches of exactly {layout.fixed}")
    specs = {spec.name: spec for spec in graph.inputs}
    start = {name: first[name] if name in first else _zeros(specs[name], layout.axes[name]) for name in carries}
    states = _States(dataset, engine, graph, carries, start)

    def with_state(run: Batch) -> Iterator[Batch]:
        for row, number in enumerate(_numbers(run)):
            sample = run.rows(slice(row, row + 1))
            yield replace(sample, feeds=sample.feeds | states.at(int(number)))

    def stream(size: int) -> Iterator[Batch]:
        return recut(chain.from_iterable(map(with_state, dataset.stream(size))), size)

    steps = dataset.streaming(stream)
    steps.settings |= frozenset(carries)  # a state that is zero wherever a sequence begins is nobody's oversight
    return steps


def _numbers(run: Batch) -> Array:
    assert run.index is not None, "samples are numbered as they are opened"
    return run.index


def _zeros(spec: TensorSpec, axis: int | None) -> Array:
    """The state that a sequence begins with: zeros; a cache of K or V, whose length is open, is empty."""
    sizes = [1 if at == axis and size is None else size for at, size in enumerate(spec.shape)]
    if sizes.count(None) > (len(sizes) > 3):
        raise InputError(
            f"--carry: input '{spec.name}' has open sizes: give its first value with --constant {spec.name}=FILE"
        )
    return np.zeros([size or 0 for size in sizes], spec.dtype)


@dataclass(frozen=True)
class _Kept:
    """Where a state lies in the file."""

    offset: int
    shape: tuple[int, ...]


class _States:
    """The states of all steps, from the first on: made when they are first asked for."""

    def __init__(
        self, dataset: Dataset, engine: Engine, graph: Graph, carries: Mapping[str, str], start: Mapping[str, Array]
    ) -> None:
        self._dataset, self._engine, self._graph, self._carries, self._start = dataset, engine, graph, carries, start
        self._specs = {spec.name: spec for spec in graph.inputs}
        self._file = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - it lives as long as the samples
        weakref.finalize(self, self._file.close)
        self._kept: list[dict[str, _Kept]] = []
        self._fresh: Iterator[Feeds] | None = None

    def at(self, step: int) -> Feeds:
        """The states that step `step` is fed with."""
        while step >= len(self._kept):
            self._fresh = self._fresh or self._run()
            self._kept.append({name: self._write(value) for name, value in next(self._fresh).items()})
        states = Feeds()
        for name, kept in self._kept[step].items():
            dtype = self._specs[name].dtype
            self._file.seek(kept.offset)
            content = self._file.read(int(np.prod(kept.shape)) * dtype.itemsize)
            states[name] = np.frombuffer(content, dtype).reshape(kept.shape)
        return states

    def _write(self, value: Array) -> _Kept:
        offset = self._file.seek(0, 2)
        self._file.write(value.tobytes())
        return _Kept(offset, value.shape)

    def _run(self) -> Iterator[Feeds]:
        """The states of one step after the other."""
        session = self._engine.session(self._graph.extract(self._specs, [*self._carries.values()]).program())
        states = dict(self._start)
        for number, step in enumerate(self._dataset.batches(1)):
            if number == 0 or (step.begins is not None and step.begins[0]):
                states = {name: step.feeds.get(name, value) for name, value in self._start.items()}
            yield states
            outputs = session.run(step.feeds | states)
            states = {name: self._next(name, outputs[source], number) for name, source in self._carries.items()}

    def _next(self, name: str, value: Array, number: int) -> Array:
        spec = self._specs[name]
        state = np.ascontiguousarray(to_numpy(value))
        if not fits(state.shape, spec.shape):
            takes = ", ".join("?" if size is None else str(size) for size in spec.shape)
            raise InputError(f"--carry: '{self._carries[name]}' has shape {state.shape}, '{name}' takes ({takes})")
        if not is_finite(state):
            raise InputError(f"--carry: '{self._carries[name]}' is NaN or Inf at sample {number}: leave that one out")
        return state.astype(spec.dtype, copy=False)
