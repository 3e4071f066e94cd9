"""One step from a model to a narrower one: prepare, decide, solve, emit, heal.

The model is the original, or what an earlier step has made of it; teacher and judge is the original in any case.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pcns_onnx.api.check import Check
from pcns_onnx.api.heal import heal_samples, not_accepted
from pcns_onnx.api.shrinking.preparation import prepared, require_groups
from pcns_onnx.cost.model import ModelSize, model_size
from pcns_onnx.data.fingerprints import sketch
from pcns_onnx.errors import NothingToShrinkError, PcnsError, first_line
from pcns_onnx.evaluation.healing import Healing
from pcns_onnx.evaluation.provenance import provenance_note
from pcns_onnx.graph import Graph
from pcns_onnx.methods.pcns.assessment import eigenvalue_shares
from pcns_onnx.methods.strategy import Request, Strategy
from pcns_onnx.planning.decision import Decision
from pcns_onnx.planning.frontier import point_of
from pcns_onnx.planning.plan import SCHEMA, SKETCH, FrontierPoint, Plan, SkippedLayer, chained, fingerprint, pairs
from pcns_onnx.planning.prepare import kept_whole
from pcns_onnx.planning.problem import Problem
from pcns_onnx.report.schema import GroupInfo
from pcns_onnx.report.summary import group_infos
from pcns_onnx.report.warnings import doubts, of_samples
from pcns_onnx.rewrite.canonical import Canonical, emit
from pcns_onnx.rewrite.contract import as_narrowed, close_states
from pcns_onnx.rewrite.explicit_bias import explicit_biases
from pcns_onnx.rewrite.patch import Patch


@dataclass(frozen=True)
class Step:
    """What is narrowed, and as what: the `number`th of `count` steps.

    `plans` are those of the steps before; `teacher`: the original's size, None where it is what is narrowed; `share`:
    of the samples shown in healing.
    """

    check: Check
    form: Canonical
    request: Request
    strategy: Strategy
    number: int = 1
    count: int = 1
    plans: tuple[Plan, ...] = ()
    teacher: ModelSize | None = None
    share: float = 1.0


@dataclass(frozen=True)
class Narrowed:
    """What came of a step. `plan` leads from the original to `small`, `own` from the model that was narrowed.

    `weak` and `of_samples` are what must be known of its samples; `check` knows where the outputs have their channels.
    """

    check: Check
    small: Graph
    plan: Plan
    own: Plan
    groups: list[GroupInfo]
    skipped: list[SkippedLayer]
    chosen: FrontierPoint
    frontier: list[FrontierPoint]
    healing: Healing | None
    notes: list[str]
    weak: list[str]
    of_samples: list[str]
    before: ModelSize
    after: ModelSize


def take(step: Step) -> Narrowed:
    """Narrow, solve and heal; raises `NothingToShrinkError` where every layer needs its full width."""
    check, strategy, running = step.check, step.strategy, step.check.running
    problem, skipped = _prepare(step)
    if step.number == 1:
        check = replace(check, layout=problem.layout)
    before = _size_before(step, problem)
    if _rotates_alone(step.request):
        return _as_it_is(replace(step, check=check), problem, before)
    decision = strategy.decide(problem, check.keeps_limits)
    skipped += kept_whole(problem, decision)
    if not decision.narrowed and check.stream_plans:
        return _as_it_is(replace(step, check=check), problem, before)
    if not decision.narrowed:
        raise NothingToShrinkError(
            "nothing was shrunk: every layer keeps all its channels at this budget or width: ask for less",
            pairs(skipped),
        )
    is_drawn = running.options.outputs.html is not None and step.count == 1
    frontier = strategy.frontier(problem) if is_drawn else []
    problem, decision = strategy.settle(problem, decision)
    if step.count == 1:  # it knows nothing of steps, nor of healing between them
        forecast = check.forecast(problem, lambda trial: strategy.outline(trial, decision))
        if forecast is not None:
            running.say(forecast)
    solution = strategy.solve(problem, decision)
    own = _plan(step, decision)
    plan = chained((*step.plans, own))
    small = _emit(step, solution.patch, provenance_note(plan, running.options.data.seed, _hashes(check)))
    small, healing, notes = _healed(replace(step, check=check, teacher=step.teacher or before), small)
    groups = group_infos(
        problem.groups,
        decision,
        solution,
        strategy.curves if is_drawn else {},
        eigenvalue_shares(problem) if is_drawn and check.has_data else {},
    )
    weak = doubts(solution, problem)
    return Narrowed(
        check, small, plan, own, groups, skipped, point_of(problem, decision), frontier, healing, notes,
        weak, of_samples(problem, weak) if strategy.solves else [], before, size_of(check, small),
    )  # fmt: skip


def _rotates_alone(request: Request) -> bool:
    """Whether a goal, or the plan that is replayed, has nothing but residual streams."""
    return request.goal.only_rotates if request.plan is None else not request.plan.groups


def _as_it_is(step: Step, problem: Problem, before: ModelSize) -> Narrowed:
    """What comes of a step where narrower residual streams are all that there is to be done."""
    check = step.check
    whole = {group.name: group.width for group in problem.groups}
    decision = Decision(whole, whole, dict.fromkeys(whole, 0.0))
    plan = chained((*step.plans, _plan(step, Decision({}, {}, {}))))
    small = _emit(step, (), provenance_note(plan, check.running.options.data.seed, _hashes(check)))
    small, healing, notes = _healed(replace(step, teacher=step.teacher or before), small)
    return Narrowed(
        check, small, plan, plan, [], [], point_of(problem, decision), [], healing, notes, [], [], before,
        size_of(check, small),
    )  # fmt: skip


def _size_before(step: Step, problem: Problem) -> ModelSize:
    """What the model costs that is narrowed, with its residual streams as they were."""
    whole = step.form.unrotated
    if whole is None:
        return model_size(step.form.original, problem.whole_dependencies)
    return model_size(step.form.original, step.check.running.dependencies(whole, step.check.train))


def size_of(check: Check, small: Graph, written: Graph | None = None) -> ModelSize:
    """What a narrowed model costs, in the form in which it is `written`."""
    dependencies = check.running.dependencies(explicit_biases(small)[0].as_float32(), check.train)
    return model_size(close_states(small) if written is None else written, dependencies)


# -- prepare -----------------------------------------------------------------------------------


def _prepare(step: Step) -> tuple[Problem, list[SkippedLayer]]:
    """The problem with the groups that are to be narrowed, and every other layer with its reason."""
    running, request = step.check.running, step.request
    problem, skipped = prepared(
        running,
        step.form,
        step.check.train,
        request,
        step.strategy,
        times=request.goal.needs_times,
        int8=running.options.outputs.int8,
    )
    if not step.check.stream_plans:
        require_groups(problem, skipped)
    return problem, skipped


# -- emit --------------------------------------------------------------------------------------


def _hashes(check: Check) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.concatenate([np.zeros(0, np.uint64), *check.used])


def _plan(step: Step, decision: Decision) -> Plan:
    """What was decided, as the plan of the model that is narrowed."""
    request, form = step.request, step.form
    chosen_on = sketch(_hashes(step.check), SKETCH) if request.plan is None else request.plan.samples
    groups, ratio, streams = decision.planned(), step.strategy.rank_ratio, dict(step.check.stream_plans)
    return Plan(SCHEMA, fingerprint(form.original), request.method.name, groups, ratio, chosen_on, streams=streams)


def _emit(step: Step, patch: Patch, provenance: str) -> Graph:
    """The shrunk model, its states still open, checked by onnx, with a note of where it comes from."""
    small = emit(step.form, patch)
    small.set_metadata("pcns_onnx", provenance)
    close_states(small).check(full=step.form.original.passes_check(full=True))
    return small


# -- heal --------------------------------------------------------------------------------------


def _healed(step: Step, small: Graph) -> tuple[Graph, Healing | None, list[str]]:
    """The shrunk model after it has learnt from the original, if it is to, and what is said of it; whatever fails here
    leaves the shrunk model as it is."""
    check, running = step.check, step.check.running
    options = running.options
    if options.healing.heal is None or step.teacher is None:
        return small, None, []
    if step.number < step.count and options.healing.heal_curve:  # what more samples would bring is asked of the last
        running = replace(running, options=replace(options, healing=replace(options.healing, heal_curve=False)))
    try:
        healed = heal_samples(
            running,
            as_narrowed(check.form.original, small),
            small,
            check.train,
            check.aside,
            check.layout,
            (size_of(check, small), step.teacher),
            check.metric,
            share=step.share,
        )
    except PcnsError as error:
        return small, None, [f"not healed, the shrunk model is as it was: {error}"]
    except Exception as error:  # a fault of ours, or a lack of memory: what is solved is not lost by it
        return small, None, [f"not healed, the shrunk model is as it was: {type(error).__name__}: {first_line(error)}"]
    return healed.graph, healed.record, not_accepted(healed.record)
