"""Which plan serves best: found by trial.

Probes narrow one group at a time, with readers that make up for it by themselves. What a stream
loses adds up over all the blocks that write to it, and how much worse that is than its probe
depends on the network. So plans that spare the streams more or less are solved on a few samples,
the streams untouched and even widths of all inner layers among them, and the one whose model stays closest
to the original, on samples that its trial has not seen, is taken.

Refinement, which a trial is spared, brings inner layers more than streams: a plan that narrows a stream has to be
better by `MARGIN` than one that does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace

from pcns_onnx.calibration.output_scale import OutputError
from pcns_onnx.dependency.data_dependence import judged_tensors
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.methods.strategy import Request
from pcns_onnx.methods.subset.solve import solve
from pcns_onnx.numerics.arrays import namespace_of
from pcns_onnx.planning.budget import EVEN, Budget, Goal
from pcns_onnx.planning.decision import Decision, choose
from pcns_onnx.planning.importance import Importance
from pcns_onnx.planning.problem import Problem
from pcns_onnx.planning.trial import trial_of
from pcns_onnx.rewrite.contract import filled
from pcns_onnx.rewrite.patch import apply
from pcns_onnx.runtime.activation_cache import ActivationCache
from pcns_onnx.runtime.activations import run_batches
from pcns_onnx.runtime.samples import Samples

STREAMS = (1.0, 8.0, 1e6)
"""How much more the error of channels that several blocks share may count than their probes say."""
REFERENCE = Budget("macs", 0.6)
"""What is tried where no budget is given yet."""
MARGIN = 0.85
"""By how much the squared error of a plan that narrows a stream must be lower than that of one that does not."""


def as_stated(problem: Problem, importance: Importance, goal: Goal) -> Importance:
    """The importance with the weight that `--streams` states, whatever was found by trial."""
    if goal.streams == "auto" or not any(group.coupled for group in problem.groups):
        return importance
    even = goal.streams == EVEN
    return replace(importance, stream_weight=STREAMS[-1] if even else float(goal.streams), even=even)


def statement_of(problem: Problem, importance: Importance) -> str | None:
    """What `--streams` has to state for the same weight; None where no channels are shared."""
    if not any(group.coupled for group in problem.groups):
        return None
    return EVEN if importance.even else repr(importance.stream_weight).removesuffix(".0")


def weigh_streams(problem: Problem, importance: Importance, request: Request) -> Importance:
    """The importance with the curves of coupled groups at the weight that served best; ties go to the first."""
    if not any(group.coupled for group in problem.groups):
        return importance
    budgets = request.goal.costs or (REFERENCE,)
    candidates = [replace(importance, stream_weight=weight) for weight in STREAMS]
    offers, plans = list[Importance](), list[Decision]()
    for offer in (*candidates, replace(importance, stream_weight=STREAMS[-1], even=True)):
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
    trial = trial_of(problem, request.seed)
    if trial is None:
        return 0
    with problem.calibration.progress.stage("try"):
        tried = problem.calibration.progress.track(plans, "plans", len(plans))
        small = (apply(problem.whole, solve(trial.problem, plan, importance, request.scope, 0).patch) for plan in tried)
        errors = _errors(problem, trial.judged, small, len(plans))
    streams = {group.name for group in problem.groups if group.coupled}
    handicap = [1.0 if streams & plan.narrowed.keys() else MARGIN for plan in plans]
    return min(range(len(plans)), key=lambda at: (errors[at] * handicap[at], at))


def _errors(problem: Problem, samples: Samples, models: Iterable[Graph], count: int) -> list[float]:
    """Squared error of `count` models at what they are judged by, each channel in its own scale.

    The original runs once; the models are made one by one.
    """
    names, engine = judged_tensors(problem.graph), problem.calibration.engine
    places = problem.calibration.live_places(problem.graph, names)
    errors = OutputError(names, problem.layout, count, places=places)
    expected, wanted = ActivationCache(problem.calibration.shares.stream), [*names, *places.wanted]
    with closing(expected):
        for index, outputs in enumerate(run_batches(engine, problem.graph, samples, wanted, finite=False)):
            errors.expect(outputs, outputs)
            expected.write(index, outputs)
        for at, model in enumerate(models):
            runs = run_batches(engine, model, samples, names, finite=False)
            for outputs, actual in zip(expected.read(), runs, strict=True):
                beside = {name: namespace_of(actual[name]).asarray(outputs[name]) for name in names}
                # what was on disk comes back on the host
                errors.update(beside, filled(model, beside, actual), at, outputs)
    return [math.inf if math.isnan(error) else float(error) for error in errors.shares()]
