"""`heal`: the small model learns from its own original, without a label; also a step of `shrink`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np

from pcns_onnx.api.compare import load_pair, same_axes
from pcns_onnx.api.inputs import Run, datasets, run
from pcns_onnx.api.options import Choices, Options
from pcns_onnx.calibration.output_layout import OutputLayout
from pcns_onnx.cost.benchmark import unsteady
from pcns_onnx.cost.model import ModelSize, model_size
from pcns_onnx.data.dataset import Dataset, split
from pcns_onnx.data.sources import DataSource
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.distillation.acceptance import aside_share
from pcns_onnx.distillation.checkpoint import checkpoint_path
from pcns_onnx.errors import InputError, UnsupportedError
from pcns_onnx.evaluation.agreement import own_score, require_classes, time_both, unused_labels, verify
from pcns_onnx.evaluation.gates import gates_of
from pcns_onnx.evaluation.metric import Metric, load_metric
from pcns_onnx.evaluation.provenance import healed_note, library_versions, made_on, provenance_of
from pcns_onnx.evaluation.unseen import Unseen, unseen
from pcns_onnx.files import check_targets, write_atomic
from pcns_onnx.graph import Graph, ModelSource
from pcns_onnx.graph.model_source import ModelFolder
from pcns_onnx.progress import Progress
from pcns_onnx.report.html.page import check_page
from pcns_onnx.report.schema import Report
from pcns_onnx.report.warnings import all_alike, put_right, unique
from pcns_onnx.report.writer import finish
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.runtime.samples import Samples

if TYPE_CHECKING:
    from onnx import ModelProto

    from pcns_onnx.distillation.healing import Healed
    from pcns_onnx.evaluation.healing import Healing


@dataclass(frozen=True)
class HealResult:
    """The healed model, or the one that was given where that was not accepted, and the report (`report.healing`)."""

    model: ModelProto
    report: Report


def heal(
    model: ModelSource,
    original: ModelSource,
    data: DataSource,
    output: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
    **choices: Unpack[Choices],
) -> HealResult:
    """Let `model` learn from `original` on the samples of `data`; with `output` the result is written there.

    Three sets of samples: those learnt from, those kept aside to accept by, and those of the check (`eval`, or some
    held out). What is not accepted is not taken: the result is `model`, bit for bit. Raises `UnsupportedError` without
    PyTorch, or for a model that it cannot train, `InputError`, and `GateError` where a limit is exceeded (nothing is
    written then).
    """
    folder = ModelFolder.of(model)
    if folder is not None and output is not None:
        with folder.brought_along(output) as place:
            return heal(folder.model, original, data, place.target, progress=progress, **choices)
    options = Options.of(**choices)
    require_torch()
    outputs = options.outputs
    sources = (model, original, data, options.data.eval)
    checkpoint = checkpoint_path(output)
    check_targets(sources, output, outputs.report, outputs.html, checkpoint)
    check_page(outputs.html)
    metric = load_metric(options.gates.metric)
    with run(options, progress) as running, _going_on(checkpoint, resume=options.healing.resume):
        forms = load_pair(running, original, model)
        files = (*forms[0].original.files, *forms[1].original.files)
        check_targets(files, output, outputs.report, outputs.html, checkpoint)
        fed = datasets(running, forms[0], data, solves=True)
        forms = [fed.form, forms[1].laid_out(same_axes(fed.train, forms[1]))]
        held_out = None if fed.held_out is None else running.padded_for(forms[1], fed.held_out)
        task = _Task(running, forms, running.padded_for(forms[1], fed.train), held_out, metric)
        healed = task.healed(output)
        report = task.report(healed, {"model": model, "original": original}, data)
    finish(report, outputs.report, outputs.html, f"; no model was written{_left(checkpoint)}")
    if output is not None:
        _write(healed, model, output)
    return HealResult(healed.graph.proto, report)


def require_torch() -> None:
    """Raise `UnsupportedError` where PyTorch is not installed: before a run, not inside it."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise UnsupportedError("healing needs PyTorch, which is not installed: `pip install 'pcns-onnx[heal]'`")


