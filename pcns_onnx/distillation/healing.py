"""Healing, step by step: what is learnt, the student, the samples, the training, and whether its result is taken.

Whatever fails leaves the small model as it was; what is not taken, too.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import numpy as np
import torch

from pcns_onnx.calibration.output_layout import OutputLayout
from pcns_onnx.data.batch import Batch
from pcns_onnx.data.conform import is_floating
from pcns_onnx.data.dataset import split
from pcns_onnx.data.padding import arranged
from pcns_onnx.dependency.residual import block_ends
from pcns_onnx.distillation.acceptance import PairedTrial
from pcns_onnx.distillation.augmentation import Augmentation, augmentation_of
from pcns_onnx.distillation.checkpoint import Checkpoint, Course
from pcns_onnx.distillation.learning_curve import SHARES, extrapolated
from pcns_onnx.distillation.losses import DistillationLoss
from pcns_onnx.distillation.options import HealOptions, LossChoice
from pcns_onnx.distillation.pool import Pool
from pcns_onnx.distillation.schedule import Schedule, peak_rates, suitable
from pcns_onnx.distillation.student import Student, deterministic, raised_by_pytorch, torch_version
from pcns_onnx.distillation.targets import Measure, Spreads, Target, targets_of, taught_tensors
from pcns_onnx.distillation.teacher import Outputs, Teacher
from pcns_onnx.distillation.training import Training
from pcns_onnx.errors import InputError, PcnsError, UnsupportedError, first_line
from pcns_onnx.evaluation.healing import CurvePoint, Healing, Verdict
from pcns_onnx.evaluation.metric import Metric
from pcns_onnx.graph import Graph
from pcns_onnx.progress import Progress
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples

WATCHED = 512
"""Samples kept aside that the loss is looked at on, while the student learns."""
STATES = 1.0
"""How much the hidden states of a model that makes embeddings count beside these."""


@dataclass(frozen=True)
class Subject:
    """What is healed, on what, and with what at hand.

    `learnt` and `aside` are samples as both models take them; `macs` are multiply-adds per sample of the student and of
    the original, None where they are not known; `room` bytes of samples are kept in memory; `share`
    is what this healing makes up of all samples that are shown.
    """

    engine: Engine
    original: Graph
    small: Graph
    learnt: Samples
    aside: Samples
    layout: OutputLayout
    macs: tuple[int, int] | None
    seed: int
    threads: int
    room: int
    metric: Metric | None
    progress: Progress
    checkpoint: Path | None = None
    share: float = 1.0


@dataclass(frozen=True)
class Healed:
    """The model, which is the small one itself where the healed one was not taken, and what is said of it."""

    graph: Graph
    record: Healing


def heal_model(subject: Subject, options: HealOptions) -> Healed:
    """Let the small model learn from the original.

    Raises `UnsupportedError` before anything long runs where PyTorch does not know the model, `InputError` where
    nothing can be learnt.
    """
    start = time.perf_counter()
    try:
        with deterministic(subject.threads, subject.seed), subject.progress.stage("healing"):
            return _healed(subject, options, start)
    except Exception as error:
        if isinstance(error, PcnsError) or not raised_by_pytorch(error):
            raise
        raise UnsupportedError(f"PyTorch cannot train this model: {first_line(error)}") from error


def _healed(subject: Subject, options: HealOptions, start: float) -> Healed:
    device = "cuda" if subject.engine.device == "cuda" and torch.cuda.is_available() else "cpu"
    lesson = _lesson(subject, options)
    student = Student(subject.small, lesson.ranks, options.freeze, device=device)
    _check_shapes(lesson, student(lesson.watched[0][0], exact=True))
    training = _training(subject, options, lesson, student)
    schedule, augmentation = training.schedule, training.augmentation
    before = training.loss_of(lesson.watched)
    if not isfinite(before):
        raise InputError("the small model's outputs are no finite numbers on samples kept aside: nothing can be healed")
    points = _curve(subject, training) if options.heal_curve else []
    _remember(training, subject)
    hashes = _hashes(subject)
    checkpoint = Checkpoint(subject.checkpoint, _run(hashes, schedule, augmentation, subject, options))
    course = training.run(checkpoint, resume=options.resume)
    after = training.loss_of(lesson.watched)
    graph = student.graph()
    features = frozenset(m.target.output for m in lesson.measures if m.target.loss in ("cosine", "row"))
    trial = PairedTrial(
        subject.engine, subject.original, subject.small, graph, subject.aside, subject.layout, subject.metric, features
    )
    verdict = _verdict(trial, course, options, (before, after), subject.progress)
    record = Healing(
        verdict=verdict,
        updates=course.step * schedule.batch,
        steps=course.step,
        batch=schedule.batch,
        learnt=subject.learnt.count,
        losses={m.target.shown_as: str(m.target) for m in lesson.measures if not m.target.inner},
        states=[m.target.output for m in lesson.measures if m.target.inner],
        states_weight=training.loss.inner,
        left_out=lesson.left_out,
        augmentation=augmentation.kind,
        augmentation_why=augmentation.why,
        rates=dict(training.rates),
        frozen=student.frozen,
        looks=course.looks,
        taken=course.taken,
        retries=course.retries,
        precision="bfloat16" if student.halves else "float32",
        threads=torch.get_num_threads(),
        seed=subject.seed,
        seconds=time.perf_counter() - start,
        versions=torch_version(),
        hashes=hashes,
        curve=extrapolated([*points, CurvePoint(subject.learnt.count, after)]) if points else [],
    )
    return Healed(graph if verdict.accepted else subject.small, record)


def _training(subject: Subject, options: HealOptions, lesson: _Lesson, student: Student) -> Training:
    """The run that is to be made: how long, at what rates, on what."""
    augmentation = augmentation_of(options.heal_augment, subject.original, [lesson.watched[0][0]])
    pool, left = Pool(subject.learnt, subject.room, subject.seed), _filled(subject)
    own, others = (round(left * macs) for macs in subject.macs or (0, 0))
    shown = options.shown or suitable(
        own, others, subject.learnt.count, unknown=subject.macs is None, attends=student.attends
    )
    schedule = Schedule.of(max(1, round(shown * subject.share)), options.heal_batch)
    schedule = replace(schedule, batch=pool.step(schedule.batch))
    weights = {name: value for name, value in student.state().items() if value.size}
    matrices = [name for name, value in weights.items() if value.ndim > 1] if student.attends else []
    rates = peak_rates({name: float(np.sqrt(np.mean(value**2))) for name, value in weights.items()}, matrices)
    loss, watch = (DistillationLoss(lesson.measures, student.device, inner) for inner in (lesson.inner, 0.0))
    return Training(
        student, lesson.teacher, loss, watch, pool, augmentation, schedule, rates, lesson.watched, subject.seed,
        student.device, subject.progress,
    )  # fmt: skip


def _remember(training: Training, subject: Subject) -> None:
    """Ask the original about every sample once, where each is shown more often than that."""
    block, forms = training.pool.whole, training.augmentation.versions
    if block is not None and forms and subject.learnt.count * forms <= training.schedule.updates:
        training.teacher.remember(block, training.augmentation, training.loss.axes, subject.room // 4, subject.progress)


def _curve(subject: Subject, training: Training) -> list[CurvePoint]:
    """The same training on some of the samples; the student ends as it was."""
    points, start, learnt = list[CurvePoint](), training.student.state(), subject.learnt
    for share in SHARES:
        part = split(learnt.data, holdout=share, seed=subject.seed + 1)[1]
        samples = None if part is None else Samples(part, learnt.batch, learnt.fixed)
        if samples is None or not samples.count:
            continue
        fewer = replace(training, pool=Pool(samples, subject.room, subject.seed))
        fewer.run(Checkpoint(None, ""), resume=False)
        points.append(CurvePoint(samples.count, fewer.loss_of(fewer.watched)))
        training.student.load(start)
    return points


@dataclass(frozen=True)
class _Lesson:
    """The original as a teacher, what is learnt from it, and its word on some samples kept aside."""

    teacher: Teacher
    measures: list[Measure]
    watched: list[tuple[Batch, Outputs]]
    left_out: list[str]
    inner: float
    ranks: dict[str, int]


def _lesson(subject: Subject, options: HealOptions) -> _Lesson:
    original, small = subject.original, subject.small
    names = [spec.name for spec in original.outputs]
    if names != [spec.name for spec in small.outputs]:
        raise InputError(f"the models have different outputs: {names} and {[s.name for s in small.outputs]}")
    padding = subject.aside.data.padding
    first = next(_watched_first(subject))
    tensors = taught_tensors(original, small)
    plain = Teacher(subject.engine, original, list(tensors))
    targets = targets_of(original, small, tensors, plain(first), options.heal_loss, pooled=padding is not None)
    if not targets:
        raise UnsupportedError("no output of the model is of floats: there is nothing that a student can learn from")
    inner = _weight_of_states(options.heal_loss, targets)
    states = _states(subject, first) if inner else []
    teacher = Teacher(subject.engine, original, [target.original for target in (*targets, *states)], padding)
    targets += [state for state in states if padding is None or teacher.places[state.original] is not None]
    kept, count = list[tuple[Batch, Outputs]](), 0
    axes = teacher.batch_axes(first, fixed=subject.aside.fixed)
    spreads = Spreads(targets, subject.layout, axes, teacher.places)
    for batch in _watched_first(subject):
        outputs = teacher(batch)
        spreads.update(outputs, batch.size, teacher.live(batch))
        if count < WATCHED:
            kept.append((batch, {target.original: outputs[target.original] for target in targets if not target.inner}))
        count += batch.size
    measures = spreads.measures()
    if all(measure.target.inner for measure in measures):
        raise InputError(
            f"the outputs of the original do not vary on the samples kept aside ({count}): give more, and other ones"
        )
    learnt = {measure.target.output for measure in measures}
    ranks = {measure.target.student: outputs[measure.target.original].ndim for measure in measures}
    return _Lesson(teacher, measures, kept, [name for name in names if name not in learnt], inner, ranks)


def _watched_first(subject: Subject) -> Iterator[Batch]:
    """The samples kept aside, those that are watched first, without common padding."""
    batches, padding, count = iter(subject.aside), subject.aside.data.padding, 0
    if padding is None or not padding.cuts:
        yield from batches
        return
    watched = list[Batch]()
    while count < WATCHED and (batch := next(batches, None)) is not None:
        watched.append(batch)
        count += batch.size
    for part in (watched, batches):
        yield from arranged(part, padding, subject.aside.batch)


def _weight_of_states(choice: LossChoice, targets: list[Target]) -> float:
    """How much the hidden states count beside the outputs: by themselves those of what makes embeddings."""
    embeds = choice == "auto" and any(target.loss in ("cosine", "row") for target in targets)
    return STATES if embeds or choice == "states" else 0.0


def _states(subject: Subject, first: Batch) -> list[Target]:
    """What residual blocks hand on in both models, of one size and of floats."""
    ends = [name for name in block_ends(subject.original) if name in subject.small.producers]
    ends = [name for name in ends if name not in {spec.name for spec in subject.original.outputs}]
    if not ends:
        return []
    aims, states = (Teacher(subject.engine, graph, ends)(first) for graph in (subject.original, subject.small))
    ends = [name for name in ends if aims[name].shape == states[name].shape and is_floating(aims[name].dtype)]
    return [Target(name, name, name, "mse", inner=True) for name in ends]


def _check_shapes(lesson: _Lesson, outputs: dict[str, torch.Tensor]) -> None:
    """Raise `InputError` where an output of the small model has another shape than the original's."""
    for target in (measure.target for measure in lesson.measures if not measure.target.inner):
        small, original = tuple(outputs[target.student].shape), lesson.watched[0][1][target.original].shape
        if small != original:
            raise InputError(
                f"output '{target.output}' has shape {small} in the small model and {original} in the original"
            )


