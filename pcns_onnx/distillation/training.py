"""The student's steps: Adam (Kingma and Ba 2015) on the loss of all its outputs, and the points at which it is judged.

At ten points the loss on samples kept aside is looked at, in float32. The best of them is the answer. One that is no
number, or far above the start's (`schedule.is_lost`), is where a run has run away: the best point is taken up again
at a quarter of the rate, at most three times.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pcns_onnx.data.batch import Batch
from pcns_onnx.distillation.augmentation import Augmentation
from pcns_onnx.distillation.checkpoint import Arrays, Checkpoint, Course
from pcns_onnx.distillation.losses import DistillationLoss
from pcns_onnx.distillation.pool import Block, Numbers, Pool
from pcns_onnx.distillation.schedule import RETRIES, SLOWER, Schedule, is_lost
from pcns_onnx.distillation.student import Student
from pcns_onnx.distillation.teacher import Outputs, Teacher
from pcns_onnx.evaluation.healing import Look
from pcns_onnx.progress import Progress, duration_text

_TIMED = 5
"""Steps after which it is said how long the run will take."""
_DECAYS = (0.9, 0.999)
_EPSILON = 1e-12
"""Adam's: small, since the size of a gradient depends on how a model's folded norms have left its weights."""

Kept = Sequence[tuple[Batch, Mapping[str, NDArray[Any]]]]
"""Samples kept aside, with what the original says of them."""


@dataclass
class Training:
    """One run: `rates` are the peak rates by initializer; `loss` is what is learnt, `watch` what is looked at on
    samples kept aside."""

    student: Student
    teacher: Teacher
    loss: DistillationLoss
    watch: DistillationLoss
    pool: Pool
    augmentation: Augmentation
    schedule: Schedule
    rates: Mapping[str, float]
    watched: Kept
    seed: int
    device: str
    progress: Progress

    def run(self, checkpoint: Checkpoint, *, resume: bool) -> Course:
        """Train; the student ends with the weights of the best point, or with its own where there was none."""
        self._adam = torch.optim.Adam(
            [{"params": [value], "peak": self.rates[name]} for name, value in self.student.parameters.items()],
            betas=_DECAYS,
            eps=_EPSILON,
        )
        course = self._taken_up(checkpoint) if resume else None
        if course is None:
            course = Course(start=self.loss_of(self.watched))
            self._best = self.student.state()
        steps = self._steps(course)
        for step in self.progress.track(steps, "heal", self.schedule.steps - course.step):
            course.step = step + 1
            if course.step in self.schedule.points:
                lost = self._look(course)
                checkpoint.save(course, self._parts())
                if lost:
                    break
        self.student.load(self._best)
        return course

    def loss_of(self, kept: Kept) -> float:
        """The loss on samples kept aside, in float32."""
        total, count = 0.0, 0
        with torch.no_grad():
            for batch, outputs in kept:
                live = self.teacher.live(batch)
                value = self.watch(self.student(batch, exact=True), self._tensors(outputs), batch.size, live)
                total, count = total + float(value) * batch.size, count + batch.size
        return total / max(count, 1)

    def _steps(self, course: Course) -> Iterator[int]:
        """Make the steps that are left; the number of each when it is done."""
        draws = itertools.islice(self.pool.draws(self.schedule.batch), course.step, None)
        first = course.step
        start = time.perf_counter()
        for step, (block, units) in zip(range(first, self.schedule.steps), draws, strict=False):
            self._set_rate(course.factor * self.schedule.factor(step, course.since))
            self._step(block, units, step)
            if step + 1 == first + _TIMED:
                left = (time.perf_counter() - start) / _TIMED * (self.schedule.steps - step - 1)
                self.progress.say(
                    f"healing: {self.schedule.steps - first:,} steps of {self.schedule.batch} samples, about "
                    f"{duration_text(left)}, judging by the first {_TIMED}"
                )
            yield step

    def _set_rate(self, factor: float) -> None:
        for group in self._adam.param_groups:
            group["lr"] = group["peak"] * factor

    def _step(self, block: Block, units: Numbers, step: int) -> None:
        pieces = block.take(units)
        generator, total = np.random.default_rng([self.seed, 3, step]), sum(piece.batch.size for piece in pieces)
        self._adam.zero_grad()
        for piece in pieces:
            drawn = self.augmentation.draw(generator, piece.batch.size)
            batch = self.augmentation.apply(piece.batch, drawn)
            wanted = self._tensors(self.teacher.answers(piece, batch, drawn))
            loss = self.loss(self.student(batch), wanted, batch.size, self.teacher.live(batch)) * (batch.size / total)
            loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
        self._adam.step()

    def _tensors(self, outputs: Outputs | Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        return {
            name: torch.from_numpy(np.require(values, np.float32, ["C", "W"])).to(self.device)
            for name, values in outputs.items()
        }

    def _look(self, course: Course) -> bool:
        """Judge a point; whether the run is lost for good."""
        loss, factor = self.loss_of(self.watched), course.factor
        course.looks.append(Look(course.step, loss if isfinite(loss) else None, factor))
        if not is_lost(loss, course.start):
            if course.loss is None or loss < course.loss:
                course.loss, course.taken, self._best = loss, course.step, self.student.state()
            return False
        if course.retries == RETRIES:
            return True
        self.student.load(self._best)
        self._adam.state.clear()
        course.retries, course.factor, course.since = course.retries + 1, factor * SLOWER, course.step
        return False

    # -- checkpoints -----------------------------------------------------------------------------

    def _parts(self) -> dict[str, Arrays]:
        moments: dict[str, Arrays] = {"mean": {}, "square": {}, "count": {}}
        for name, value in self.student.parameters.items():
            state = self._adam.state.get(value)
            if state:
                for kind, key in (("mean", "exp_avg"), ("square", "exp_avg_sq"), ("count", "step")):
                    moments[kind][name] = state[key].detach().cpu().contiguous().numpy().copy()
        return {"weight": self.student.state(), "best": self._best, **moments}

    def _taken_up(self, checkpoint: Checkpoint) -> Course | None:
        """The state that a killed run left."""
        state = checkpoint.load()
        if state is None:
            return None
        course, parts = state
        self.student.load(parts["weight"])
        self._best = parts["best"]
        for name, value in self.student.parameters.items():
            if name in parts.get("mean", {}):
                self._adam.state[value] = {
                    "step": torch.from_numpy(parts["count"][name]),
                    "exp_avg": _like(parts["mean"][name], value),
                    "exp_avg_sq": _like(parts["square"][name], value),
                }
        self.progress.say(f"healing goes on after step {course.step:,} of {self.schedule.steps:,}")
        return course


def _like(values: NDArray[Any], like: Tensor) -> Tensor:
    """An array in the place and memory format of a parameter."""
    return torch.empty_like(like).copy_(torch.from_numpy(values)).detach()
