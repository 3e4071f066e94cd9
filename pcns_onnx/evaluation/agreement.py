"""Do two models agree? Output by output, on samples that the solve has not seen.

Per output: relative L2 error |a - b| / |a| over all samples, and the mean cosine between the
two outputs of a sample; of texts, a is taken as 1 and b as 1 where they agree, else 0. For
outputs of floats of shape (N, classes): how often the arg-max is the same; with one label per
sample, the accuracy of both on the first such output.
"""

from __future__ import annotations

from math import isnan
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pcns_onnx.cost.benchmark import Latency, compare_latency
from pcns_onnx.errors import InputError
from pcns_onnx.evaluation.metric import Metric, Score
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.numerics.confidence import quantile_bound, share_bound
from pcns_onnx.progress import Progress
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples

_WORST = 8
"""How many of the samples with the largest errors are named."""


class WorstSample(msgspec.Struct, frozen=True):
    """A sample, counted from 0 in the order of the check, and the relative L2 error of one output there."""

    sample: int
    error: float


class OutputAgreement(msgspec.Struct, frozen=True):
    """How close one output of B is to the same output of A.

    With 95 % confidence the arg-max differs on at most a share `argmax_bound` of all samples (so that no accuracy
    can drop by more), and 95 % of all samples have a relative error of at most `error_bound`; see `bounds`.
    `worst`: the samples that it errs on most, the worst first.
    """

    name: str
    relative_error: float
    cosine: float
    argmax_agreement: float | None
    argmax_bound: float | None = None
    error_bound: float | None = None
    worst: list[WorstSample] = []


class Agreement(msgspec.Struct, frozen=True):
    """Agreement of two models. `score_a`, `score_b`: accuracy in percent, or the metric's values."""

    samples: int
    outputs: list[OutputAgreement]
    score: str | None
    score_a: float | None
    score_b: float | None

    def unproved(self) -> Agreement:
        """Without bounds: the samples were seen by the solve, and prove nothing about others."""
        plain = [msgspec.structs.replace(o, argmax_bound=None, error_bound=None) for o in self.outputs]
        return msgspec.structs.replace(self, outputs=plain)

    @property
    def error(self) -> float:
        """The largest relative error of any output; NaN where nothing was compared."""
        return max((o.relative_error for o in self.outputs), default=float("nan"))

    @property
    def drop(self) -> float | None:
        """Points lost: score of A minus score of B."""
        if self.score_a is None or self.score_b is None:
            return None
        return self.score_a - self.score_b


UNCHECKED = Agreement(0, [], None, None, None)
"""Where there were no samples to run."""


class _Tally:
    def __init__(self, name: str) -> None:
        self.name = name
        self.missed = self.size = self.cosine = 0.0
        self.samples = self.same = 0
        self.classes = False
        self.errors: list[NDArray[np.float64]] = []

    def update(self, a: NDArray[Any], b: NDArray[Any]) -> None:
        if a.shape != b.shape:
            raise InputError(f"output '{self.name}' has shape {a.shape} in one model and {b.shape} in the other")
        count = a.shape[0] if a.ndim else 1
        if a.dtype.kind in "OSU":
            a, b = np.ones(a.shape, dtype=np.int64), np.asarray(a == b, dtype=np.int64)
        x = a.astype(np.float64).reshape(count, -1)
        y = b.astype(np.float64).reshape(count, -1)
        self.missed += float(((x - y) ** 2).sum())
        self.size += float((x**2).sum())
        self.errors.append(np.linalg.norm(x - y, axis=1) / np.maximum(np.linalg.norm(x, axis=1), 1e-300))
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        both_zero = (np.abs(x).max(axis=1, initial=0) == 0) & (np.abs(y).max(axis=1, initial=0) == 0)
        self.cosine += float(np.where(both_zero, 1.0, (x * y).sum(axis=1) / np.maximum(norms, 1e-300)).sum())
        self.samples += count
        self.classes = a.ndim == 2 and a.shape[1] > 1 and a.dtype.kind == "f"
        if self.classes:
            self.same += int((x.argmax(axis=1) == y.argmax(axis=1)).sum())

    def result(self) -> OutputAgreement:
        return OutputAgreement(
            self.name,
            (self.missed / self.size) ** 0.5 if self.size else float(self.missed > 0),
            self.cosine / max(self.samples, 1),
            self.same / max(self.samples, 1) if self.classes else None,
            share_bound(self.samples - self.same, self.samples) if self.classes else None,
            quantile_bound(np.concatenate(self.errors)) if self.errors else None,
            self.worst(),
        )

    def worst(self) -> list[WorstSample]:
        if not self.errors:
            return []
        errors = np.concatenate(self.errors)
        return [WorstSample(int(i), float(errors[i])) for i in np.argsort(-errors, kind="stable")[:_WORST]]


