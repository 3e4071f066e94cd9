"""Records as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table

from pcns_onnx.architecture.blueprint import Blueprint, configuration_text
from pcns_onnx.cost.model import counted_text
from pcns_onnx.cost.resources import COUNTED, RESOURCES, TIMED
from pcns_onnx.evaluation.agreement import Agreement
from pcns_onnx.evaluation.output_tally import OutputAgreement
from pcns_onnx.methods.pcns.assessment import PcnsAssessment
from pcns_onnx.planning.plan import SkippedLayer
from pcns_onnx.report.schema import Expansion, GroupRow, Inspection, PlanReport, Report
from pcns_onnx.report.shares import flipped, number, share, worst_share

_BAR = 40
"""Columns of the longest bar of a frontier."""
ERRORS = "errors: of the variance of what the next layers compute; kept aside: on samples not used by the re-fit"
"""What the errors of layers are shares of."""


def plain_table(*left: str, right: Sequence[str] = ()) -> Table:
    """A table without lines: columns of texts, which are folded where they are long, then columns of numbers."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    return table


def inspection_tables(inspection: Inspection) -> Iterator[RenderableType]:
    """Tables for `inspect`."""
    with_data = any(layer.dimensions is not None for layer in inspection.layers)
    table = plain_table("layer", "kind", right=("width", "MACs", "params"))
    if with_data:
        for name in ("dims at 99 %", "99.9 %", "99.99 %", "samples/neuron"):
            table.add_column(name, justify="right")
    table.add_column("can it shrink?", overflow="fold")
    for layer in inspection.layers:
        width = f"{layer.width:,}" if layer.width else ""
        macs = "unknown" if layer.macs is None else f"{layer.macs:,}"
        row = [layer.name, layer.kind, width, macs, f"{layer.parameters:,}"]
        if with_data:
            dims = layer.dimensions or {}
            row += [str(dims.get(share, "")) for share in ("0.99", "0.999", "0.9999")]
            row.append("" if layer.samples_per_neuron is None else f"{layer.samples_per_neuron:.1f}")
        answer = "yes" if layer.reason is None else f"no: {layer.reason}"
        together = f", with '{layer.group}'" if layer.reason is None and layer.group not in (None, layer.name) else ""
        table.add_row(*row, answer + together)
    yield table
    shared = [
        group for group in inspection.groups if group.reason is None and (len(group.writers) > 1 or group.unit > 1)
    ]
    if shared:
        yield _shared_groups(shared)
    if inspection.pcns:
        yield from _assessments(inspection.pcns)
    yield _sums(inspection)


def _sums(inspection: Inspection) -> str:
    """What the layers cost together, and how much of it narrowing reaches; what is not known is said."""
    unknown, share = inspection.unknown_macs, inspection.shrinkable_macs
    costs = f"{counted_text(inspection.macs or 0, unknown)} MACs per sample, {inspection.parameters:,} parameters; "
    if share is None:
        return costs + ("how many of the MACs are in layers that can shrink is unknown" if unknown else "no layers")
    known = "known MACs" if unknown else "MACs"
    others = f"; those of {unknown} layer{'' if unknown == 1 else 's'} are unknown" if unknown else ""
    return f"{costs}{100 * share:.0f} % of the {known} are in layers that can shrink{others}"


def _shared_groups(groups: list[GroupRow]) -> Table:
    """Groups of more than one layer, or of more than one channel at a time."""
    table = plain_table("narrowed together", right=("width",))
    table.add_column("layers", overflow="fold")
    for group in groups:
        width = f"{group.width} x {group.unit}" if group.unit > 1 else str(group.width)
        table.add_row(group.name, width, ", ".join(group.writers))
    return table


