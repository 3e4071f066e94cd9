"""Latency of two models in onnxruntime: interleaved runs, medians, and the ratio pair by pair.

Runs alternate A B A B, so that a machine whose speed drifts slows both; the ratio is the
median of the ratios of neighbours. Sessions have onnxruntime's default options but for the
number of threads, which is what a deployment would see.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import msgspec

from pcns_onnx.backend import Array
from pcns_onnx.graph import Graph
from pcns_onnx.runtime import Engine

_SECONDS = 2.0
_ROUNDS = (7, 200)


class Latency(msgspec.Struct, frozen=True):
    """Median seconds per batch of both models, and the median ratio B / A."""

    batch: int
    threads: int
    provider: str
    rounds: int
    seconds_a: float
    seconds_b: float
    ratio: float


def compare_latency(
    engine: Engine, a: Graph, b: Graph, feeds: Mapping[str, Array], batch: int, seconds: float = _SECONDS
) -> Latency:
    """Time both models on the same feeds for about `seconds` in all."""
    first = engine.session(a.serialize(), spinning=True)
    second = engine.session(b.serialize(), spinning=True)
    for _ in range(2):
        first.run(feeds)
        second.run(feeds)
    times_a, times_b = list[float](), list[float]()
    start = time.perf_counter()
    while len(times_a) < _ROUNDS[0] or (len(times_a) < _ROUNDS[1] and time.perf_counter() - start < seconds):
        t0 = time.perf_counter()
        first.run(feeds)
        t1 = time.perf_counter()
        second.run(feeds)
        t2 = time.perf_counter()
        times_a.append(t1 - t0)
        times_b.append(t2 - t1)
    ratio = statistics.median(y / x for x, y in zip(times_a, times_b, strict=True))
    return Latency(
        batch, engine.threads, engine.provider, len(times_a),
        statistics.median(times_a), statistics.median(times_b), ratio,
    )  # fmt: skip
