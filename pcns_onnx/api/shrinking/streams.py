"""Residual streams first: rotated, cut, and solved anew where that is better, before anything else gets narrower.

What follows sees an ordinary model with narrower streams. The rotation is exact while nothing is cut, and that is
tried on samples before anything is: a stream of which it does not hold stays as it is, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from pcns_onnx.api.inputs import Run
from pcns_onnx.calibration.calibration import Calibration, is_same
from pcns_onnx.data.dataset import Dataset, split
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.streams.search import find_streams
from pcns_onnx.dependency.streams.stream import Stream
from pcns_onnx.errors import InputError, NothingToShrinkError, first_line
from pcns_onnx.evaluation.agreement import verify
from pcns_onnx.graph import Graph
from pcns_onnx.planning.plan import Plan, SkippedLayer, StreamPlan, pairs
from pcns_onnx.progress import Progress
from pcns_onnx.reconstruction.streams.basis import StreamBasis, basis_of
from pcns_onnx.reconstruction.streams.refit import refit_stream
from pcns_onnx.rewrite.canonical import Canonical, emit
from pcns_onnx.rewrite.contract import as_narrowed
from pcns_onnx.rewrite.explicit_bias import explicit_biases
from pcns_onnx.rewrite.streams.rotate import rotate_stream
from pcns_onnx.rewrite.streams.tied import tied_heads
from pcns_onnx.runtime.activations import run_batches

_QUANTISED = ("DequantizeLinear", "DynamicQuantizeLinear", "MatMulNBits")
NOTHING = 1e-6
"""The share of a stream that may go without there being anything to be solved for."""
KEPT_ASIDE = 0.2
"""The share of the samples by which it is judged whether least squares are better than cutting."""


@dataclass(frozen=True)
class NarrowStreams:
    """The form with narrower streams, each as a plan has it; which were left alone, and what else is to be said."""

    form: Canonical
    plans: Mapping[str, StreamPlan] = field(default_factory=dict)
    skipped: tuple[SkippedLayer, ...] = ()
    notes: tuple[str, ...] = ()


def narrow_streams(running: Run, form: Canonical, train: Dataset, plan: Plan | None) -> NarrowStreams:
    """Narrow the residual streams as asked for, or as a `plan` has it, one after the other.

    Raises `NothingToShrinkError` with the reasons where none can be.
    """
    asked = running.options.goal.rotate_streams is not None
    if not asked and (plan is None or not plan.streams):
        return NarrowStreams(form)
    if running.options.goal.stats is not None:
        raise InputError("--stats are of a model whose residual streams are as they were: leave it or the rotation out")
    narrowing = _Narrowing(running, form, train, None if asked else plan)
    with running.progress.stage("streams"):
        narrowing.run()
    if not narrowing.plans:
        is_quantised = any(node.op in _QUANTISED for node in form.twin.nodes)
        why = "it is quantised: narrow it before" if is_quantised else "no residual stream is read through norms"
        reasons = narrowing.skipped or [SkippedLayer("the model", why)]
        raise NothingToShrinkError("no residual stream can be rotated", pairs(reasons))
    return NarrowStreams(narrowing.form, narrowing.plans, tuple(narrowing.skipped), tuple(narrowing.notes))


class _Narrowing:
    """The streams, one after the other: each is looked for in what the one before has left."""

    def __init__(self, running: Run, form: Canonical, train: Dataset, plan: Plan | None) -> None:
        self._running, self._train, self._plan = running, train, plan
        fitted, self._judged = split(train, holdout=KEPT_ASIDE, seed=running.options.data.seed)
        self._fitted = train if self._judged is None else fitted
        self.form, self.plans = form, dict[str, StreamPlan]()
        self.skipped, self.notes = list[SkippedLayer](), list[str]()
        self._done = set[str]()

    def run(self) -> None:
        """Until there is no stream that has not been looked at."""
        for stream, dependencies in self._streams():
            reason = self._narrow(stream, dependencies)
            if reason is not None:
                self.skipped.append(SkippedLayer(f"stream '{stream.name}'", reason))

    def _streams(self) -> Iterator[tuple[Stream, DependencyGraph]]:
        is_first = True
        while True:
            dependencies = self._running.dependencies(self.form.twin, self._train)
            streams = find_streams(self.form.twin, dependencies)
            if is_first:
                self.skipped += [SkippedLayer(f"stream '{name}'", why) for name, why in streams.refused.items()]
            is_first = False
            stream = next((s for s in streams.streams if self._done.isdisjoint(s.tensors)), None)
            if stream is None:
                return
            self._done |= stream.tensors.keys()
            yield stream, dependencies

    def _narrow(self, stream: Stream, dependencies: DependencyGraph) -> str | None:
        """Narrow one; why it stays as it is, where it does."""
        running, form = self._running, self.form
        wanted = None if self._plan is None else self._plan.streams.get(stream.name)
        if self._plan is not None and wanted is None:
            return "the plan leaves it alone"
        kept = running.options.goal.rotated_width(stream.width) if wanted is None else wanted.width
        if kept > stream.width:
            return f"it has {stream.width} channels, fewer than the {kept} that were asked for"
        calibration = running.calibration(self._train, form.twin)
        basis = basis_of(calibration, form.twin, stream)
        whole, cut = (rotate_stream(form.twin, stream, axes) for axes in (basis.axes, basis.first(kept)))
        reason = _unfit(calibration, form.twin, whole, cut)
        if reason is not None:
            return reason
        self.notes += [note for tie in tied_heads(form.typed, stream) if not tie.holds
                       for note in [_untied(tie.root, form.typed, kept)]]  # fmt: skip
        typed, added = explicit_biases(rotate_stream(form.typed, stream, basis.first(kept)))
        narrow, is_refit = form.rotated(typed, added), False
        if basis.lost(kept) > NOTHING and (wanted is None or wanted.refit):
            narrow, is_refit = self._solved(stream, basis, whole, narrow, kept, wanted)
        self.form = narrow
        self.plans[stream.name] = StreamPlan(kept, stream.width, round(basis.lost(kept), 6), is_refit)
        return None

    def _solved(
        self, stream: Stream, basis: StreamBasis, whole: Graph, cut: Canonical, kept: int, wanted: StreamPlan | None
    ) -> tuple[Canonical, bool]:
        """The form with its layers solved for the narrow stream, where that is better on samples kept aside."""
        running = self._running
        if running.options.solving.refit is False or (self._judged is None and wanted is None):
            return cut, False
        whole, _ = explicit_biases(whole)
        patch = refit_stream(
            running.calibration(self._fitted, cut.twin), whole, cut.twin, stream,
            running.dependencies(whole, self._train), kept,
        )  # fmt: skip
        solved = cut.edited(patch)
        if wanted is not None:
            return solved, True
        errors = [self._error(form) for form in (cut, solved)]
        is_better = errors[1] < errors[0]
        running.say(
            f"stream '{stream.name}': {kept} of {stream.width} channels, error {errors[0]:.4f} where its layers are cut"
            f" and {errors[1]:.4f} where they are solved anew, on samples kept aside: they are "
            f"{'solved' if is_better else 'cut'}"
        )
        return (solved, True) if is_better else (cut, False)

    def _error(self, form: Canonical) -> float:
        """The mean relative error of the outputs, on samples kept aside."""
        running, small = self._running, emit(form, ())
        assert self._judged is not None, "there are some"
        samples = running.samples(self._judged, form.original)
        agreement, _ = verify(running.engine, as_narrowed(form.original, small), small, samples, None, Progress())
        errors = [output.relative_error for output in agreement.outputs if output.relative_error is not None]
        return float(np.mean(errors)) if errors else 0.0


def _unfit(calibration: Calibration, twin: Graph, whole: Graph, cut: Graph) -> str | None:
    """Why a rotation is not what it should be: with all axes it changes the outputs, or with fewer nothing runs."""
    outputs = [spec.name for spec in twin.outputs if spec.dtype.kind == "f"]
    try:
        if not is_same(calibration, twin, whole, outputs):
            return "rotated at its full width the model computes something else: its channels are read one by one"
        next(iter(run_batches(calibration.engine, cut, calibration.samples, outputs)))
    except InputError as error:
        return f"rotated the model does not run ({first_line(error)})"
    return None


def _untied(root: str, graph: Graph, kept: int) -> str:
    value = graph.constant(root)
    rows = 0 if value is None else value.shape[0]
    return (
        f"'{root}' is table and head at once, and no basis serves both behind a norm that takes the mean away: there "
        f"are two tables now, {rows * kept:,} parameters more"
    )