def kept_aside_from(running: Run, samples: Dataset, *models: Graph) -> tuple[Dataset, Dataset | None]:
    """The samples to learn from, and those that a healed model is accepted by (None where there is but one)."""
    count = running.samples(samples, *models).count
    return split(samples, holdout=aside_share(count), seed=running.options.data.seed)


def heal_samples(
    running: Run,
    original: Graph,
    small: Graph,
    learnt: Dataset,
    aside: Dataset | None,
    layout: OutputLayout,
    sizes: tuple[ModelSize, ModelSize],
    metric: Metric | None,
    output: str | os.PathLike[str] | None = None,
    share: float = 1.0,
) -> Healed:
    """`small` healed on samples to learn from, judged by others kept `aside`; `sizes`: of it, and of the original;
    `share`: of the samples shown that this healing makes up."""
    from pcns_onnx.distillation.healing import Subject, heal_model

    options = running.options
    if aside is None:
        raise InputError("healing needs samples to learn from and others to be judged by: give more data")
    unused = unused_labels(running.samples(aside, original)) if metric is None else None
    if unused is not None:
        running.say(unused)
    known = not (sizes[0].unknown or sizes[1].unknown) and sizes[0].macs > 0
    subject = Subject(
        running.engine,
        original,
        small,
        running.samples(learnt, original, small),
        running.samples(aside, original, small),
        layout,
        (sizes[0].macs, sizes[1].macs) if known else None,
        options.data.seed,
        options.runtime.threads,
        options.runtime.budget.statistics,
        metric,
        running.progress,
        checkpoint_path(output),
        share,
    )
    healed = heal_model(subject, options.healing)
    if healed.record.verdict.accepted:
        healed.graph.set_metadata(
            "pcns_onnx", healed_note(small, healed.record.updates, options.data.seed, subject.learnt.summary.hashes)
        )
        healed.graph.check(full=small.passes_check(full=True))
    return healed


def not_accepted(record: Healing) -> list[str]:
    """The line that says that a healing was for nothing."""
    if record.verdict.accepted:
        return []
    return [f"healing was not accepted ({record.verdict.reason}): the model is the one before it, bit for bit"]