def _assessments(layers: list[PcnsAssessment]) -> Iterator[Table]:
    """Eigenvectors by share of variance, then what the trials of batch sizes found."""
    shares = sorted(layers[0].eigenvectors, key=float)
    reached = (f"{100 * float(share):g} %" for share in shares)
    table = plain_table("eigenvectors that reach", right=("width", *reached, "variance in width/10"))
    table.add_column("--method pcns", overflow="fold")
    for layer in layers:
        counts = [str(layer.eigenvectors[share]) for share in shares]
        tenth = sum(layer.eigenvalues[: max(layer.width // 10, 1)])
        table.add_row(layer.name, str(layer.width), *counts, f"{tenth:.2%}", layer.reason or "can rebuild it")
    yield table
    if not any(layer.trials for layer in layers):
        return
    figures = ("rows", "rows/width", "rows/inputs", "neurons", "error there", "on new rows", "worst", "close")
    table = plain_table("pcns on batches of", right=figures)
    for layer in layers:
        for trial in layer.trials:
            ratios = (f"{trial.rows / layer.width:.1f}", f"{trial.rows / layer.inputs:.1f}")
            errors = (share(e) for e in (trial.seen_error, trial.new_error, trial.worst_new_error))
            table.add_row(layer.name, str(trial.rows), *ratios, str(trial.neurons), *errors, f"{trial.close:.0%}")
    yield table


def _left_alone(items: Sequence[SkippedLayer]) -> Table:
    """What stayed as it was, and why."""
    table = plain_table("left alone", "because")
    for item in items:
        table.add_row(item.label, item.reason)
    return table


def report_tables(report: Report) -> Iterator[RenderableType]:
    """Tables for `shrink` and `compare`."""
    if report.groups:
        widths = plain_table("layer", right=("width", "kept", "predicted error", "re-fit error", "kept aside"))
        if any(group.eigenvector_errors for group in report.groups):
            widths.add_column("eigenvectors: median, worst", justify="right")
        for group in report.groups:
            fits = list(group.fits.values())
            refits, held_out = (worst_share(getattr(f, of) for f in fits) for of in ("error", "held_out_error"))
            widths.add_row(
                group.name,
                str(group.width),
                str(group.kept),
                share(group.predicted_error),
                share(refits) if fits else "",
                share(held_out) if fits else "",
                *(
                    [f"{share(float(np.median(errors)), 1)}, {share(max(errors), 1)}"]
                    if (errors := group.eigenvector_errors)
                    else []
                ),
            )
        yield Group(widths, ERRORS) if any(group.fits for group in report.groups) else widths
    if report.left_alone:
        yield _left_alone(report.left_alone)
    yield _before_after(report)
    if report.agreement.outputs:
        yield "\n".join(_agreement(report.agreement))
    if report.precisions:
        yield _precisions(report)
    for gate in report.gates:
        verdict = "passed" if gate.passed else "FAILED"
        yield f"gate {gate.name}: {gate.value:.4g} (limit {gate.limit:g}) {verdict}"


def _before_after(report: Report) -> Table:
    a, b, latency, agreement = report.before, report.after, report.latency, report.agreement
    table = plain_table()
    table.add_column("")
    for name in ("before", "after", "ratio"):
        table.add_column(name, justify="right")
    table.add_row("MACs", a.macs_text, b.macs_text, a.macs_ratio(b))
    for name, x, y in (
        ("parameters", a.parameters, b.parameters),
        ("file size (bytes)", a.bytes, b.bytes),
    ):
        table.add_row(name, f"{x:,}", f"{y:,}", f"{y / max(x, 1):.3f}")
    where = f"latency (ms; batch {latency.batch}, {_threads(latency.threads)}, {latency.provider})"
    table.add_row(where, f"{1e3 * latency.seconds_a:.3f}", f"{1e3 * latency.seconds_b:.3f}", f"{latency.ratio:.3f}")
    if agreement.score_a is not None and agreement.score_b is not None:
        unit = " (%)" if agreement.score == "accuracy" else ""
        change = f"{agreement.score_b - agreement.score_a:+.2f}"
        table.add_row(f"{agreement.score}{unit}", f"{agreement.score_a:.2f}", f"{agreement.score_b:.2f}", change)
    return table


def _threads(count: int) -> str:
    return f"{count or 'default'} thread{'' if count == 1 else 's'}"


def _samples(count: int) -> str:
    return f"{count} sample{'' if count == 1 else 's'}"


def _agreement(agreement: Agreement) -> Iterator[str]:
    """How close the outputs are, and what that proves: lines, since a table would make its columns as wide."""
    samples = _samples(agreement.samples)
    for output in agreement.outputs:
        if (counts := output.counts) is not None:
            yield (
                f"output '{output.name}' on {samples}: holds {counts.b:.4g} on average, {counts.a:.4g} in the original,"
                f" as much in {counts.same:.1%} of the runs"
            )
            continue
        same = "" if output.argmax_agreement is None else f", arg-max agrees {output.argmax_agreement:.2%}"
        where = samples if output.feeds is None else f"{output.feeds} feed{'' if output.feeds == 1 else 's'}"
        yield (
            f"{_what(output)} on {where}: relative error {number(output.relative_error)}, "
            f"cosine {number(output.cosine)}{same}{flipped(output, '%')}"
        )
        if output.channels:
            worst = ", ".join(f"{item.channel} by {item.error:.4f} of its scale" for item in output.channels)
            yield f"its channels that err most: {worst}"
        proved = [] if output.argmax_bound is None else [f"arg-max differs on at most {output.argmax_bound:.2%}"]
        proved += [] if output.flip_bound is None else [f"decision differs on at most {output.flip_bound:.2%}"]
        proved += [] if output.error_bound is None else [f"95 % err by at most {output.error_bound:.4f}"]
        if proved:
            yield f"of new samples (95 % confidence): {', '.join(proved)}"


def _what(output: OutputAgreement) -> str:
    if output.stands_for is None:
        return f"output '{output.name}'"
    return f"'{output.name}', in front of output '{output.stands_for}',"


def stage_table(report: Report) -> Table:
    """Where the time went."""
    table = plain_table("stage", right=("seconds", "passes of the original"))
    for name, stage in report.stages.items():
        table.add_row(name, f"{stage.seconds:.2f}", f"{stage.passes:.1f}")
    return table


def _precisions(report: Report) -> Table:
    """The original, the shrunk model and its precisions, side by side."""
    table = plain_table()
    kinds = [f"shrunk, {precision.kind}" for precision in report.precisions]
    table.add_column("")
    for name in ("original", "shrunk", *kinds):
        table.add_column(name, justify="right")
    agreements = [report.agreement, *(precision.agreement for precision in report.precisions)]
    sizes = [report.before.bytes, report.after.bytes, *(precision.bytes for precision in report.precisions)]
    times = [report.latency.ratio, *(precision.latency.ratio for precision in report.precisions)]
    table.add_row("file size (bytes)", *(f"{size:,}" for size in sizes))
    table.add_row("latency (ratio to the original)", "1", *(f"{ratio:.3f}" for ratio in times))
    table.add_row(
        "latency (ratio to the shrunk model)", "", "1", *(f"{precision.on_top:.3f}" for precision in report.precisions)
    )
    if (first := report.agreement).score is not None:
        unit = " (%)" if first.score == "accuracy" else ""
        scores = [first.score_a, *(a.score_b for a in agreements)]
        table.add_row(f"{first.score}{unit}", *("" if score is None else f"{score:.2f}" for score in scores))
    table.add_row("relative error", "0", *(number(a.error) for a in agreements))
    for output in report.agreement.outputs:
        if output.argmax_agreement is not None:
            shares = [{o.name: o.argmax_agreement for o in a.outputs} for a in agreements]
            same = [share.get(output.name) or 0.0 for share in shares]
            table.add_row(f"arg-max of '{output.name}' agrees", "", *(f"{share:.2%}" for share in same))
    return table


def plan_tables(report: PlanReport) -> Iterator[RenderableType]:
    """Tables for `plan`."""
    if report.groups:
        shown = (COUNTED[0], *TIMED)
        saved = (f"saves {RESOURCES[name].label}" for name in shown)
        table = plain_table("layer", right=("width", "kept", "step", "predicted error", *saved))
        for name, entry in report.groups.items():
            saves = entry.saves or {}
            table.add_row(
                name,
                str(entry.of),
                str(entry.width),
                str(report.steps[name]),
                share(entry.error),
                *(f"{saves.get(resource, 0.0):.1%}" for resource in shown),
            )
        yield table
    where = f"batch {report.batch}, {_threads(report.threads)}, {report.provider}"
    table = plain_table(right=(*(row.label for row in RESOURCES.values()), "predicted error"))
    table.add_column("")
    most = max((point.error for point in report.points), default=0.0) or 1.0
    for point in report.points:
        # A bar by itself says nothing.
        bar = "█" * max(1, round(_BAR * point.error / most)) if len(report.points) > 1 else ""
        shares = (f"{point.costs[name]:.3f}" if name in point.costs else "" for name in RESOURCES)
        table.add_row(*shares, f"{point.error:.3f}", bar)
    yield Group(f"shares of the original's costs; latency at {where}", table)
    if report.left_alone:
        yield _left_alone(report.left_alone)


def expansion_tables(report: Expansion) -> Iterator[RenderableType]:
    """Tables for `expand`."""
    widths = plain_table("layer", right=("width", "now", "channels with copies"))
    for group in report.groups:
        widths.add_row(", ".join(group.writers), str(group.before), str(group.after), str(group.split))
    yield widths
    before, after = report.before, report.after
    macs = f"MACs: {before.macs_text} -> {after.macs_text} ({before.macs_ratio(after)})"
    costs = (
        f"{name}: {a:,} -> {b:,} ({b / max(a, 1):.3f})"
        for name, a, b in (("parameters", report.before.parameters, report.after.parameters),)
    )
    where = f"{_samples(report.agreement.samples)}{' of noise' if report.on_noise else ''}"
    yield "\n".join([macs, *costs, f"relative error of any output on {where}: {report.agreement.error:.2g}"])


def design_tables(blueprint: Blueprint) -> Iterator[RenderableType]:
    """Tables for `design`."""
    rank = {name: position for position, name in enumerate(blueprint.prunable, start=1)}
    figures = ("filters", "significant", "D/M", "sensitivity", "prune as no.", "in the design")
    layers = plain_table("layer", "kind", right=figures)
    for layer in blueprint.layers:
        layers.add_row(
            layer.name,
            layer.kind,
            str(layer.filters),
            str(layer.significant),
            f"{layer.rows_per_filter:,.0f}",
            f"{layer.sensitivity:.3f}",
            str(rank[layer.name]),
            str(layer.significant) if layer.stays else "dropped",
        )
    yield layers
    rows = plain_table("", "configuration", right=("MACs", "#ops", "parameters", "#params"))
    named = (
        ("initial", blueprint.initial),
        ("significant dimensions", blueprint.significant),
        ("final", blueprint.final),
    )
    for name, row in named:
        written = configuration_text(row.configuration)
        rows.add_row(name, written, f"{row.macs:,}", f"{row.ops:.2f}X", f"{row.parameters:,}", f"{row.params:.2f}X")
    yield rows
    yield f"variance {blueprint.variance:.6g}, depth {blueprint.depth}, {blueprint.samples:,} samples"
