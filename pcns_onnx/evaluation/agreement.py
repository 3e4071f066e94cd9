"""Do two models agree? Output by output, on samples that the solve has not seen.

Per output: relative L2 error |a - b| / |a| over all samples, and the mean cosine between the
two outputs of a sample; of texts, a is taken as 1 and b as 1 where they agree, else 0. For
outputs of floats of shape (N, classes): how often the arg-max is the same; with one label per
sample, the accuracy of both on the first such output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pcns_onnx.cost.benchmark import Latency, compare_latency
from pcns_onnx.dependency.data_dependence import DataDependence
from pcns_onnx.errors import InputError, PcnsError
from pcns_onnx.evaluation.counts import Counts, CountTally, as_array
from pcns_onnx.evaluation.metric import Metric
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import to_numpy, without_common_infinities
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
    `worst`: the samples that it errs on most, the worst first. `counts`: where both find different numbers of rows,
    in place of errors, which are NaN then; tensors in front of the output are compared instead, with the name of the
    output that each `stands_for`.
    """

    name: str
    relative_error: float
    cosine: float
    argmax_agreement: float | None
    argmax_bound: float | None = None
    error_bound: float | None = None
    worst: list[WorstSample] = []
    counts: Counts | None = None
    stands_for: str | None = None


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
        """The largest relative error of any output, or of what stands for it; NaN where nothing was compared."""
        return max((o.relative_error for o in self.outputs if o.counts is None), default=float("nan"))

    @property
    def drop(self) -> float | None:
        """Points lost: score of A minus score of B."""
        if self.score_a is None or self.score_b is None:
            return None
        return self.score_a - self.score_b


UNCHECKED = Agreement(0, [], None, None, None)
"""Where there were no samples to run."""


class _Tally:
    def __init__(self, name: str, *, is_counted: bool = False, stands_for: str | None = None) -> None:
        self.name, self.stands_for = name, stands_for
        self.counted = CountTally() if is_counted else None
        self.missed = self.size = self.cosine = 0.0
        self.samples = self.same = 0
        self.classes = False
        self.errors: list[NDArray[np.float64]] = []

    def update(self, a: NDArray[Any], b: NDArray[Any]) -> None:
        if self.counted is not None:
            self.counted.update(a.shape, b.shape)
        if a.shape != b.shape:
            if self.counted is not None:
                return
            raise InputError(f"output '{self.name}' has shape {a.shape} in one model and {b.shape} in the other")
        if not a.size:
            return
        count = a.shape[0] if a.ndim else 1
        if a.dtype.kind in "OSU":
            a, b = np.ones(a.shape, dtype=np.int64), np.asarray(a == b, dtype=np.int64)
        x, y = without_common_infinities(*(side.astype(np.float64).reshape(count, -1) for side in (a, b)))
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
        counts = None if self.counted is None else self.counted.result()
        if counts is not None:
            return OutputAgreement(self.name, math.nan, math.nan, None, counts=counts)
        return OutputAgreement(
            self.name,
            (self.missed / self.size) ** 0.5 if self.size else float(self.missed > 0),
            self.cosine / self.samples if self.samples else 1.0,
            self.same / self.samples if self.classes else None,
            share_bound(self.samples - self.same, self.samples) if self.classes else None,
            quantile_bound(np.concatenate(self.errors)) if self.errors else None,
            self.worst(),
            stands_for=self.stands_for,
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
    dependence = DataDependence(a)
    fronts, counted = _fronts(a, b, dependence), dependence.counted | dependence.strange | a.containers
    first, second = (engine.session((graph.exposing(fronts) if fronts else graph).program()) for graph in (a, b))
    tallies = [_Tally(name, is_counted=name in counted) for name in names]
    stand_ins = [_Tally(name, is_counted=True, stands_for=output) for name, output in fronts.items()]
    scores, count, scored = [0.0, 0.0], 0, False
    for batch in progress.track(samples, "verify", samples.batches):
        left, right = first.run(batch.feeds), second.run(batch.feeds)
        for tally in (*tallies, *stand_ins):
            tally.update(as_array(left[tally.name]), as_array(right[tally.name]))
        left, right = ({name: _on_host(side[name]) for name in names} for side in (left, right))
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
    comparable = [result for tally in stand_ins if (result := tally.result()).counts is None]
    return Agreement(count, [*(tally.result() for tally in tallies), *comparable], kind, a_score, b_score)


def _fronts(a: Graph, b: Graph, dependence: DataDependence) -> dict[str, str]:
    """What stands in front of counted outputs in both models, by name, with the first output that it stands for."""
    outputs, fronts = {spec.name for spec in a.outputs}, dict[str, str]()
    for output, names in dependence.judged.items():
        for name in names if output in dependence.counted else ():
            if name in b.producers and name not in outputs:
                fronts.setdefault(name, output)
    return fronts


def _on_host(value: Any) -> Any:
    return to_numpy(value) if hasattr(value, "shape") else value


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
    engine: Engine, a: Graph, b: Graph, samples: Samples, metric: Metric | None, progress: Progress
) -> tuple[Agreement, list[str]]:
    """Agreement of two models on `samples`, and what a reader of it must be warned of."""
    warnings = []
    if "bfloat16" in (a.storage, b.storage):
        warnings.append("onnxruntime has no bfloat16 kernels on CPU: outputs and latency are of float32 twins")
    agreement = compare_outputs(engine, _runnable(a), _runnable(b), samples, metric, progress)
    return agreement, warnings + _differing(agreement)


def _differing(agreement: Agreement) -> list[str]:
    """What is said of outputs that could not be compared number by number."""
    texts = []
    for output in agreement.outputs:
        if output.counts is not None:
            counts = output.counts
            fronts = ", ".join(f"'{other.name}'" for other in agreement.outputs if other.stands_for == output.name)
            instead = f"compared instead is what stands in front of it: {fronts}" if fronts else "no error is known"
            texts.append(
                f"output '{output.name}' holds what is found, {counts.b:.4g} on average and {counts.a:.4g} in the "
                f"original, as much in {counts.same:.1%} of the runs; {instead}"
            )
    return texts


def time_both(engine: Engine, a: Graph, b: Graph, samples: Samples, progress: Progress) -> Latency:
    """Latency of both models, as a stage of the run."""
    with progress.stage("latency"):
        return compare_latency(engine, _runnable(a), _runnable(b), samples)
