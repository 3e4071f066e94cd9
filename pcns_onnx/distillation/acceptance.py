"""Whether the healed model is taken: by samples kept aside, which it has not learnt from.

Both models, the healed one and the one before, are run by onnxruntime beside the original. Their differences are
paired, sample by sample, and what is worse beyond chance is not taken (one-sided, 95 %):

    decisions    z = (lost - gained) / sqrt(lost + gained) >= 1.64        (McNemar)
    errors       z = mean d / (sd d / sqrt n) >= 1.64,  d = e_after² - e_before²

Lost and gained are counted against labels where there are any, and against the original where not: of an output that
holds classes, whether they agree on the class; of all others, the squared error, each channel in its own scale. What
is padding counts for nothing. A
`--metric` must not fall. `strict` asks, besides, that the loss itself falls, and so does a check on fewer than 20
samples, which proves nothing, and a start that misses nothing. Without labels only faithfulness can be judged, not
accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.output_layout import OutputLayout
from pcns_onnx.data.batch import Batch
from pcns_onnx.data.padding import Live
from pcns_onnx.distillation.options import AcceptChoice
from pcns_onnx.evaluation.agreement import comparison_form
from pcns_onnx.evaluation.counts import on_host
from pcns_onnx.evaluation.healing import Verdict
from pcns_onnx.evaluation.metric import Metric, Score
from pcns_onnx.evaluation.original import Original
from pcns_onnx.evaluation.output_tally import OutputTally
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.numerics.confidence import LEAST
from pcns_onnx.progress import Progress
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples

CHANCE = 1.64
"""Standard errors that a difference may be by chance."""
SAME = 1e-6
"""A loss at the start, as a share of what saying the mean misses, below which nothing is left to learn."""

_Values = tuple[float | None, float | None]


@dataclass(frozen=True)
class PairedTrial:
    """What is compared: the original, the model before healing and the healed one, on samples kept aside.

    `features` are outputs whose columns are no classes.
    """

    engine: Engine
    original: Graph
    before: Graph
    after: Graph
    samples: Samples
    layout: OutputLayout
    metric: Metric | None
    features: frozenset[str] = frozenset()

    def verdict(self, choice: AcceptChoice, losses: tuple[float, float], progress: Progress) -> Verdict:
        """Run all three; `losses` are those of the model before and after."""
        form = comparison_form(self.samples, [spec.name for spec in self.original.outputs], self.metric)
        samples = self.samples.formed(form)
        original = Original(self.engine, _runnable(self.original), self.before, samples, self.layout, leaves_out=True)
        before, after = (_Side(original, self.metric, self.features) for _ in range(2))
        sessions = [self.engine.session(_exposed(graph, before).program()) for graph in (self.before, self.after)]
        for index, batch in enumerate(progress.track(samples, "judge the healed model", samples.batches)):
            expected = original.outputs(index, batch)
            for side, session in zip((before, after), sessions, strict=True):
                side.add(expected, session.run(batch.feeds), batch, original.live(batch))
        return _judged(before, after, choice, losses, self.samples.count)


def _exposed(graph: Graph, side: _Side) -> Graph:
    graph = _runnable(graph)
    return graph.exposing(side.original.fronts) if side.original.fronts else graph


def _runnable(graph: Graph) -> Graph:
    return graph.as_float32() if graph.storage == "bfloat16" else graph


class _Side:
    """How one of the two models compares with the original, and with labels."""

    def __init__(self, original: Original, metric: Metric | None, features: frozenset[str]) -> None:
        self.original, self.features = original, features
        self.tallies = original.tallies()
        self.score = None if metric is None else Score(metric)
        self.right: list[NDArray[np.bool_]] = []

    def add(self, expected: Mapping[str, Any], outputs: Mapping[str, Any], batch: Batch, live: Live | None) -> None:
        labels, size = batch.labels, batch.size
        proving = np.ones(size, dtype=np.bool_)
        a = {tally.name: on_host(expected[tally.name]) for tally in self.tallies}
        b = {tally.name: on_host(outputs[tally.name]) for tally in self.tallies}
        for tally in self.tallies:
            tally.update(a[tally.name], b[tally.name], proving, live=live)
        if self.score is not None:
            names = [tally.name for tally in self.tallies if tally.stands_for is None]
            left, right = ({name: to_numpy(side[name]) for name in names} for side in (a, b))
            self.score.add(right, labels, left, size)
        classes = next(
            (t.name for t in self.tallies if t.classes and not t.stands_for and len(b[t.name]) == size), None
        )
        if labels is not None and classes is not None and labels.size == size:
            self.right.append(np.asarray(b[classes].argmax(axis=1) == labels.reshape(-1)))

    @property
    def knows_labels(self) -> bool:
        return bool(self.right)


def _judged(before: _Side, after: _Side, choice: AcceptChoice, losses: tuple[float, float], count: int) -> Verdict:
    lost = gained = 0
    values: _Values = (None, None)
    z, by, figure = -np.inf, "agreement", ""
    if choice == "auto" and before.score is not None and after.score is not None:
        values, by = (before.score.value, after.score.value), "metric"
        figure = "the metric"
        z = 0.0 if after.score.value >= before.score.value else np.inf
    elif choice == "auto" and before.knows_labels and after.knows_labels:
        first, second = (np.concatenate(side.right) for side in (before, after))
        lost, gained = int((first & ~second).sum()), int((~first & second).sum())
        z, by, values = _paired(lost, gained), "labels", (100 * float(first.mean()), 100 * float(second.mean()))
        figure = "accuracy (%)"
    else:
        for tallies in zip(before.tallies, after.tallies, strict=True):
            has_classes = tallies[0].classes and bool(tallies[0].differs)  # not where each position has classes
            one = _of_output(*tallies, has_classes=has_classes and tallies[0].name not in before.features)
            if one.z > z or values == (None, None):
                z, values, figure = one.z, one.values, one.figure
            lost, gained = lost + one.lost, gained + one.gained
    z = max(z, -1e9)
    falls = losses[1] <= losses[0]
    few = by == "agreement" and count < LEAST
    has_to_fall = few or choice == "strict" or losses[0] < SAME
    accepted = z < CHANCE and np.isfinite(losses[1]) and (falls or not has_to_fall)
    reason = _reason(bool(accepted), by, z, values, falls=falls)
    return Verdict(bool(accepted), reason, by, count, *values, lost, gained, float(z), *losses, figure)


@dataclass(frozen=True)
class _Difference:
    z: float
    values: _Values
    figure: str = ""
    lost: int = 0
    gained: int = 0


def _of_output(before: OutputTally, after: OutputTally, *, has_classes: bool) -> _Difference:
    """How one output of both compares with the original's."""
    nothing = _Difference(-np.inf, (None, None))
    if not before.errors or not after.errors or not before.scale.importance:
        return nothing
    if has_classes:
        first, second = (np.concatenate(tally.differs) for tally in (before, after))
        lost, gained = int((~first & second).sum()), int((first & ~second).sum())
        return _Difference(
            _paired(lost, gained),
            (100 * float(1 - first.mean()), 100 * float(1 - second.mean())),
            "agreement with the original (%)",
            lost,
            gained,
        )
    errors = [np.concatenate(tally.errors) ** 2 for tally in (before, after)]
    if len(errors[0]) != len(errors[1]) or not all(np.isfinite(side).all() for side in errors):
        return nothing if np.isfinite(errors[1]).all() else _Difference(np.inf, (None, None))
    difference = errors[1] - errors[0]
    spread = float(difference.std()) / sqrt(len(difference))
    mean = float(difference.mean())
    z = mean / spread if spread else float(np.sign(mean)) * np.inf if mean else 0.0
    return _Difference(z, (float(sqrt(errors[0].mean())), float(sqrt(errors[1].mean()))), "relative error")


def _paired(lost: int, gained: int) -> float:
    return (lost - gained) / sqrt(lost + gained) if lost + gained else 0.0


def _reason(accepted: bool, by: str, z: float, values: _Values, *, falls: bool) -> str:
    where = {"labels": "right", "metric": "", "agreement": "like the original"}[by]
    if accepted:
        return "not worse beyond chance" if by != "metric" else "the metric does not fall"
    if by == "metric" and not all(value is not None and isfinite(value) for value in values):
        return "the metric is no number on the samples kept aside"
    if z >= CHANCE:
        return "the metric falls" if by == "metric" else f"less often {where}, or further off, beyond chance"
    return "the loss does not fall" if not falls else "the loss is no number"


def aside_share(count: int) -> float:
    """The share of so many samples that is kept aside to judge by: a tenth, at least 100 if that is no more than a
    quarter, at most 2,000."""
    return min(max(0.1, min(100 / max(count, 1), 0.25)), max(2000 / max(count, 1), 1e-3))
