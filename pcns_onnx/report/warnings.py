"""What a reader of a report must be warned of."""

from __future__ import annotations

from collections.abc import Sequence

from pcns_onnx.planning.problem import Problem
from pcns_onnx.report.schema import GroupInfo

FEW = 5.0
"""Samples per neuron below which a warning is given (the PCNS drafts ask for 5 to 10)."""
APART, LOUD = 2.0, 1e-3
"""So many times the error of the samples that a layer was solved on, and so much of the variance, may others miss."""
SLOWER = "the result is slower than the original here: a latency budget leaves layers alone where that does not pay"
NOTHING_CHECKED = "nothing was checked: there are no samples to compare on (latency is on noise); give --data or --eval"


def grown(before: int, after: int) -> list[str]:
    """Where there are more parameters than before, in spite of fewer channels."""
    if after <= before:
        return []
    return [
        f"{after:,} parameters are stored where there were {before:,}: the solve has added more biases than what was "
        "taken out; narrow further, or leave more layers alone"
    ]


def samples_per_neuron(problem: Problem, name: str) -> float:
    """Samples, at all positions, for each of a layer's neurons."""
    layer = problem.dependencies.layer(name)
    shape = tuple(int(d or 1) for d in problem.dependencies.shapes[layer.source])
    return problem.calibration.samples.count * layer.linear.op.positions(shape) / max(layer.width, 1)


def apart(infos: Sequence[GroupInfo]) -> list[str]:
    """Layers whose solve holds for its own samples only, at the ridge that does best on others."""
    fits = {name: fit for info in infos for name, fit in info.fits.items()}
    missed = {name: fit.held_out_error or 0.0 for name, fit in fits.items()}
    apart = [name for name, fit in fits.items() if missed[name] > max(APART * fit.error, LOUD)]
    if not apart:
        return []
    worst = max(apart, key=lambda name: missed[name])
    fit = fits[worst]
    return [
        f"{len(apart)} of {len(fits)} layers miss more on samples that they were not solved on, worst '{worst}': "
        f"{missed[worst]:.2%} of the variance against {fit.error:.2%}, its ridge being raised to {fit.ridge:g}; more "
        "samples would do better"
    ]


def few_samples(problem: Problem) -> list[str]:
    """Layers with too few samples for what they have neurons."""
    few = {g.name: r for g in problem.groups if (r := samples_per_neuron(problem, g.name)) < FEW}
    if not few:
        return []
    worst = min(few, key=lambda name: few[name])
    return [
        f"few samples: {len(few)} of {len(problem.groups)} layers have under {FEW:g} per neuron (least: '{worst}' with "
        f"{few[worst]:.1f}); more samples would do better"
    ]