def _filled(subject: Subject) -> float:
    """The share of the positions that is no padding: what is left of the cost of a sample."""
    padding, lengths = subject.learnt.data.padding, subject.learnt.lengths
    if padding is None or not padding.cuts or lengths is None:
        return 1.0
    positions = padding.live(next(iter(subject.learnt)).feeds).shape[1]
    return float(np.mean(lengths) / max(positions, 1))


def _hashes(subject: Subject) -> dict[str, str]:
    return {
        "original": subject.original.digest(),
        "start": subject.small.digest(),
        "samples": subject.learnt.summary.digest,
    }


def _run(
    hashes: dict[str, str], schedule: Schedule, augmentation: Augmentation, subject: Subject, options: HealOptions
) -> str:
    """What tells this run from every other."""
    facts = [
        sorted(hashes.items()), schedule, augmentation.kind, options.heal_loss, options.freeze, subject.seed,
        subject.layout.weights, sorted(torch_version().items()), torch.get_num_threads(),
    ]  # fmt: skip
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _verdict(
    trial: PairedTrial, course: Course, options: HealOptions, losses: tuple[float, float], progress: Progress
) -> Verdict:
    if not course.taken:
        why = f"the loss diverged at every rate that was tried ({course.retries} retries)"
        return Verdict(False, why, "agreement", 0, None, None, 0, 0, 0.0, *losses)
    return trial.verdict(options.heal_accept, losses, progress)
