"""Latency of whole models where they are meant to run: interleaved runs, medians, and the ratio pair by pair.

Runs alternate A B A B, so that a machine whose speed drifts slows both; the ratio is the
median of the ratios of neighbours. Runtimes have their default options (OpenVINO: float32, its hint for latency) but
for the number of threads, which is what a deployment would see.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pcns_onnx.graph import Graph
from pcns_onnx.rewrite.contract import close_states, fed_to
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples
from pcns_onnx.runtime.targets.timer import Timer, open_timer, timed_in, timed_threads

_SECONDS = 2.0
_ROUNDS = (7, 200)
_UNSTEADY = 4.0
"""Upper over lower quartile of equal runs. Threads that wait for one another on busy processors reach 20."""
_REPEATED = 1024
"""A batch that the samples do not fill is filled up with them again, but not beyond so many."""
_SAMPLED = 256
"""How many samples are timed to know what all of them would take."""


class Latency(msgspec.Struct, frozen=True):
    """Median seconds per batch of both models, and the median ratio B / A; `times` are those of every run.

    `instead`: why it was not measured in the runtime that was asked for.
    """

    batch: int
    threads: int
    provider: str
    rounds: int
    seconds_a: float
    seconds_b: float
    ratio: float
    times_a: list[float] = []
    times_b: list[float] = []
    instead: str = ""


def unsteady(latency: Latency) -> list[str]:
    """Warnings where it is another runtime's, or equal runs differed so much that the ratio says little."""
    instead = [latency.instead] if latency.instead else []
    if not latency.times_a or not latency.times_b:
        return instead
    spreads = []
    for times in (latency.times_a, latency.times_b):
        low, high = np.quantile(times, [0.25, 0.75])
        spreads.append(float(high / max(low, 1e-9)))
    if max(spreads) < _UNSTEADY:
        return instead
    return [
        *instead,
        f"latency is uncertain: the middle half of equal runs differs by a factor of {max(spreads):.0f}, as where "
        "other work keeps the processors busy: time again when the machine is idle, or with fewer --threads",
    ]


def compare_latency(engine: Engine, a: Graph, b: Graph, samples: Samples, seconds: float = _SECONDS) -> Latency:
    """Time both models on the first batch of `samples` for about `seconds` in all; `b` is fed with what its states
    have left."""
    feeds, size = _first_batch(samples)
    with (
        closing(open_timer(engine, a.program(), feeds, spinning=True)) as first,
        closing(open_timer(engine, close_states(b).program(), fed_to(b, feeds), spinning=True)) as second,
    ):
        times_a, times_b = _in_turns(first, second, seconds)
    return Latency(
        size, timed_threads(engine), timed_in(engine), len(times_a),
        statistics.median(times_a), statistics.median(times_b), _ratio(times_a, times_b),
        times_a, times_b,
    )  # fmt: skip


def compare_many(
    engine: Engine, original: Graph, others: Iterable[Graph], samples: Samples, seconds: float = _SECONDS
) -> list[float]:
    """The ratio of each model's time to `original`'s, by runs that alternate for about `seconds` each.

    One by one: many small models in one round would push each other out of the caches, and the
    original with them, which in use they do not.
    """
    (feeds, _), ratios = _first_batch(samples), list[float]()
    with closing(open_timer(engine, original.program(), feeds, spinning=True)) as first:
        for other in others:
            with closing(open_timer(engine, other.program(), feeds, spinning=True)) as second:
                ratios.append(_ratio(*_in_turns(first, second, seconds)))
    return ratios


def _in_turns(first: Timer, second: Timer, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds of the runs of both."""
    for _ in range(2):
        first.seconds()
        second.seconds()
    times_a, times_b = list[float](), list[float]()
    start = time.perf_counter()
    while len(times_a) < _ROUNDS[0] or (len(times_a) < _ROUNDS[1] and time.perf_counter() - start < seconds):
        times_a.append(first.seconds())
        times_b.append(second.seconds())
    return times_a, times_b


def _ratio(times_a: Sequence[float], times_b: Sequence[float]) -> float:
    return statistics.median(b / a for a, b in zip(times_a, times_b, strict=True))


def _first_batch(samples: Samples) -> tuple[dict[str, NDArray[Any]], int]:
    """The first batch, filled up with itself where the samples are too few, and its size."""
    first = next(iter(samples.formed("given")))
    batch = min(samples.batch, max(first.size, _REPEATED))
    return first.repeated(batch), batch


def pass_seconds(engine: Engine, graph: Graph, samples: Samples) -> float:
    """Seconds for one pass of the model over all samples, extrapolated from some of them."""
    session = engine.session(graph.program(), spinning=True)
    timed, seconds = 0, 0.0
    for batch in samples:
        if not timed:
            session.run(batch.feeds)
        start = time.perf_counter()
        session.run(batch.feeds)
        seconds += time.perf_counter() - start
        timed += batch.size
        if timed >= _SAMPLED:
            break
    return seconds * samples.count / max(timed, 1)