@dataclass(frozen=True)
class _Task:
    """Both models (the original first) and their samples: those to learn from, and those of the check."""

    running: Run
    forms: list[Canonical]
    train: Dataset
    held_out: Dataset | None
    metric: Metric | None

    def healed(self, output: str | os.PathLike[str] | None) -> Healed:
        original, small = (form.original for form in self.forms)
        options = self.running.options
        check = self.check
        if options.gates.max_drop is not None and self.metric is None:
            require_classes(check, "--max-drop")
        if self.metric is not None:
            own_score(self.running.engine, original, check, self.metric)
        before, after = self.sizes(small)
        learnt, aside = kept_aside_from(self.running, self.train, original, small)
        return heal_samples(
            self.running, original, small, learnt, aside, self.layout, (after, before), self.metric, output
        )

    @property
    def check(self) -> Samples:
        """The samples of the check."""
        return self.running.samples(self.held_out or self.train, *(form.original for form in self.forms))

    @cached_property
    def layout(self) -> OutputLayout:
        """Where the outputs have their channels, and how much each counts."""
        names = [spec.name for spec in self.forms[0].original.outputs]
        weights = self.running.options.gates.weights(names)
        return OutputLayout.of(self.forms[0].twin, self.dependencies[0], weights)

    def sizes(self, small: Graph) -> tuple[ModelSize, ModelSize]:
        """Of the original, and of a model in the form of the small one."""
        before, after = self.dependencies
        return model_size(self.forms[0].original, before), model_size(small, after)

    @cached_property
    def dependencies(self) -> list[DependencyGraph]:
        """Which channels go together, in both models."""
        return [self.running.dependencies(form.twin, self.train) for form in self.forms]

    def report(self, healed: Healed, sources: dict[str, ModelSource], data: DataSource) -> Report:
        """Both models on the samples of the check, and how it was healed."""
        running, original, check = self.running, self.forms[0].original, self.check
        options = running.options
        counted = self._unseen(check)
        agreement, warnings = verify(
            running.engine, original, healed.graph, check, self.metric, running.progress, counted.proving, self.layout
        )
        before, after = self.sizes(healed.graph)
        latency = time_both(running.engine, original, healed.graph, running.timed(check), running.progress)
        graphs = {"model": self.forms[1].original, "original": original}
        return Report(
            options=options.described(),
            before=before,
            after=after,
            agreement=agreement,
            latency=latency,
            gates=gates_of(options.gates, agreement),
            groups=[],
            left_alone=[],
            folded=[],
            stages={},
            warnings=unique(
                *put_right(*graphs.values()),
                *running.notes,
                *not_accepted(healed.record),
                *self._flattered(),
                *warnings,
                *counted.notes,
                *unsteady(latency),
            ),
            versions=library_versions() | healed.record.versions,
            origin=provenance_of(
                options.outputs.command,
                options.runtime.device,
                options.data.seed,
                running.engine,
                {name: (source, graphs[name]) for name, source in sources.items()},
                {"data": data, "eval": options.data.eval},
            ),
            healing=healed.record,
        )

    def _flattered(self) -> list[str]:
        """What must be known where the small model was solved on the samples that now judge it."""
        learnt = self.running.samples(self.train, *(form.original for form in self.forms))
        if not made_on(self.forms[1].original, learnt.summary.hashes):
            return []
        return [
            "the small model was made on some of these samples, so those kept aside flatter what it was before healing "
            "(`shrink --heal` keeps them from the solve, too)"
        ]

    def _unseen(self, check: Samples) -> Unseen:
        """The samples of the check that the healing has not seen, nor what the small model was made on."""
        if self.held_out is None:
            why = "checked on the samples that it has learnt from: keep some back or give --eval"
            return Unseen(np.zeros(check.summary.count, np.bool_), (why,))
        learnt = self.running.samples(self.train, *(form.original for form in self.forms))
        why_not = all_alike(check.summary, "the check")
        if made_on(self.forms[1].original, check.summary.hashes):
            why_not = "these are samples that the small model was made on"
        return unseen(check.summary, [learnt.summary.hashes], what="healing has seen").without_bound(why_not)


@contextmanager
def _going_on(checkpoint: Path | None, *, resume: bool) -> Iterator[None]:
    """Say of an interrupt inside that it leaves a checkpoint of this run, and how to go on from it."""
    before = _written(checkpoint)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if _written(checkpoint) is not None and (resume or _written(checkpoint) != before):
            interrupt.add_note(f"'{checkpoint}' is left: the same command with --resume goes on from there")
        raise


def _written(checkpoint: Path | None) -> int | None:
    """When a checkpoint was written, None where there is none."""
    return None if checkpoint is None or not checkpoint.exists() else checkpoint.stat().st_mtime_ns


def _left(checkpoint: Path | None) -> str:
    """What is said of a checkpoint that a failed gate leaves: the training need not be done again."""
    if checkpoint is None or not checkpoint.exists():
        return ""
    return f" ('{checkpoint}' is left: with --resume, other limits are checked without training again)"


def _write(healed: Healed, model: ModelSource, output: str | os.PathLike[str]) -> None:
    """The healed model; one that was not accepted as it lies on the disk, where it is one file."""
    if not healed.record.verdict.accepted and isinstance(model, str | os.PathLike) and not healed.graph.files:
        write_atomic(output, Path(model).read_bytes())
    else:
        healed.graph.save(output)
    path = checkpoint_path(output)
    if path is not None:
        path.unlink(missing_ok=True)
