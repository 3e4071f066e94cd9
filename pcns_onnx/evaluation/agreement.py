"""Do two models agree? Output by output, on samples that the solve has not seen.

Per output: relative L2 error |a - b| / |a| over all samples, and the mean cosine between the
two outputs of a sample; of texts, a is taken as 1 and b as 1 where they agree, else 0. For
outputs of floats of shape (N, classes): how often the arg-max is the same; with one label per
sample, the accuracy of both on the first such output. Of outputs that decide something
(`decisions`): how many decisions flip. Bounds for new samples count those that prove something
(`unseen`), and a sample is what is fed, whatever the axis that counts it (`batch_axis`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pcns_onnx.cost.benchmark import Latency, compare_latency
from pcns_onnx.errors import InputError, PcnsError
from pcns_onnx.evaluation.batch_axis import batch_axes, by_sample
from pcns_onnx.evaluation.decisions import DecisionRule, DecisionTally, Kind, decision_rules
from pcns_onnx.evaluation.metric import Metric
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.numerics.confidence import LEAST, quantile_bound, share_bound
from pcns_onnx.progress import Progress
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples

_WORST = 8
"""How many of the samples with the largest errors are named."""


class WorstSample(msgspec.Struct, frozen=True):
    """A sample, counted from 0 in the order of the check, and the relative L2 error of one output there.

    None where the original is zero and the other is not.
    """

    sample: int
    error: float | None


class OutputAgreement(msgspec.Struct, frozen=True):
    """How close one output of B is to the same output of A.

    With 95 % confidence the arg-max differs on at most a share `argmax_bound` of all samples (so that no accuracy
    can drop by more), and 95 % of all samples have a relative error of at most `error_bound`; see `confidence`.
    `worst`: the samples that it errs on most, the worst first. `decision`: what the output decides, and `flips` the
    share of its decisions that differ; `unusual_flips` of those that are not the most common one in both. With
    95 % confidence a share of at most `flip_bound` of all samples is decided otherwise (one decision per sample, other
    than arg-max). `feeds`: how many there were, where its values cannot be told apart by sample.

    None is what is not known: the relative error where the original is zero, the cosine of single numbers.
    """

    name: str
    relative_error: float | None
    cosine: float | None
    argmax_agreement: float | None
    argmax_bound: float | None = None
    error_bound: float | None = None
    worst: list[WorstSample] = []
    decision: Kind | None = None
    flips: float | None = None
    unusual_flips: float | None = None
    flip_bound: float | None = None
    feeds: int | None = None


class Agreement(msgspec.Struct, frozen=True):
    """Agreement of two models. `score_a`, `score_b`: accuracy in percent, or the metric's values.

    `proving`: how many of the samples prove something about new ones, which is what bounds rest on.
    """

    samples: int
    outputs: list[OutputAgreement]
    score: str | None
    score_a: float | None
    score_b: float | None
    proving: int = 0

    @property
    def error(self) -> float:
        """The largest relative error of any output; NaN where nothing was compared, or one is not known."""
        known = [o.relative_error for o in self.outputs if o.relative_error is not None]
        return max(known) if known and len(known) == len(self.outputs) else float("nan")

    @property
    def drop(self) -> float | None:
        """Points lost: score of A minus score of B."""
        if self.score_a is None or self.score_b is None:
            return None
        return self.score_a - self.score_b


UNCHECKED = Agreement(0, [], None, None, None)
"""Where there were no samples to run."""


class _Tally:
    def __init__(self, name: str, axis: int | None, rule: DecisionRule | None) -> None:
        self.name, self.axis = name, axis
        self.decisions = None if rule is None else DecisionTally(rule)
        self.missed = self.size = self.cosine = 0.0
        self.angles = self.rows = self.same = 0
        self.classes = self.by_feed = self.is_number = False
        self.errors: list[NDArray[np.float64]] = []
        self.differs: list[NDArray[np.bool_]] = []
        self.proving: list[NDArray[np.bool_]] = []

    def update(self, a: NDArray[Any], b: NDArray[Any], proving: NDArray[np.bool_]) -> None:
        """Add a batch; `proving` (samples,) says which of its samples count for bounds."""
        if a.shape != b.shape:
            raise InputError(f"output '{self.name}' has shape {a.shape} in one model and {b.shape} in the other")
        flips = None if self.decisions is None else self.decisions.update(a, b)
        if a.dtype.kind in "OSU":
            a, b = np.ones(a.shape, dtype=np.int64), np.asarray(a == b, dtype=np.int64)
        x, y = (by_sample(values, self.axis, len(proving)) for values in (a, b))
        self.by_feed |= len(x) != len(proving)
        proving = proving if len(x) == len(proving) else np.array([proving.all()])
        norm, distance = np.linalg.norm(x, axis=1), np.linalg.norm(x - y, axis=1)
        self.missed += float((distance**2).sum())
        self.size += float((norm**2).sum())
        self.is_number = x.shape[1] == 1
        size = np.ones_like(norm) if self.is_number else norm
        of_zero = np.where(distance > 0, np.inf, 0.0)
        self.errors.append(np.where(size > 0, distance / np.where(size > 0, size, 1.0), of_zero))
        self._add_cosines(x, y)
        by_row = self.axis == 0 or len(proving) == 1
        self.classes = by_row and a.ndim == 2 and a.shape[1] > 1 and a.dtype.kind == "f"
        if self.classes:
            same = a.argmax(axis=1) == b.argmax(axis=1)
            self.rows, self.same = self.rows + len(same), self.same + int(same.sum())
            flips = ~same
        if flips is not None and len(flips) == len(x):
            self.differs.append(flips)
        self.proving.append(proving)

    def _add_cosines(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        """A single number has a sign and no direction, and nothing has none."""
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        directed = (np.abs(x).max(axis=1, initial=0) > 0) | (np.abs(y).max(axis=1, initial=0) > 0)
        if x.shape[1] > 1:
            self.cosine += float(((x * y).sum(axis=1) / np.maximum(norms, 1e-300))[directed].sum())
            self.angles += int(directed.sum())

    def result(self) -> OutputAgreement:
        decided = self.decisions if self.decisions is not None and self.decisions.count else None
        share, error = self._bounds()
        return OutputAgreement(
            self.name,
            (self.missed / self.size) ** 0.5 if self.size else (None if self.missed else 0.0),
            self.cosine / self.angles if self.angles else None,
            self.same / self.rows if self.classes and self.rows else None,
            share if self.classes else None,
            error,
            self.worst(),
            None if decided is None else decided.rule.kind,
            None if decided is None else decided.share,
            None if decided is None else decided.share_of_unusual,
            None if self.classes else share,
            sum(map(len, self.proving)) if self.by_feed else None,
        )

    def _by_sample(self) -> NDArray[np.float64]:
        """(samples,): relative to each own norm; of single numbers, which may be near 0, to their size overall."""
        errors = np.concatenate(self.errors)
        size = (self.size / len(errors)) ** 0.5 if self.is_number else 1.0
        return errors / size if size else np.where(errors > 0, np.inf, 0.0)

    def _bounds(self) -> tuple[float | None, float | None]:
        """For new samples: the share that is decided otherwise, and what 95 % of them err by at most."""
        proving = np.concatenate(self.proving) if self.proving else np.zeros(0, dtype=np.bool_)
        if proving.sum() < LEAST:
            return None, None
        differs = np.concatenate(self.differs) if self.differs else np.zeros(0, dtype=np.bool_)
        share = None
        if len(differs) == len(proving):
            share = share_bound(int(differs[proving].sum()), int(proving.sum()))
        error = quantile_bound(self._by_sample()[proving])
        return share, error if error is not None and np.isfinite(error) else None

    def worst(self) -> list[WorstSample]:
        if not self.errors:
            return []
        errors = self._by_sample()
        worst = [int(i) for i in np.argsort(-errors, kind="stable")[:_WORST]]
        return [WorstSample(i, float(errors[i]) if np.isfinite(errors[i]) else None) for i in worst]


def compare_outputs(
    engine: Engine,
    a: Graph,
    b: Graph,
    samples: Samples,
    metric: Metric | None,
    progress: Progress,
    proving: NDArray[np.bool_] | None = None,
) -> Agreement:
    """Run both models on `samples`; raises `InputError` where their outputs cannot be compared.

    `proving` (samples,): which of them prove something about new ones; without it no bounds are given.
    """
    names = [spec.name for spec in a.outputs]
    if names != [spec.name for spec in b.outputs]:
        raise InputError(f"the models have different outputs: {names} and {[s.name for s in b.outputs]}")
    first, second = engine.session(a.program()), engine.session(b.program())
    tallies, rules = list[_Tally](), decision_rules(a)
    scores, count, scored = [0.0, 0.0], 0, False
    for batch in progress.track(samples, "verify", samples.batches):
        left = {k: to_numpy(v) for k, v in first.run(batch.feeds).items()}
        right = {k: to_numpy(v) for k, v in second.run(batch.feeds).items()}
        if not tallies:
            axes = batch_axes(first, batch.feeds, left, batch.size, fixed=samples.fixed)
            tallies = [_Tally(name, axes[name], rules.get(name)) for name in names]
        counted = np.zeros(batch.size, np.bool_) if proving is None else proving[count : count + batch.size]
        for tally in tallies:
            tally.update(left[tally.name], right[tally.name], counted)
        count += batch.size
        classes = next((t.name for t in tallies if t.classes and len(left[t.name]) == batch.size), None)
        labels = None if batch.labels is None else batch.labels.reshape(batch.size, -1)
        for side, outputs in enumerate((left, right)):
            if metric is not None:
                scores[side] += batch.size * _score(metric, outputs, batch.labels)
            elif labels is not None and labels.shape[1] == 1 and classes is not None:
                scored = True
                scores[side] += 100.0 * int((outputs[classes].argmax(axis=1) == labels[:, 0]).sum())
    if not count:
        raise InputError("there is no sample to verify on: give more data, a smaller --batch, or --eval")
    kind = "metric" if metric is not None else "accuracy" if scored else None
    a_score, b_score = (scores[0] / count, scores[1] / count) if kind else (None, None)
    counting = 0 if proving is None else int(proving.sum())
    return Agreement(count, [t.result() for t in tallies], kind, a_score, b_score, counting)


def _score(metric: Metric, outputs: Mapping[str, NDArray[Any]], labels: NDArray[Any] | None) -> float:
    try:
        return float(metric(outputs, labels))
    except PcnsError:
        raise
    except Exception as error:  # a user's function may raise anything
        raise InputError(f"the metric failed: {type(error).__name__}: {error}") from error


def _runnable(graph: Graph) -> Graph:
    return graph.as_float32() if graph.storage == "bfloat16" else graph


def verify(
    engine: Engine,
    a: Graph,
    b: Graph,
    samples: Samples,
    metric: Metric | None,
    progress: Progress,
    proving: NDArray[np.bool_] | None = None,
) -> tuple[Agreement, list[str]]:
    """Agreement of two models on `samples`, and what a reader of it must be warned of; see `compare_outputs`."""
    warnings = []
    if "bfloat16" in (a.storage, b.storage):
        warnings.append("onnxruntime has no bfloat16 kernels on CPU: outputs and latency are of float32 twins")
    return compare_outputs(engine, _runnable(a), _runnable(b), samples, metric, progress, proving), warnings


def time_both(engine: Engine, a: Graph, b: Graph, samples: Samples, progress: Progress) -> Latency:
    """Latency of both models, as a stage of the run."""
    with progress.stage("latency"):
        return compare_latency(engine, _runnable(a), _runnable(b), samples)
