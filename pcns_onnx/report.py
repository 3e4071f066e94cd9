"""What a run says about itself: one record, as JSON and as tables for a terminal.

The record has a schema version. Numbers that depend on the machine (seconds, latency) are in
it and not in the model, so that the model's bytes depend on model, data, options and seed only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from rich.console import RenderableType
from rich.table import Table

from pcns_onnx.graph import write_atomic
from pcns_onnx.latency import Latency
from pcns_onnx.verify import Agreement

SCHEMA = 1


class LayerInfo(msgspec.Struct, frozen=True):
    """One layer with multiply-adds. `reason`: why its width must stay; `width` is 0 where it is not known.

    `group` names the group that it shares with other layers. `dimensions` and `samples_per_neuron` need data.
    """

    name: str
    kind: str
    width: int
    macs: int
    parameters: int
    reason: str | None = None
    dimensions: dict[str, int] | None = None
    samples_per_neuron: float | None = None
    group: str | None = None


class GroupRow(msgspec.Struct, frozen=True):
    """Channels that go together: `width` classes of `unit` channels each; `reason` says why they must stay."""

    name: str
    writers: list[str]
    width: int
    unit: int
    readers: list[str]
    coupled: bool
    reason: str | None = None


class BatchTrial(msgspec.Struct, frozen=True):
    """PCNS on batches of `rows` rows: medians of neurons and of the relative errors, on the batch and on new rows.

    `close` is the share of the batches whose error on new rows is at most a tenth above that on the batch.
    """

    rows: int
    neurons: int
    seen_error: float
    new_error: float
    worst_new_error: float
    close: float


class Outlook(msgspec.Struct, frozen=True):
    """What PCNS would find in one layer, before anything is changed.

    `eigenvalues` of the outputs centred across neurons, as shares of their sum, largest first. By share of variance:
    how many `eigenvectors` reach it, and how many `neurons` make them and the mean (None, with the `reason`, where
    the activation has no inverse). `reason`: why pcns would leave the layer alone. Least squares has `inputs` + 1
    unknowns per neuron.
    """

    name: str
    width: int
    inputs: int
    eigenvalues: list[float]
    eigenvectors: dict[str, int]
    neurons: dict[str, int] | None
    reason: str | None
    trials: list[BatchTrial]


class Inspection(msgspec.Struct, frozen=True):
    """What `inspect` finds. `shrinkable_macs` is the share of MACs in layers that touch a group that can shrink."""

    layers: list[LayerInfo]
    macs: int
    parameters: int
    shrinkable_macs: float
    warnings: list[str]
    groups: list[GroupRow] = []
    pcns: list[Outlook] = []
    schema: int = SCHEMA


class GroupInfo(msgspec.Struct, frozen=True):
    """One narrowed group. Errors are shares of the reader's output variance (`fits`: by reader)."""

    name: str
    width: int
    kept: int
    predicted_error: float
    fits: dict[str, FitInfo]
    refined: dict[str, RefineInfo] = {}
    eigenvector_errors: list[float] | None = None
    plain_eigenvector_errors: list[float] | None = None


class FitInfo(msgspec.Struct, frozen=True):
    """One re-fit: rows and columns of the system, the ridge that was chosen, errors."""

    rows: int
    columns: int
    ridge: float
    error: float
    held_out_error: float | None


class RefineInfo(msgspec.Struct, frozen=True):
    """One refinement: the share of the reader's output variance missed on samples kept aside, before and after."""

    before: float
    after: float


class Size(msgspec.Struct, frozen=True):
    """Cost of one model."""

    macs: int
    parameters: int
    bytes: int


class Stage(msgspec.Struct, frozen=True):
    """Seconds of a stage, and as a multiple of one pass of the original over the same samples."""

    seconds: float
    passes: float


class Left(msgspec.Struct, frozen=True):
    """A layer that was left alone."""

    name: str
    reason: str


class Gate(msgspec.Struct, frozen=True):
    """A limit that the caller set and what was measured."""

    name: str
    limit: float
    value: float

    @property
    def passed(self) -> bool:
        """Whether the limit holds; NaN never does."""
        return self.value <= self.limit


