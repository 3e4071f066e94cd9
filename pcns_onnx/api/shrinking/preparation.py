"""What every command that narrows, or looks at what narrowing would do, begins with: the problem and its groups."""

from __future__ import annotations

from dataclasses import replace

from pcns_onnx.api.inputs import Run
from pcns_onnx.data.dataset import Dataset
from pcns_onnx.errors import NothingToShrinkError
from pcns_onnx.methods.strategy import Request, Strategy
from pcns_onnx.planning.grids import GridRules
from pcns_onnx.planning.plan import SkippedLayer, pairs
from pcns_onnx.planning.prepare import problem_for, selected
from pcns_onnx.planning.problem import Problem
from pcns_onnx.rewrite.canonical import Canonical


def prepared(
    running: Run,
    form: Canonical,
    train: Dataset,
    request: Request,
    strategy: Strategy,
    *,
    times: bool = False,
    int8: bool = False,
) -> tuple[Problem, list[SkippedLayer]]:
    """The problem with the groups that are to be narrowed, and every other layer with its reason.

    `times`: with measured layers; `int8`: for a model that is quantised afterwards.
    """
    options, scope = running.options, request.scope
    problem = problem_for(
        form,
        running.calibration(train, form.twin),
        scope,
        batch_latency=options.runtime.batch_latency,
        plan=request.plan,
        times=times,
        weights=options.gates.weights([spec.name for spec in form.original.outputs]),
    )
    drops = scope.depth and request.method.drops_blocks
    rules = GridRules.of(request.goal.multiple, drops=drops, int8=int8, target=options.runtime.target)
    return selected(replace(problem, rules=rules), scope, strategy.refuses)


def require_groups(problem: Problem, skipped: list[SkippedLayer]) -> None:
    """Raise `NothingToShrinkError` with the reasons where no group can be narrowed."""
    if not problem.groups:
        why = "every layer has a reason to stay" if skipped else "the model has no layer with stored weights"
        raise NothingToShrinkError(f"nothing can be shrunk: {why}", pairs(skipped))
