"""Latency of whole models in onnxruntime: interleaved runs, medians, and the ratio pair by pair.

Runs alternate A B A B, so that a machine whose speed drifts slows both; the ratio is the
median of the ratios of neighbours. Sessions have onnxruntime's default options but for the
number of threads, which is what a deployment would see.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pcns_onnx.capture import Samples
from pcns_onnx.graph import Graph
from pcns_onnx.runtime import Engine

_SECONDS = 2.0
_ROUNDS = (7, 200)
_REPEATED = 1024
"""A batch that the samples do not fill is filled up with them again, but not beyond so many."""
_SAMPLED = 256
"""How many samples are timed to know what all of them would take."""


class Latency(msgspec.Struct, frozen=True):
    """Median seconds per batch of both models, and the median ratio B / A."""

    batch: int
    threads: int
    provider: str
    rounds: int
    seconds_a: float
    seconds_b: float
    ratio: float


def compare_latency(engine: Engine, a: Graph, b: Graph, samples: Samples, seconds: float = _SECONDS) -> Latency:
    """Time both models on the first batch of `samples` for about `seconds` in all."""
    feeds = _first_batch(samples)
    first = engine.session(a.program(), spinning=True)
    second = engine.session(b.program(), spinning=True)
    for _ in range(2):
        first.run(feeds)
        second.run(feeds)
    times_a, times_b = list[float](), list[float]()
    start = time.perf_counter()
    while _goes_on(len(times_a), start, seconds):
        t0 = time.perf_counter()
        first.run(feeds)
        t1 = time.perf_counter()
        second.run(feeds)
        t2 = time.perf_counter()
        times_a.append(t1 - t0)
        times_b.append(t2 - t1)
    ratio = statistics.median(y / x for x, y in zip(times_a, times_b, strict=True))
    return Latency(
        len(next(iter(feeds.values()))), engine.threads, engine.provider, len(times_a),
        statistics.median(times_a), statistics.median(times_b), ratio,
    )  # fmt: skip


def compare_many(
    engine: Engine, original: Graph, others: Sequence[Graph], samples: Samples, seconds: float = _SECONDS
) -> list[float]:
    """The ratio of each model's time to `original`'s, `seconds` for each, all taking turns.

    Every round starts with the original, whose time of that round is what the others are compared with.
    """
    feeds = _first_batch(samples)
    sessions = [engine.session(graph.program(), spinning=True) for graph in (original, *others)]
    rounds: list[list[float]] = []
    for session in (*sessions, *sessions):
        session.run(feeds)
    start = time.perf_counter()
    while _goes_on(len(rounds), start, seconds * len(others)):
        times = []
        for session in sessions:
            before = time.perf_counter()
            session.run(feeds)
            times.append(time.perf_counter() - before)
        rounds.append(times)
    return [statistics.median(times[at] / times[0] for times in rounds) for at in range(1, len(sessions))]


def _first_batch(samples: Samples) -> dict[str, NDArray[Any]]:
    """The first batch, filled up with itself where the samples are too few."""
    held = next(iter(samples))
    batch = min(samples.batch, max(held.size, _REPEATED))
    return {name: np.resize(array, (batch, *array.shape[1:])) for name, array in held.feeds.items()}


def _goes_on(done: int, start: float, seconds: float) -> bool:
    return done < _ROUNDS[0] or (done < _ROUNDS[1] and time.perf_counter() - start < seconds)


def pass_seconds(engine: Engine, graph: Graph, samples: Samples) -> float:
    """Seconds for one pass of the model over all samples, extrapolated from some of them."""
    session = engine.session(graph.program(), spinning=True)
    seen, seconds = 0, 0.0
    for batch in samples:
        if not seen:
            session.run(batch.feeds)
        start = time.perf_counter()
        session.run(batch.feeds)
        seconds += time.perf_counter() - start
        seen += batch.size
        if seen >= _SAMPLED:
            break
    return seconds * samples.count / max(seen, 1)