def compare_outputs(
    engine: Engine, a: Graph, b: Graph, samples: Samples, metric: Metric | None, progress: Progress
) -> Agreement:
    """Run both models on `samples`; raises `InputError` where their outputs cannot be compared."""
    names = [spec.name for spec in a.outputs]
    if names != [spec.name for spec in b.outputs]:
        raise InputError(f"the models have different outputs: {names} and {[s.name for s in b.outputs]}")
    first, second = engine.session(a.program()), engine.session(b.program())
    tallies = [_Tally(name) for name in names]
    scores, count, scored = [0.0, 0.0], 0, False
    judged = [] if metric is None else [Score(metric), Score(metric)]
    for batch in progress.track(samples, "verify", samples.batches):
        left = {k: to_numpy(v) for k, v in first.run(batch.feeds).items()}
        right = {k: to_numpy(v) for k, v in second.run(batch.feeds).items()}
        for tally in tallies:
            tally.update(left[tally.name], right[tally.name])
        count += batch.size
        classes = next((t.name for t in tallies if t.classes and len(left[t.name]) == batch.size), None)
        labels = None if batch.labels is None else batch.labels.reshape(batch.size, -1)
        for side, outputs in enumerate((left, right)):
            if judged:
                judged[side].add(outputs, batch.labels, left, batch.size)
            elif labels is not None and labels.shape[1] == 1 and classes is not None:
                scored = True
                scores[side] += 100.0 * int((outputs[classes].argmax(axis=1) == labels[:, 0]).sum())
    if not count:
        raise InputError("there is no sample to verify on: give more data, a smaller --batch, or --eval")
    kind = "metric" if judged else "accuracy" if scored else None
    values = [score.value for score in judged] or [score / count for score in scores]
    a_score, b_score = values if kind else (None, None)
    return Agreement(count, [t.result() for t in tallies], kind, a_score, b_score)


def _runnable(graph: Graph) -> Graph:
    return graph.as_float32() if graph.storage == "bfloat16" else graph


def verify(
    engine: Engine, a: Graph, b: Graph, samples: Samples, metric: Metric | None, progress: Progress
) -> tuple[Agreement, list[str]]:
    """Agreement of two models on `samples`, and what a reader of it must be warned of."""
    warnings = []
    if "bfloat16" in (a.storage, b.storage):
        warnings.append("onnxruntime has no bfloat16 kernels on CPU: outputs and latency are of float32 twins")
    agreement = compare_outputs(engine, _runnable(a), _runnable(b), samples, metric, progress)
    if agreement.drop is not None and isnan(agreement.drop):
        warnings.append("the metric is no number: the original decides nothing on these samples that it could count")
    return agreement, warnings


def own_score(engine: Engine, graph: Graph, samples: Samples, metric: Metric) -> float:
    """What the metric says of a model against itself on one batch; raises `InputError` where it does not fit."""
    batch = next(iter(samples), None)
    if batch is None:
        return float("nan")
    outputs = {k: to_numpy(v) for k, v in engine.session(_runnable(graph).program()).run(batch.feeds).items()}
    score = Score(metric)
    score.add(outputs, batch.labels, outputs, batch.size)
    return score.value


def time_both(engine: Engine, a: Graph, b: Graph, samples: Samples, progress: Progress) -> Latency:
    """Latency of both models, as a stage of the run."""
    with progress.stage("latency"):
        return compare_latency(engine, _runnable(a), _runnable(b), samples)
