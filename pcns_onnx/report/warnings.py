"""What a reader of a report must be warned of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from pcns_onnx.cost.model import ModelSize
from pcns_onnx.data.fingerprints import SampleSummary
from pcns_onnx.evaluation.precisions import Precision
from pcns_onnx.graph import Graph
from pcns_onnx.methods.strategy import Solution
from pcns_onnx.numerics.arrays import namespace_of
from pcns_onnx.numerics.confidence import LEAST
from pcns_onnx.planning.problem import Problem
from pcns_onnx.report.decisions_lost import decisions_lost
from pcns_onnx.report.schema import GroupInfo
from pcns_onnx.report.shares import share
from pcns_onnx.rewrite.layer_weights import stored_weight

FEW = 5.0
"""Samples per neuron below which a warning is given (the PCNS drafts ask for 5 to 10)."""
APART, LOUD = 2.0, 1e-3
"""So many times the error of the samples that a layer was solved on, and so much of the variance, may others miss."""
SLOWER = "the result is slower than the original here: --budget latency=F narrows only layers that get faster by it"
NOTHING_CHECKED = "nothing was checked: there are no samples to compare on (latency is on noise); give --data or --eval"


OVERGROWN = 100.0
"""Times the largest weight of the original from which on that of a re-fit is said."""
NOTE = 1024
"""Bytes that the note of provenance may take."""


def unique(*texts: str) -> list[str]:
    """What is to be said, each text once."""
    return list(dict.fromkeys(texts))


def grown(before: ModelSize, after: ModelSize) -> list[str]:
    """What of a result is larger than it was, but for the note of where it comes from."""
    sizes = {"parameters": (before.parameters, after.parameters), "bytes": (before.bytes + NOTE, after.bytes)}
    larger = [f"{b:,} {name} after {a:,}" for name, (a, b) in sizes.items() if b > a]
    return [f"the result is larger than the original: {' and '.join(larger)}"] if larger else []


def samples_per_neuron(problem: Problem, name: str) -> float:
    """Different samples, at all positions, for each of a layer's neurons."""
    layer = problem.dependencies.layer(name)
    shape = tuple(int(d or 1) for d in problem.dependencies.shapes[layer.source])
    return problem.calibration.samples.summary.distinct * layer.linear.op.positions(shape) / max(layer.width, 1)


def put_right(*models: Graph) -> list[str]:
    """What was wrong with files that were read, where onnx's checker refuses them, and what is an input no more."""
    notes = [f"onnx's checker refuses the model, which was put right: {'; '.join(m.notes)}" for m in models if m.notes]
    stored = sorted({name for model in models for name in model.layout.stored})
    names, verb = ", ".join(f"'{name}'" for name in stored), "are" if len(stored) > 1 else "is"
    if stored:
        notes.append(f"{names} {verb} no input any more: only the branches stay that --constant makes the model take")
    return notes


def apart(infos: Sequence[GroupInfo]) -> list[str]:
    """Layers whose solve holds for its own samples only, at the ridge that does best on others."""
    fits = {name: fit for info in infos for name, fit in info.fits.items()}
    missed = {name: fit.held_out_error or 0.0 for name, fit in fits.items()}
    apart = [name for name, fit in fits.items() if missed[name] > max(APART * (fit.error or 0.0), LOUD)]
    if not apart:
        return []
    worst = max(apart, key=lambda name: missed[name])
    fit = fits[worst]
    return [
        f"{len(apart)} of {len(fits)} layers miss more on samples that they were not solved on (worst: '{worst}' with "
        f"{share(missed[worst])} of the variance of its outputs there and {share(fit.error)} where it was solved, with "
        f"ridge {fit.ridge:g}): give more samples"
    ]


def few_samples(problem: Problem) -> list[str]:
    """Layers with too few samples for what they have neurons."""
    few = {g.name: r for g in problem.groups if (r := samples_per_neuron(problem, g.name)) < FEW}
    if not few:
        return []
    worst = min(few, key=lambda name: few[name])
    return [
        f"few samples: {len(few)} of {len(problem.groups)} layers have under {FEW:g} per neuron (least: '{worst}' with "
        f"{few[worst]:.1f}): give more samples"
    ]


