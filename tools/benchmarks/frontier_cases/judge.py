"""One evaluator for all: accuracy on test data, cost, and latency in onnxruntime against the original.

Runs of both models alternate, A B A B, and the ratio is the median of the ratios of neighbours: a machine whose speed
drifts slows both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import pcns_onnx  # noqa: F401  # isort: skip  # before onnxruntime, whose telemetry it switches off
import msgspec
import numpy as np
import onnx
import onnxruntime

from benchmarks.frontier_cases.counting import Cost, cost

_BATCH = 250
_ROUNDS = (15, 300)
_SECONDS = 3.0


class Verdict(msgspec.Struct):
    """Accuracy in per cent; the rest are ratios to the original, latency by batch size."""

    accuracy: float
    macs: float
    parameters: float
    file: float
    latency: dict[str, float]


class Judge:
    """Knows a case's original model and its test data (`input`, `labels`)."""

    def __init__(self, original: Path, test: Path, threads: int, batches: Sequence[int]) -> None:
        with np.load(test) as data:
            self._inputs, self._labels = data["input"], data["labels"]
        self._threads = threads
        self._batches = batches
        self._original = original
        self._session = self._load(original)
        self._cost = _cost(original)
        self.base = self._accuracy(self._session)

    def __call__(self, model: Path) -> Verdict:
        """Judge a model; raises whatever onnxruntime raises where it does not run."""
        session, spent = self._load(model), _cost(model)
        return Verdict(
            accuracy=self._accuracy(session),
            macs=spent.macs / self._cost.macs,
            parameters=spent.parameters / self._cost.parameters,
            file=model.stat().st_size / self._original.stat().st_size,
            latency={str(batch): self._latency(session, batch) for batch in self._batches},
        )

    def _load(self, model: Path) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def _accuracy(self, session: onnxruntime.InferenceSession) -> float:
        hits = sum(
            int((self._run(session, start, _BATCH).argmax(1) == self._labels[start : start + _BATCH]).sum())
            for start in range(0, len(self._labels), _BATCH)
        )
        return 100 * hits / len(self._labels)

    def _run(self, session: onnxruntime.InferenceSession, start: int, count: int) -> np.ndarray:
        name = session.get_inputs()[0].name
        outputs: np.ndarray = session.run(None, {name: self._inputs[start : start + count]})[0]
        return outputs

    def _latency(self, session: onnxruntime.InferenceSession, batch: int) -> float:
        for warm in (self._session, session) * 3:
            self._run(warm, 0, batch)
        ratios = list[float]()
        begin = time.perf_counter()
        while len(ratios) < _ROUNDS[0] or (len(ratios) < _ROUNDS[1] and time.perf_counter() - begin < _SECONDS):
            start = time.perf_counter()
            self._run(self._session, 0, batch)
            middle = time.perf_counter()
            self._run(session, 0, batch)
            ratios.append((time.perf_counter() - middle) / (middle - start))
        return statistics.median(ratios)


def _cost(model: Path) -> Cost:
    return cost(onnx.load(model))