class Report(msgspec.Struct, frozen=True):
    """Everything about one `shrink` or `compare`."""

    options: dict[str, str]
    before: Size
    after: Size
    agreement: Agreement
    latency: Latency
    gates: list[Gate]
    groups: list[GroupInfo]
    left_alone: list[Left]
    folded: list[str]
    stages: dict[str, Stage]
    warnings: list[str]
    versions: dict[str, str]
    schema: int = SCHEMA

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically; NaN becomes null."""
        write_atomic(path, msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")


class Expanded(msgspec.Struct, frozen=True):
    """One group that was widened: its width before and after, and how many channels have copies."""

    name: str
    writers: list[str]
    readers: list[str]
    before: int
    after: int
    split: int


class Expansion(msgspec.Struct, frozen=True):
    """What `expand` did; `on_noise` where there were no samples to compare both models on."""

    method: str
    groups: list[Expanded]
    before: Size
    after: Size
    agreement: Agreement
    on_noise: bool
    warnings: list[str]
    schema: int = SCHEMA


def expansion_tables(report: Expansion) -> Iterator[RenderableType]:
    """Tables for `expand`."""
    widths = Table(box=None, header_style="bold", pad_edge=False)
    widths.add_column("layer", overflow="fold")
    for name in ("width", "now", "channels with copies"):
        widths.add_column(name, justify="right")
    for group in report.groups:
        widths.add_row(", ".join(group.writers), str(group.before), str(group.after), str(group.split))
    yield widths
    for name, a, b in (
        ("MACs", report.before.macs, report.after.macs),
        ("parameters", report.before.parameters, report.after.parameters),
    ):
        yield f"{name}: {a:,} -> {b:,} ({b / max(a, 1):.3f})"
    where = "samples of noise" if report.on_noise else "samples"
    yield f"relative error of any output on {report.agreement.samples} {where}: {report.agreement.error:.2g}"


def inspection_tables(found: Inspection) -> Iterator[RenderableType]:
    """Tables for `inspect`."""
    with_data = any(layer.dimensions is not None for layer in found.layers)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("layer", "kind"):
        table.add_column(name, overflow="fold")
    for name in ("width", "MACs", "params"):
        table.add_column(name, justify="right")
    if with_data:
        for name in ("99 %", "99.9 %", "99.99 %", "samples/neuron"):
            table.add_column(name, justify="right")
    table.add_column("can it shrink?", overflow="fold")
    for layer in found.layers:
        width = f"{layer.width:,}" if layer.width else ""
        row = [layer.name, layer.kind, width, f"{layer.macs:,}", f"{layer.parameters:,}"]
        if with_data:
            dims = layer.dimensions or {}
            row += [str(dims.get(share, "")) for share in ("0.99", "0.999", "0.9999")]
            row.append("" if layer.samples_per_neuron is None else f"{layer.samples_per_neuron:.1f}")
        said = "yes" if layer.reason is None else f"no: {layer.reason}"
        together = f", with '{layer.group}'" if layer.reason is None and layer.group not in (None, layer.name) else ""
        table.add_row(*row, said + together)
    yield table
    shared = [group for group in found.groups if group.reason is None and (len(group.writers) > 1 or group.unit > 1)]
    if shared:
        yield _shared_groups(shared)
    if found.pcns:
        yield from _outlooks(found.pcns)
    yield (
        f"{found.macs:,} MACs per sample, {found.parameters:,} parameters; "
        f"{100 * found.shrinkable_macs:.0f} % of the MACs are in layers that can shrink"
    )


def _shared_groups(groups: list[GroupRow]) -> Table:
    """Groups of more than one layer, or of more than one channel at a time."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("narrowed together", overflow="fold")
    table.add_column("width", justify="right")
    table.add_column("layers", overflow="fold")
    for group in groups:
        width = f"{group.width} x {group.unit}" if group.unit > 1 else str(group.width)
        table.add_row(group.name, width, ", ".join(group.writers))
    return table