def all_alike(summary: SampleSummary, where: str = "the solve") -> str | None:
    """Why no sample says anything: all are the same, or some input is in all; None where they vary."""
    if summary.distinct == 1:
        same = f"all {summary.count} samples of {where} are the same"
        samples = f"{where} has one sample" if summary.count == 1 else same
        zero = ", nothing but zeros" if summary.zero and len(summary.zero) == summary.inputs else ""
        return f"{samples}{zero}: give many, as the model meets them in use"
    if summary.constant:
        zero = ", zero," if set(summary.constant) <= set(summary.zero) else ""
        of_all = f"all {summary.count} samples of {where}"
        if len(summary.constant) == 1:
            named, they = f"input {quoted(summary.constant)} is", "it varies"
        else:
            named, they = f"inputs {quoted(summary.constant)} are", "they vary"
        return f"{named} the same{zero} in {of_all}: give samples in which {they} as in use"
    return None


def of_precision(precision: Precision) -> list[str]:
    """What there is to say of a model in fewer bits: decisions that it loses, and whether it is slower."""
    kind, lost, warnings = precision.kind, decisions_lost(precision.agreement), list[str]()
    if lost is not None:
        warnings.append(f"{kind}: {lost}, on the {precision.agreement.samples} samples of the check")
    if precision.latency.ratio > 1:
        warnings.append(f"{kind} is slower than the original here: it takes {precision.latency.ratio:.2f} of the time")
    return warnings


def quoted(names: Iterable[str]) -> str:
    """Names as sentences have them."""
    return ", ".join(f"'{name}'" for name in names)


def degenerate(summary: SampleSummary, where: str = "the solve", *, counts: bool = True) -> list[str]:
    """What is wrong with samples: always alike, too often the same, or (where that `counts`) too few."""
    if (alike := all_alike(summary, where)) is not None:
        return [alike]
    repeated, warnings = summary.count - summary.distinct, list[str]()
    if repeated:
        warnings.append(
            f"{repeated} of {summary.count} samples of {where} repeat others: they count as {summary.distinct}, give "
            "different ones"
        )
    if counts and summary.distinct < LEAST:
        few = f"{summary.distinct} different samples"
        warnings.append(f"{where} has {few}: all its figures rest on these, give {LEAST} or more")
    return warnings


def starved(solution: Solution, problem: Problem) -> list[str]:
    """Re-fits that have fewer different rows than unknowns: they can be met by chance."""
    summary = problem.calibration.samples.summary
    fits = solution.by_layer
    rows = {name: fit.rows * summary.distinct // max(summary.count, 1) for name, fit in fits.items()}
    short = {name: int(fit.matrix.shape[1]) for name, fit in fits.items() if rows[name] < int(fit.matrix.shape[1])}
    if not short:
        return []
    worst = min(short, key=lambda name: rows[name] / short[name])
    return [
        f"{len(short)} of {len(fits)} re-fits have fewer rows than unknowns (least: '{worst}' with {rows[worst]} for "
        f"{short[worst]}), so that many solutions fit equally well: give more samples"
    ]


def overgrown(solution: Solution, problem: Problem) -> list[str]:
    """Re-fits with weights far beyond any that the layer had: they multiply what hardly varies on these samples."""
    fits = solution.by_layer
    grown_by = dict[str, tuple[float, float, float]]()
    for name, fit in fits.items():
        was = float(np.abs(stored_weight(problem.graph, problem.dependencies.layer(name))).max(initial=0.0))
        now = float(namespace_of(fit.matrix).abs(fit.matrix).max()) if fit.matrix.size else 0.0
        if now > OVERGROWN * was > 0:
            grown_by[name] = now / was, now, was
    if not grown_by:
        return []
    name = max(grown_by, key=lambda one: grown_by[one])
    _, now, was = grown_by[name]
    return [
        f"{len(grown_by)} of {len(fits)} re-fits have weights far beyond the original's (most: '{name}' {now:,.3g} "
        f"where that has {was:,.3g}), for channels that hardly vary in these samples: give more samples"
    ]


def still(solution: Solution) -> list[str]:
    """Re-fits whose targets do not vary on the samples: a constant would meet them."""
    fits = solution.by_layer
    names = [name for name, fit in fits.items() if fit.error != fit.error]
    if not names:
        return []
    return [
        f"{len(names)} of {len(fits)} layers that are solved again compute the same for all samples ('{names[0]}' is "
        "the first), so that their new weights hold for these only: give samples that differ"
    ]


def doubts(solution: Solution, problem: Problem) -> list[str]:
    """What makes a solve doubtful."""
    return [*starved(solution, problem), *overgrown(solution, problem), *still(solution)]


def of_samples(problem: Problem, weak: Sequence[str]) -> list[str]:
    """What must be known of the samples that a model was solved on; `weak`: the doubts about the solve."""
    summary = problem.calibration.samples.summary
    if all_alike(summary) is not None:
        return degenerate(summary)
    few = few_samples(problem)
    return [*few, *degenerate(summary, counts=not few), *weak]
