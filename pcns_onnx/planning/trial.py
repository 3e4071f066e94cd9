"""A small problem out of a large one: solved on a few samples, judged on others that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pcns_onnx.data.dataset import split
from pcns_onnx.planning.problem import Problem
from pcns_onnx.progress import Progress
from pcns_onnx.runtime.executor import LocalExecutor
from pcns_onnx.runtime.samples import Samples

SAMPLES = 384
"""At most so many samples are used for a trial, a third of them to judge by."""


@dataclass(frozen=True)
class Trial:
    """`problem` is solved silently and in this process; `judged` are samples that it does not hold."""

    problem: Problem
    judged: Samples


def trial_of(problem: Problem, seed: int) -> Trial | None:
    """A trial of a problem, None where there are too few samples for one."""
    calibration = problem.calibration
    samples = calibration.samples
    most = max(SAMPLES, 3 * samples.batch)
    solved, judged = split(samples.data, holdout=1 / 3, seed=seed, samples=most)
    if judged is None:
        return None
    few, held_out = (replace(samples, data=data, _kept=[]) for data in (solved, judged))
    if not few.count or not held_out.count:
        return None
    small = replace(calibration, samples=few, progress=Progress(), executor=LocalExecutor())
    return Trial(replace(problem, calibration=small), held_out)