def _outlooks(found: list[Outlook]) -> Iterator[Table]:
    """Eigenvectors by share of variance, then what the trials of batch sizes found."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("eigenvectors that reach", overflow="fold")
    for name in ("width", *(f"{100 * float(share):g} %" for share in found[0].eigenvectors), "share in width/10"):
        table.add_column(name, justify="right")
    table.add_column("pcns", overflow="fold")
    for layer in found:
        counts = [str(count) for count in layer.eigenvectors.values()]
        tenth = sum(layer.eigenvalues[: max(layer.width // 10, 1)])
        table.add_row(layer.name, str(layer.width), *counts, f"{tenth:.2%}", layer.reason or "can rebuild it")
    yield table
    if not any(layer.trials for layer in found):
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("pcns on batches of", overflow="fold")
    for name in ("rows", "rows/width", "rows/inputs", "neurons", "error there", "on new rows", "worst", "close"):
        table.add_column(name, justify="right")
    for layer in found:
        for trial in layer.trials:
            ratios = (f"{trial.rows / layer.width:.1f}", f"{trial.rows / layer.inputs:.1f}")
            errors = (f"{e:.2%}" for e in (trial.seen_error, trial.new_error, trial.worst_new_error))
            table.add_row(layer.name, str(trial.rows), *ratios, str(trial.neurons), *errors, f"{trial.close:.0%}")
    yield table


def report_tables(report: Report) -> Iterator[RenderableType]:
    """Tables for `shrink` and `compare`."""
    if report.groups:
        widths = Table(box=None, header_style="bold", pad_edge=False)
        widths.add_column("layer", overflow="fold")
        for name in ("width", "kept", "predicted error", "re-fit error", "held out"):
            widths.add_column(name, justify="right")
        if any(group.eigenvector_errors for group in report.groups):
            widths.add_column("eigenvectors: median, worst", justify="right")
        for group in report.groups:
            fits = list(group.fits.values())
            held = [f.held_out_error for f in fits if f.held_out_error is not None]
            widths.add_row(
                group.name,
                str(group.width),
                str(group.kept),
                f"{group.predicted_error:.2%}",
                f"{max(f.error for f in fits):.2%}" if fits else "",
                f"{max(held):.2%}" if held else "",
                *([f"{np.median(made):.1%}, {max(made):.1%}"] if (made := group.eigenvector_errors) else []),
            )
        yield widths
    if report.left_alone:
        left = Table(box=None, header_style="bold", pad_edge=False)
        left.add_column("left alone", overflow="fold")
        left.add_column("because", overflow="fold")
        for item in report.left_alone:
            left.add_row(item.name, item.reason)
        yield left
    yield _before_after(report)
    for gate in report.gates:
        verdict = "passed" if gate.passed else "FAILED"
        yield f"gate {gate.name}: {gate.value:.4g} (limit {gate.limit:g}) {verdict}"


def _before_after(report: Report) -> Table:
    a, b, latency, agreement = report.before, report.after, report.latency, report.agreement
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for name in ("before", "after", "ratio"):
        table.add_column(name, justify="right")
    for name, x, y in (
        ("MACs", a.macs, b.macs),
        ("parameters", a.parameters, b.parameters),
        ("file size (bytes)", a.bytes, b.bytes),
    ):
        table.add_row(name, f"{x:,}", f"{y:,}", f"{y / max(x, 1):.3f}")
    threads = f"{latency.threads or 'default'} thread{'' if latency.threads == 1 else 's'}"
    where = f"latency (ms; batch {latency.batch}, {threads}, {latency.provider})"
    table.add_row(where, f"{1e3 * latency.seconds_a:.3f}", f"{1e3 * latency.seconds_b:.3f}", f"{latency.ratio:.3f}")
    if agreement.score_a is not None and agreement.score_b is not None:
        unit = " (%)" if agreement.score == "accuracy" else ""
        change = f"{agreement.score_b - agreement.score_a:+.2f}"
        table.add_row(f"{agreement.score}{unit}", f"{agreement.score_a:.2f}", f"{agreement.score_b:.2f}", change)
    for output in agreement.outputs:
        same = "" if output.argmax_agreement is None else f", arg-max agrees {output.argmax_agreement:.2%}"
        text = f"relative error {output.relative_error:.4f}, cosine {output.cosine:.4f}{same}"
        seen = f"{agreement.samples} sample{'' if agreement.samples == 1 else 's'}"
        table.add_row(f"output '{output.name}' on {seen}", "", text, "")
        proved = [] if output.argmax_bound is None else [f"arg-max differs on at most {output.argmax_bound:.2%}"]
        proved += [] if output.error_bound is None else [f"95 % err by at most {output.error_bound:.4f}"]
        if proved:
            table.add_row("of new samples (95 % confidence)", "", ", ".join(proved), "")
    return table
