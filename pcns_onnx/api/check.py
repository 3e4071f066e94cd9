"""What `shrink` checks its result on, and how much that proves.

The samples of the check are held out of the data, or given by `eval`. A search for a budget on what may be lost judges
its trials by them; so there they are halved, where there are enough: one half judges, and the other has seen nothing
when the result is compared on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pcns_onnx.api.inputs import Run, datasets
from pcns_onnx.api.shrinking.streams import NarrowStreams
from pcns_onnx.calibration.output_layout import OutputLayout
from pcns_onnx.cost.benchmark import Latency, unsteady
from pcns_onnx.data.dataset import Dataset, split
from pcns_onnx.data.fingerprints import Hashes
from pcns_onnx.data.sources import DataSource
from pcns_onnx.errors import InputError
from pcns_onnx.evaluation.agreement import UNCHECKED, Agreement, own_score, require_classes, time_both, verify
from pcns_onnx.evaluation.gates import Gate, gates_of, quality_gates
from pcns_onnx.evaluation.metric import Metric
from pcns_onnx.evaluation.precisions import Quantization, quantize
from pcns_onnx.evaluation.unseen import Unseen, unseen
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.confidence import ENOUGH
from pcns_onnx.planning.plan import Plan, StreamPlan
from pcns_onnx.planning.problem import Problem
from pcns_onnx.planning.trial import Trial, trial_of
from pcns_onnx.progress import Progress
from pcns_onnx.report.decisions_lost import decisions_lost
from pcns_onnx.report.warnings import NOTHING_CHECKED, SLOWER, all_alike, of_precision, quoted
from pcns_onnx.rewrite.canonical import Canonical, emit
from pcns_onnx.rewrite.contract import as_narrowed
from pcns_onnx.rewrite.patch import Patch
from pcns_onnx.runtime.samples import Samples

SEEN = "checked on the samples that it was solved on: keep some back or give --eval"


@dataclass(frozen=True)
class Evaluation:
    """How the shrunk model compares with the original, and what a reader must be warned of."""

    agreement: Agreement
    latency: Latency
    gates: list[Gate]
    quantized: Quantization
    warnings: list[str]


@dataclass(frozen=True)
class Check:
    """What the shrunk model is checked on: samples that were `held_out`, or those of the solve (`train`).

    `judging`: the samples that a search judges by, None where those are the samples of the check, too; `aside`: those
    that healing is judged by, which are kept from the solve. `plan` is one
    that is replayed; `solves`: whether anything is solved, or chosen, on `train`; `layout`: where outputs have
    their channels; `streams`: what was done to residual streams.
    """

    running: Run
    form: Canonical
    train: Dataset
    held_out: Dataset | None
    metric: Metric | None
    has_data: bool
    solves: bool
    plan: Plan | None = None
    judging: Dataset | None = None
    aside: Dataset | None = None
    layout: OutputLayout = field(default_factory=OutputLayout)
    streams: NarrowStreams | None = None

    @property
    def stream_plans(self) -> Mapping[str, StreamPlan]:
        """The residual streams that `form` has narrower than its original."""
        return {} if self.streams is None else self.streams.plans

    @property
    def samples(self) -> Samples:
        """The samples of the check."""
        return self.running.samples(self.held_out or self.train, self.form.original)

    @property
    def judges(self) -> Samples:
        """The samples that a search judges by."""
        return self.samples if self.judging is None else self.running.samples(self.judging, self.form.original)

    @property
    def searches(self) -> bool:
        """Whether the result is chosen by what it loses on `judges`."""
        return bool(self.running.options.goal.qualities) and self.plan is None

    @property
    def used(self) -> list[Hashes]:
        """Hashes of all samples that the result is made on."""
        calibration = [self.running.samples(self.train, self.form.twin)] if self.solves and self.has_data else []
        aside = [] if self.aside is None else [self.running.samples(self.aside, self.form.original)]
        judges = [self.judges] if self.searches else []
        return [samples.summary.hashes for samples in (*calibration, *aside, *judges)]

    def keeps_limits(self, patch: Patch) -> bool:
        """Whether the model with these edits keeps the budgets on what may be lost."""
        return all(gate.passed for gate in self._budgets_kept(emit(self.form, patch)))

    def _budgets_kept(self, small: Graph) -> list[Gate]:
        qualities = self.running.options.goal.qualities
        if not qualities:
            return []
        engine, original = self.running.engine, as_narrowed(self.form.original, small)
        agreement, _ = verify(engine, original, small, self.judges, self.metric, Progress(), layout=self.layout)
        return quality_gates(qualities, agreement)

    def unseen(self, weak: Sequence[str] = ()) -> Unseen:
        """The samples of the check that prove something about new ones; `weak` is what makes the solve doubtful."""
        checked, used = self.samples.summary, self.used
        if self.held_out is None:
            return Unseen(np.zeros(checked.count, np.bool_), (SEEN,))
        result = unseen(checked, used if self.judging is not None or not self.searches else used[:-1])
        result = result.without_bound(self._without_bound(weak))
        if self.judging is None:
            return result
        halves = f"the budget was searched for on {self.judges.count} of the samples kept for the check"
        note = f"{halves}: its gate is of these, all else of the other {checked.count}"
        return replace(result, notes=(note, *result.notes))

    def _without_bound(self, weak: Sequence[str]) -> str | None:
        """Why no sample of the check proves anything."""
        checked = self.samples.summary
        if self.solves and self.has_data:
            solved = self.running.samples(self.train, self.form.twin).summary
            if all_alike(solved):
                varies_not = "" if solved.distinct == 1 else f" in {quoted(solved.constant)}"
                return f"it was solved on samples that are all the same{varies_not}"
        if (alike := all_alike(checked, "the check")) is not None:
            return alike
        if self.searches and self.judging is None:
            return f"the budget was searched for on the {checked.count} samples of the check, and no others are left"
        if self.plan is not None and self.plan.samples is None:
            return "the plan does not say which samples it was chosen on (make it again with --plan-out)"
        if self.plan is not None and (overlap := int(self.plan.was_chosen_on(checked.hashes).sum())):
            return f"the plan was chosen on {overlap} or more of the {checked.count} samples of the check"
        if weak and self.running.options.data.eval is None:
            return "what was held out of so few samples proves nothing, give more or --eval"
        return None

    def judging_of(self, trial: Trial) -> tuple[Samples, Metric | None]:
        """The samples that a trial is judged on, and the metric, if it can be taken on these."""
        # labels, where only the samples of the check have them, are what the metric goes by
        fits = trial.judged.data.has_labels or not self.samples.data.has_labels
        return self.running.samples(trial.judged.data, self.form.original), self.metric if fits else None

    def forecast(self, problem: Problem, outline: Callable[[Problem], Patch | None]) -> str | None:
        """What the plan will cost in decisions, where that is much: a trial on a few samples, without refinement."""
        if not (self.has_data and self.solves) or self.plan is not None or self.searches:
            return None
        trial = trial_of(problem, self.running.options.data.seed)
        if trial is None:
            return None
        engine, original = self.running.engine, self.form.original
        with self.running.progress.stage("forecast"):
            patch = outline(trial.problem)
            if patch is None:
                return None
            (samples, metric), small = self.judging_of(trial), emit(self.form, patch)
            narrowed = as_narrowed(original, small)
            agreement, _ = verify(engine, narrowed, small, samples, metric, Progress(), layout=self.layout)
        lost = decisions_lost(agreement)
        tried = f"on {agreement.samples} samples that a trial without refinement did not use"
        return None if lost is None else f"expect a loss at this budget: {lost}, {tried}"

    def evaluate(self, small: Graph, calibration: Samples, weak: Sequence[str] = ()) -> Evaluation:
        """Agreement, latency, gates, and the precisions that are asked for; states that are open in `small` are
        compared on the channels that it has."""
        running, options = self.running, self.running.options
        original = as_narrowed(self.form.original, small)
        engine, samples, goal = running.engine, self.samples, options.goal
        agreement, warnings, proving = UNCHECKED, [NOTHING_CHECKED], None
        if self.has_data or self.held_out is not None:
            counted = self.unseen(weak)
            proving = counted.proving
            agreement, warnings = verify(
                engine, original, small, samples, self.metric, running.progress, proving, self.layout
            )
            warnings += counted.notes
            lost = decisions_lost(agreement)
            warnings += [] if lost is None else [f"{lost}, on the {agreement.samples} samples of the check"]
        timed = running.timed(samples)
        latency = time_both(engine, self.form.original, small, timed, running.progress)
        if latency.ratio > 1 and not (goal.qualities or goal.plan is not None):
            warnings.append(SLOWER)
        warnings += unsteady(latency)
        is_judged = self.judging is None and agreement is not UNCHECKED  # on the same samples
        kept = quality_gates(goal.qualities, agreement) if is_judged else self._budgets_kept(small)
        gates = [*kept, *gates_of(options.gates, agreement)]
        quantized = quantize(
            engine, original, small, options.outputs.precisions, calibration, samples, timed, self.metric, proving,
            options.gates, running.progress, self.layout,
        )  # fmt: skip
        warnings += [text for model in quantized.models for text in of_precision(model.precision)]
        return Evaluation(agreement, latency, gates, quantized, warnings)


def check_on(
    running: Run, form: Canonical, data: DataSource | None, metric: Metric | None, plan: Plan | None, *, solves: bool
) -> Check:
    """The samples of the solve and of the check; raises `InputError` where a limit needs labels that are not there."""
    fed = datasets(running, form, data, solves=solves)
    train, held_out = fed.train, fed.held_out
    options = running.options
    needs_score = options.gates.max_drop is not None or any(b.resource == "drop" for b in options.goal.qualities)
    check = Check(running, fed.form, train, held_out, metric, data is not None, solves, plan)
    if needs_score and metric is None:
        require_classes(check.samples, "--max-drop" if options.gates.max_drop is not None else "budget drop")
    if metric is not None:
        own_score(running.engine, fed.form.original, check.samples, metric)  # a metric that does not fit fails here
    return _halved(check) if check.searches and held_out is not None else check


def _halved(check: Check) -> Check:
    """The samples of the check in two halves, where each is enough for both bounds."""
    assert check.held_out is not None, "there is something to halve"
    if unseen(check.samples.summary, check.used[:-1]).proving.sum() < 2 * ENOUGH:
        return check
    judging, rest = split(check.held_out, holdout=0.5, seed=check.running.options.data.seed)
    try:
        halves = replace(check, held_out=rest, judging=judging)
        enough = halves.unseen().proving.sum() >= ENOUGH
    except InputError:  # a fixed batch that a half does not fill
        return check
    return halves if enough else check
