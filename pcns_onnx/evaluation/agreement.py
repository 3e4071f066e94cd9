"""Do two models agree? Output by output, on samples that the solve has not seen.

Per output (`output_tally`): the relative error, each channel in its own scale (`calibration.output_scale`), and the
mean cosine between the two outputs of a sample. For
outputs of floats of shape (N, classes): how often the arg-max is the same; with one label per
sample, the accuracy of both on the first such output. Of outputs that decide something
(`decisions`): how many decisions flip. Bounds for new samples count those that prove something
(`unseen`), and a sample is what is fed, whatever the axis that counts it (`batch_axis`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isnan
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.output_layout import OutputLayout
from pcns_onnx.cost.benchmark import Latency, compare_latency
from pcns_onnx.errors import InputError, PcnsError
from pcns_onnx.evaluation.counts import on_host
from pcns_onnx.evaluation.metric import Metric, Score
from pcns_onnx.evaluation.original import Original
from pcns_onnx.evaluation.output_tally import OutputAgreement
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.progress import Progress
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Form, Samples
from pcns_onnx.runtime.targets.registry import ONNXRUNTIME
from pcns_onnx.runtime.targets.timer import target_of


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
        """The largest relative error of any output that counts, or of what stands for it.

        NaN where nothing was compared, or one is not known.
        """
        compared = [o for o in self.outputs if o.counts is None and o.weight > 0]
        known = [o.relative_error for o in compared if o.relative_error is not None]
        return max(known) if known and len(known) == len(compared) else float("nan")

    @property
    def drop(self) -> float | None:
        """Points lost: score of A minus score of B."""
        if self.score_a is None or self.score_b is None:
            return None
        return self.score_a - self.score_b


UNCHECKED = Agreement(0, [], None, None, None)
"""Where there were no samples to run."""


def compare_outputs(
    engine: Engine,
    a: Graph,
    b: Graph,
    samples: Samples,
    metric: Metric | None,
    progress: Progress,
    proving: NDArray[np.bool_] | None = None,
    layout: OutputLayout | None = None,
) -> Agreement:
    """Run both models on `samples`; raises `InputError` where their outputs cannot be compared.

    `proving` (samples,): which of them prove something about new ones; without it no bounds are given. `layout`: where
    the outputs have their channels, and how much each counts.
    """
    names = [spec.name for spec in a.outputs]
    if names != [spec.name for spec in b.outputs]:
        raise InputError(f"the models have different outputs: {names} and {[s.name for s in b.outputs]}")
    samples = samples.formed(comparison_form(samples, names, metric))
    original = Original(engine, a, b, samples, layout or OutputLayout(), leaves_out=True)
    second = engine.session((b.exposing(original.fronts) if original.fronts else b).program())
    tallies = original.tallies()
    scores, count, scored = [0.0, 0.0], 0, False
    judged = [] if metric is None else [Score(metric), Score(metric)]
    for index, batch in enumerate(progress.track(samples, "verify", samples.batches)):
        left, right = original.outputs(index, batch), second.run(batch.feeds)
        numbers = np.arange(count, count + batch.size) if batch.order is None else batch.order
        proves = np.zeros(batch.size, np.bool_) if proving is None else proving[numbers]
        for tally in tallies:
            sides = on_host(left[tally.name]), on_host(right[tally.name])
            tally.update(*sides, proves, numbers, original.live(batch))
        left, right = ({name: _on_host(side[name]) for name in names} for side in (left, right))
        count += batch.size
        whole = [tally for tally in tallies if tally.classes and tally.stands_for is None]
        classes = next((tally.name for tally in whole if len(left[tally.name]) == batch.size), None)
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
    counting = 0 if proving is None else int(proving.sum())
    results = [tally.result() for tally in tallies]
    results = [item for item, tally in zip(results, tallies, strict=True) if not (tally.stands_for and item.counts)]
    return Agreement(count, results, kind, a_score, b_score, counting)


def comparison_form(samples: Samples, outputs: Sequence[str], metric: Metric | None) -> Form:
    """How padded samples come: what labels and metrics are told of keeps its order, and its size."""
    padding = samples.data.padding
    has_positions = padding is not None and any(padding.places.get(name) is not None for name in outputs)
    if metric is None and not (samples.data.has_labels and has_positions):
        return "sorted"
    return "given" if has_positions else "cut"


def _on_host(value: Any) -> Any:
    return to_numpy(value) if hasattr(value, "shape") else value


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
    layout: OutputLayout | None = None,
) -> tuple[Agreement, list[str]]:
    """Agreement of two models on `samples`, and what a reader of it must be warned of; see `compare_outputs`."""
    warnings = []
    if "bfloat16" in (a.storage, b.storage):
        warnings.append("onnxruntime has no bfloat16 kernels on CPU: outputs and latency are of float32 twins")
    unused = unused_labels(samples) if metric is None else None
    warnings += [] if unused is None else [unused]
    agreement = compare_outputs(engine, _runnable(a), _runnable(b), samples, metric, progress, proving, layout)
    if agreement.drop is not None and isnan(agreement.drop):
        warnings.append("the metric is no number: the original decides nothing on these samples that it could count")
    return agreement, warnings + _differing(agreement) + _apart(agreement)


def unused_labels(samples: Samples) -> str | None:
    """Why accuracy cannot be taken by the labels of these samples; None where it can, or there are none."""
    batch = next(iter(samples), None)
    if batch is None or batch.labels is None or batch.labels.size == batch.size:
        return None
    shape = ", ".join(map(str, ("N", *batch.labels.shape[1:])))
    return f"labels of shape ({shape}) are not used: accuracy takes one class per sample, --metric takes what it likes"


def require_classes(samples: Samples, limit: str) -> None:
    """Raise `InputError` where a `limit` on accuracy has no labels that accuracy can be taken by."""
    if not samples.data.has_labels or unused_labels(samples) is not None:
        raise InputError(f"{limit} needs labels, one per sample, in the data it is checked on, or --metric")


def own_score(engine: Engine, graph: Graph, samples: Samples, metric: Metric) -> float:
    """What the metric says of a model against itself on one batch; raises `InputError` where it does not fit."""
    batch = next(iter(samples.formed(comparison_form(samples, [spec.name for spec in graph.outputs], metric))), None)
    if batch is None:
        return float("nan")
    outputs = {k: _on_host(v) for k, v in engine.session(_runnable(graph).program()).run(batch.feeds).items()}
    score = Score(metric)
    score.add(outputs, batch.labels, outputs, batch.size)
    return score.value


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


def _apart(agreement: Agreement) -> list[str]:
    """Outputs whose parts are of different scale."""
    texts = []
    for output in agreement.outputs:
        if output.parts:
            parts = ", ".join(
                f"{part.count} channel{'' if part.count == 1 else 's'} from {part.first} on vary by {part.spread:.3g}"
                for part in output.parts
            )
            texts.append(
                f"output '{output.name}' holds parts of different scale ({parts}): every channel counts in its own; "
                "--output-weight says which count more"
            )
    return texts


def time_both(engine: Engine, a: Graph, b: Graph, samples: Samples, progress: Progress) -> Latency:
    """Latency of both models, as a stage of the run; onnxruntime's where their target cannot run one of them."""
    with progress.stage("latency"):
        try:
            return compare_latency(engine, _runnable(a), _runnable(b), samples)
        except PcnsError as error:
            target = target_of(engine)
            if target is ONNXRUNTIME:
                raise
            engine = replace(engine, target=ONNXRUNTIME.name)
            latency = compare_latency(engine, _runnable(a), _runnable(b), samples)
            return msgspec.structs.replace(latency, instead=f"latency is onnxruntime's, not {target.title}'s: {error}")
