"""How much the loss of a residual stream counts: found by trial.

Probes narrow one group at a time, with readers that make up for it by themselves. What a stream
loses adds up over all the blocks that write to it, and how much worse that is than its probe
depends on the network. So plans that spare the streams more or less are solved on a few samples,
and the weight whose plan stays closest to the original, on samples that its trial has not seen,
is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.data.dataset import split
from pcns_onnx.dependency.data_dependence import judged_tensors
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.methods.strategy import Request
from pcns_onnx.methods.subset.solve import solve
from pcns_onnx.planning.budget import Budget
from pcns_onnx.planning.decision import Decision, choose
from pcns_onnx.planning.importance import Importance
from pcns_onnx.planning.problem import Problem
from pcns_onnx.planning.sensitivity import squares
from pcns_onnx.progress import Progress
from pcns_onnx.rewrite.patch import apply
from pcns_onnx.runtime.activations import run_batches
from pcns_onnx.runtime.executor import LocalExecutor
from pcns_onnx.runtime.samples import Samples

STREAMS = (1.0, 8.0, 1e6)
"""How much more the error of channels that several blocks share may count than their probes say."""
REFERENCE = Budget("macs", 0.6)
"""What is tried where no budget is given yet."""
SAMPLES = 192
"""At most so many samples are used for a trial, a third of them to judge by."""


def weigh_streams(problem: Problem, importance: Importance, request: Request) -> Importance:
    """The importance with the curves of coupled groups at the weight that served best; ties go to the first."""
    if not any(group.coupled for group in problem.groups):
        return importance
    budgets = request.goal.costs or (REFERENCE,)
    offers, plans = list[Importance](), list[Decision]()
    for weight in STREAMS:
        offer = replace(importance, stream_weight=weight)
        try:
            plan = choose(problem, offer, request.goal, None, budgets)
        except InputError:  # the budget is out of reach, or is refused where it is used
            continue
        if all(plan.widths != other.widths for other in plans):
            offers.append(offer)
            plans.append(plan)
    if len(plans) < 2:
        return offers[0] if offers else importance
    return offers[_best(problem, importance, plans, request)]


def _best(problem: Problem, importance: Importance, plans: Sequence[Decision], request: Request) -> int:
    calibration = problem.calibration
    batch = calibration.samples.batch
    solved, judged = split(calibration.samples.data, holdout=1 / 3, seed=request.seed, samples=max(SAMPLES, 3 * batch))
    if judged is None:
        return 0
    trial_samples, held_out = (replace(calibration.samples, data=data, _kept=[]) for data in (solved, judged))
    if not trial_samples.count or not held_out.count:
        return 0
    trial = replace(
        problem, calibration=replace(calibration, samples=trial_samples, progress=Progress(), executor=LocalExecutor())
    )
    with calibration.progress.stage("try"):
        errors = [
            _error(
                trial.calibration,
                problem.graph,
                held_out,
                apply(problem.whole, solve(trial, plan, importance, request.scope, 0).patch),
            )
            for plan in plans
        ]
    return min(range(len(plans)), key=lambda at: (errors[at], at))


def _error(calibration: Calibration, original: Graph, samples: Samples, small: Graph) -> float:
    """Squared relative error, averaged over what the model is judged by; of other types than floats what differs."""
    names = judged_tensors(original)
    squared_error, size = dict.fromkeys(names, 0.0), dict.fromkeys(names, 1e-30)
    runs = (run_batches(calibration.engine, graph, samples, names, finite=False) for graph in (original, small))
    for expected, actual in zip(*runs, strict=True):
        for name in names:
            missed, of = squares(expected[name], actual[name])
            squared_error[name] += missed
            size[name] += of
    error = sum(squared_error[name] / size[name] for name in names) / max(len(names), 1)
    return math.inf if math.isnan(error) else error
