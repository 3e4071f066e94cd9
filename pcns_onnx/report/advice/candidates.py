"""Candidates, really made: narrow models solved on a few samples, and int8 of these; measured as any model is.

A candidate has the shapes, the file and so the speed of what a full run writes. Its weights are of a trial
(`planning.trial`): a few hundred samples, no refinement.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

from pcns_onnx.cost.benchmark import compare_latency, compare_many
from pcns_onnx.errors import InputError, PcnsError, first_line
from pcns_onnx.evaluation.agreement import verify
from pcns_onnx.evaluation.metric import Metric
from pcns_onnx.evaluation.precisions import check_not_quantized, check_precisions
from pcns_onnx.graph import Graph
from pcns_onnx.methods.strategy import Request, Solution
from pcns_onnx.methods.subset.solve import solve
from pcns_onnx.planning.budget import Budget
from pcns_onnx.planning.decision import Decision, choose
from pcns_onnx.planning.frontier import point_of
from pcns_onnx.planning.importance import Importance
from pcns_onnx.planning.problem import Problem
from pcns_onnx.planning.trial import Trial
from pcns_onnx.progress import Progress
from pcns_onnx.report.advice.losses import MeasuredLoss, measured_loss
from pcns_onnx.rewrite.canonical import emit
from pcns_onnx.rewrite.lowering.quantize import in_precision
from pcns_onnx.runtime.samples import Samples

_SECONDS = 1.0
"""Time for the runs of one candidate."""


@dataclass(frozen=True)
class Candidate:
    """A model that was made and measured: its share of the `macs`, what it lost on the samples that it was judged on,
    its time as a ratio of the original's, its bytes, and the `seconds` that making it took.

    `solution`: how well it was solved, None of a model that is as wide as it was.
    """

    graph: Graph
    macs: float
    loss: MeasuredLoss
    latency: float
    seconds: float
    solution: Solution | None = None
    warnings: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of its file."""
        return self.graph.nbytes


@dataclass(frozen=True)
class TrialRunner:
    """What candidates are made with, and judged and timed on.

    `problem` holds all samples, `trial` few of them; `judged` are others, `timed` are in the batch that latency is
    measured at. `importance` is None where no group can be narrowed.
    """

    problem: Problem
    trial: Trial | None
    importance: Importance | None
    request: Request
    judged: Samples
    timed: Samples
    metric: Metric | None
    _narrow: dict[tuple[tuple[str, int], ...], Candidate] = field(default_factory=dict, repr=False)
    """Candidates by the widths of their groups: what is made once is not made again."""

    @property
    def original(self) -> Graph:
        """The model as it came."""
        return self.problem.form.original

    @cached_property
    def milliseconds(self) -> float:
        """Of the original, for one batch."""
        engine = self.problem.calibration.engine
        return 1e3 * compare_latency(engine, self.original, self.original, self.timed, _SECONDS / 2).seconds_a

    @cached_property
    def few(self) -> Samples:
        """The samples that candidates are made on."""
        return self.problem.calibration.samples if self.trial is None else self.trial.problem.calibration.samples

    @property
    def more(self) -> float:
        """Samples that there are for each of those."""
        return self.problem.calibration.samples.count / max(self.few.count, 1)

    def decision(self, share: float, least: int = 1) -> Decision:
        """The widths at this share of the MACs, as `shrink --budget` chooses them; raises `InputError`."""
        assert self.importance is not None, "asked for where something can be narrowed"
        rules = replace(self.problem.rules, least_conv=least)
        problem = replace(self.problem, rules=rules)
        decision = choose(problem, self.importance, self.request.goal, None, [Budget("macs", share)])
        if not decision.narrowed:
            raise InputError("no layer gets narrower at this budget")
        return decision

    def shrunk(self, share: float, least: int = 1) -> Candidate:
        """The narrow model at this share of the MACs; raises `PcnsError` where there is none."""
        decision = self.decision(share, least)
        widths = tuple(sorted(decision.widths.items()))
        if widths not in self._narrow:
            self._narrow[widths] = self._solved(decision)
        return self._narrow[widths]

    def _solved(self, decision: Decision) -> Candidate:
        assert self.importance is not None and self.trial is not None, "asked for where there is a trial"
        start = time.perf_counter()
        solution = solve(self.trial.problem, decision, self.importance, self.request.scope, 0)
        seconds = time.perf_counter() - start
        macs = point_of(self.problem, decision).costs["macs"]
        return self._measured(emit(self.problem.form, solution.patch), macs, seconds, solution)

    def quantized(self, of: Candidate | None = None) -> Candidate:
        """A candidate, or the original, in int8; raises `PcnsError` where onnxruntime cannot make it."""
        engine = self.problem.calibration.engine
        start = time.perf_counter()
        check_precisions(self.original, ["int8"])
        check_not_quantized(self.original)
        graph, warnings = in_precision("int8", self.original if of is None else of.graph, self.few, engine)
        seconds = time.perf_counter() - start
        return self._measured(graph, 1.0 if of is None else of.macs, seconds, None, tuple(warnings))

    def _measured(
        self, graph: Graph, macs: float, seconds: float, solution: Solution | None, warnings: tuple[str, ...] = ()
    ) -> Candidate:
        engine, layout = self.problem.calibration.engine, self.problem.layout
        agreement, _ = verify(engine, self.original, graph, self.judged, self.metric, Progress(), layout=layout)
        # The worse of two: on a busy machine one alone may flatter it, and the recommendation goes by this.
        latency = max(compare_many(engine, self.original, [graph, graph], self.timed, _SECONDS / 2))
        return Candidate(graph, macs, measured_loss(agreement), latency, seconds, solution, warnings)


def tried(make: Callable[[], Candidate]) -> Candidate | str:
    """The candidate, or why it is not there to be had; whatever fails, the others are not lost to it."""
    try:
        return make()
    except PcnsError as error:
        return str(error)
    except Exception as error:  # a quantiser may raise anything
        return f"{type(error).__name__}: {first_line(error)}"
