"""Seconds of many programs in the runtime that a model is meant for (`runtime.targets`); what was measured is kept by
`latency_table`.

Runs take turns, so that a machine whose speed drifts slows all alike, and of the rounds the faster
half is averaged: what else the machine does can only add. A profiled model tells what
its kernels take. So neither Python counts nor the reordering of tensors at the borders of a lone
layer, which its neighbours in the model spare it. Threads of onnxruntime do not spin between runs: those of one
session would take the cores from the next. CUDA's kernels are queued: there whole runs
are timed, less the shortest, which is what a launch costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.graph import Program
from pcns_onnx.numerics.arrays import Array
from pcns_onnx.runtime.engine import Engine, Kernel
from pcns_onnx.runtime.targets.timer import Timer, can_profile, open_timer

_WARM = 1
_ROUNDS = (5, 30)
_OPEN_BYTES = 1 << 28
"""Bytes of programs that are open at a time."""
_LEAST = 1e-6
"""The resolution of the runtimes' profiles."""

T = TypeVar("T")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Job:
    """A program and what it is fed; `makes`: the bytes that it puts out, which its session keeps."""

    program: Program
    feeds: Mapping[str, Array]
    makes: int = 0

    @property
    def nbytes(self) -> int:
        """Size of the program, of what it is fed, and of what it makes of that."""
        arrays = (*self.program.weights.values(), *self.feeds.values())
        return len(self.program.model) + sum(int(array.nbytes) for array in arrays) + self.makes


def noise(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Normal noise, free of denormal numbers; ones of any type but floats."""
    floats = np.issubdtype(dtype, np.floating)
    values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32) if floats else np.ones(shape)
    return values.astype(dtype)


def take_turns(engine: Engine, jobs: Sequence[Callable[[], Job]], seconds: float) -> Floats:
    """Seconds for one run of each job (n,), measured for about `seconds` in all.

    Jobs that do not fit into memory together are timed in parts, each along with the first job,
    whose time ties the parts together.
    """
    first, per_job = jobs[0](), np.empty(len(jobs))
    share, start = seconds / len(jobs), 0
    for part in _parts(first, jobs[1:]):
        times = _rounds(engine, part, share * len(part))
        if not start:
            per_job[0] = times[0]
            start = 1
        per_job[start : start + len(part) - 1] = times[1:] * (per_job[0] / times[0])
        start += len(part) - 1
    if not can_profile(engine):
        per_job = per_job - per_job.min()
    return np.maximum(per_job, _LEAST)


def _parts(first: Job, others: Sequence[Callable[[], Job]]) -> Iterator[list[Job]]:
    part, room = [first], _OPEN_BYTES - first.nbytes
    for make in others:
        job = make()
        if len(part) > 1 and job.nbytes > room:
            yield part
            part, room = [first], _OPEN_BYTES - first.nbytes
        part.append(job)
        room -= job.nbytes
    yield part


def _rounds(engine: Engine, jobs: Sequence[Job], seconds: float) -> Floats:
    profiled, rounds = can_profile(engine), list[list[float]]()
    with ExitStack() as stack:
        timers = [
            stack.enter_context(closing(open_timer(engine, job.program, job.feeds, profiled=profiled))) for job in jobs
        ]
        start = time.perf_counter()
        while _goes_on(len(rounds), start, seconds):
            if len(rounds) == _WARM:
                start = time.perf_counter()
            rounds.append([timer.seconds() for timer in timers])
        times = []
        for timer, *runs in zip(timers, *rounds, strict=True):
            if profiled:
                times.append(sum(t for kernel, t in _kernels(timer, runs) if not kernel.op.startswith("Reorder")))
            else:
                times.append(_typical(runs))
    return np.maximum(times, _LEAST)


def _goes_on(done: int, start: float, seconds: float) -> bool:
    least, most = (count + _WARM for count in _ROUNDS)
    return done < least or (done < most and time.perf_counter() - start < seconds)


def _kernels(timer: Timer, runs: Sequence[float]) -> list[tuple[Kernel, float]]:
    """The kernels of a profiled model with their seconds, from those of its `runs` by the engine's clock.

    The profile goes by the wall's clock. Where it has more than the runs took by the engine's, the
    kernels are long enough to be interrupted always, all in proportion to their length.
    """
    kernels = timer.kernels()
    times = [_typical(k.seconds) if len(k.seconds) == len(runs) else sum(k.seconds) / len(runs) for k in kernels]
    own = _typical(runs)
    return [(kernel, t * min(1.0, own / max(sum(times), _LEAST))) for kernel, t in zip(kernels, times, strict=True)]


def _typical(times: Sequence[float] | Floats) -> float:
    """The mean of the faster half of all but the first rounds."""
    kept = np.sort(np.asarray(times)[_WARM:])
    return float(kept[: -(-len(kept) // 2)].mean())


def take_apart(engine: Engine, job: Job, seconds: float) -> tuple[float, list[tuple[Kernel, float]]]:
    """Seconds for one run of a whole model, and for each of its kernels; none on CUDA.

    `job.program` should be `named`. The run that is timed is not profiled, which costs time itself.
    """
    times, runs = list[float](), list[float]()
    with ExitStack() as stack:
        plain = stack.enter_context(closing(open_timer(engine, job.program, job.feeds)))
        profiled = None
        if can_profile(engine):
            profiled = stack.enter_context(closing(open_timer(engine, job.program, job.feeds, profiled=True)))
        start = time.perf_counter()
        while _goes_on(len(times), start, seconds):
            times.append(plain.seconds())
            if profiled is not None:
                runs.append(profiled.seconds())
        return _typical(times), [] if profiled is None else _kernels(profiled, runs)
