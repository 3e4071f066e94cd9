"""Several steps in a row, with healing after each: shrink a little, heal, shrink the healed one further.

The budget is divided geometrically: of K steps the k-th ends at B^(k/K) of the original's cost, so that each takes the
same share of what there is. What a step has really come to is what the next one starts from,

    b_k = (B / left_(k-1)) ^ (1 / (K - k + 1))          as a fraction of the model that is narrowed,

and the last one meets B itself. The original stays the teacher of every healing and the reference of every check. What
a step has made is not lost where a later one fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from pcns_onnx.api.check import Check
from pcns_onnx.api.compare import same_axes
from pcns_onnx.api.shrinking.step import Narrowed, Step, take
from pcns_onnx.cost.resources import TIMED
from pcns_onnx.errors import PcnsError, first_line
from pcns_onnx.evaluation.agreement import verify
from pcns_onnx.methods.strategy import Request, Strategy, strategy_for
from pcns_onnx.planning.budget import Goal
from pcns_onnx.planning.plan import SkippedLayer, by_cause
from pcns_onnx.progress import Progress
from pcns_onnx.report.schema import GroupInfo, Round
from pcns_onnx.rewrite.canonical import Canonical

LAST = 0.8
"""The share of the samples shown that the last round gets: what is cut again needs not be healed to the end."""


def _share(number: int, count: int) -> float:
    """The share of the samples shown in one of several rounds."""
    return LAST if number == count else (1 - LAST) / (count - 1)


@dataclass(frozen=True)
class Rounds:
    """All steps that were made, and what is said of each; `failed`: why there is no further one, though one was asked
    for."""

    steps: Sequence[Narrowed]
    records: Sequence[Round] = ()
    failed: str | None = None

    @property
    def last(self) -> Narrowed:
        """The step that made the result."""
        return self.steps[-1]

    @property
    def groups(self) -> list[GroupInfo]:
        """The narrowed groups: from the original's width to the result's, with the errors of the last solve."""
        if len(self.steps) == 1:
            return self.last.groups
        merged = dict[str, GroupInfo]()
        for step in self.steps:
            for info in step.groups:
                first = merged.get(info.name, info)
                merged[info.name] = msgspec.structs.replace(info, width=first.width)
        return list(merged.values())

    @property
    def skipped(self) -> list[SkippedLayer]:
        """The layers that no step has narrowed, and why."""
        if len(self.steps) == 1:
            return self.last.skipped
        narrowed = {info.name for info in self.groups}
        return by_cause(
            [
                SkippedLayer(name, item.reason)
                for item in self.last.skipped
                for name in item.layers or [item.name]
                if name not in narrowed
            ]
        )

    @property
    def weak(self) -> list[str]:
        """What makes a solve doubtful, of any step."""
        return list(dict.fromkeys(text for step in self.steps for text in step.weak))

    @property
    def of_samples(self) -> list[str]:
        """What must be known of the samples, of any step."""
        return list(dict.fromkeys(text for step in self.steps for text in step.of_samples))

    @property
    def notes(self) -> list[str]:
        """What a reader must know of how the steps went."""
        if not self.records:
            return self.last.notes
        notes = [f"round {record.number}: {note}" for record in self.records for note in record.notes]
        if len(self.steps) > 1 and self.last.check.running.options.outputs.plan_out is not None:
            notes.append("the plan leads to these widths and channels in one step: it does not replay the rounds")
        return notes if self.failed is None else [self.failed, *notes]


def take_all(check: Check, request: Request, strategy: Strategy) -> Rounds:
    """One step, or as many as `--rounds` asks for; raises what the first one raises."""
    count = check.running.options.healing.rounds or 1
    if count == 1:
        return Rounds([take(Step(check, check.form, request, strategy))])
    steps, records, left = list[Narrowed](), list[Round](), dict[str, float]()
    for number in range(1, count + 1):
        goal = request.goal.step(left, 1 / (count - number + 1))
        if steps and goal.asks_nothing:
            check.running.say(f"{number - 1} of {count} rounds have met the budget: no further one is made")
            break
        try:
            steps.append(_taken(check, replace(request, goal=goal), steps, number, count))
        except Exception as error:  # of whatever kind: what the rounds before have made is not lost by it
            if not steps:
                raise
            why = str(error) if isinstance(error, PcnsError) else f"{type(error).__name__}: {first_line(error)}"
            model = f"the model is that of round {number - 1}, and larger than asked for"
            return Rounds(steps, records, f"round {number} of {count} failed ({why}): {model}")
        left = _left(left, goal, steps)
        records.append(_record(steps[-1], goal, number))
    return Rounds(steps, records)


def _taken(check: Check, request: Request, steps: Sequence[Narrowed], number: int, count: int) -> Narrowed:
    running, strategy = check.running, strategy_for(request)
    running.progress.say(f"round {number} of {count}: {', '.join(request.goal.limits)} of the model before")
    if not steps:
        return take(Step(check, check.form, request, strategy, number, count, share=_share(number, count)))
    last = steps[-1]
    form = Canonical.of(last.small)
    form = form.laid_out(same_axes(check.train, form))
    plans = tuple(step.own for step in steps)
    return take(Step(last.check, form, request, strategy, number, count, plans, steps[0].before, _share(number, count)))


def _left(left: Mapping[str, float], goal: Goal, steps: Sequence[Narrowed]) -> dict[str, float]:
    """What there is now of what the original has, by resource, and by 'width' as it was asked for."""
    before, after = steps[0].before, steps[-1].after
    costs = steps[-1].chosen.costs
    return {
        "macs": after.macs / max(before.macs, 1),
        "params": after.parameters / max(before.parameters, 1),
        "size": after.bytes / max(before.bytes, 1),
        **{name: left.get(name, 1.0) * costs[name] for name in TIMED if name in costs},
        "width": left.get("width", 1.0) * (goal.width or 1.0),
    }


def _record(step: Narrowed, goal: Goal, number: int) -> Round:
    """What is said of a step: how small, how far from the original, and how it was healed."""
    check, running = step.check, step.check.running
    agreement, _ = verify(
        running.engine, check.form.original, step.small, check.samples, check.metric, Progress(), layout=check.layout
    )
    return Round(number, list(goal.limits), step.after, agreement, step.healing, step.notes)
