"""Is PCNS worth running? What can be known before anything is changed (Rolet, 3.1 to 3.3).

One pass over the data gives, for every layer, the eigenvalues of its transposed outputs, centred
across neurons as PCNS has them, and how many eigenvectors reach a share of the variance. With
`--trials` PCNS is also run on batches of several sizes, to see how its error carries over to
samples it has not seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from pcns_onnx.calibration.eigenbasis import Basis
from pcns_onnx.calibration.layer_outputs import bases, output_spectra
from pcns_onnx.dependency.groups import Group
from pcns_onnx.dependency.options import Scope
from pcns_onnx.errors import InputError
from pcns_onnx.methods.pcns.activations import Activation
from pcns_onnx.methods.pcns.batch_size import Draw, draws
from pcns_onnx.methods.pcns.components import neurons_for
from pcns_onnx.methods.pcns.eligibility import activation_of, refusal
from pcns_onnx.methods.pcns.rebuild import augmented, rows
from pcns_onnx.numerics.arrays import Array, to_numpy
from pcns_onnx.numerics.linalg import dimensions_for, eigh_descending
from pcns_onnx.numerics.moments import Moments
from pcns_onnx.planning.problem import Problem

SHARES = ("0.9", "0.99", "0.999", "0.9999")
"""Shares of variance that eigenvectors are counted for, beside `--variance`."""
_TRIED = 0.999
"""The share that trials use where `--variance` gives none."""


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


class PcnsAssessment(msgspec.Struct, frozen=True):
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


def assess(
    problem: Problem, scope: Scope, *, variance: float | None = None, trials: int | None = None
) -> tuple[dict[str, dict[str, int]], list[PcnsAssessment]]:
    """By layer, the principal directions of its outputs (centred over samples) for each share; and the assessments.

    Directions are not counted where that would take a large matrix for a layer that stays anyway.
    """
    shares = [*SHARES, *([] if variance is None else [f"{variance:g}"])]
    dimensions, assessments = dict[str, dict[str, int]](), list[PcnsAssessment]()
    for group, values, moments in _spectra(problem):
        dimensions[group.name] = {share: dimensions_for(values, float(share)) for share in SHARES[1:]}
        if group.frozen is None and moments is not None:
            basis = Basis.of(moments.mean_x, moments.covariance)
            assessment = _assessment(problem, group, basis, list(dict.fromkeys(shares)))
            if trials and assessment.reason is None and scope.wants(group.name):
                sampled = _trials(problem, group, variance or _TRIED, trials)
                assessment = msgspec.structs.replace(assessment, trials=sampled)
            assessments.append(assessment)
    return dimensions, assessments


def _spectra(problem: Problem) -> Iterator[tuple[Group, Array, Moments | None]]:
    """Spectra of all groups, or of those that can shrink where NaN or Inf come out of others."""
    groups, dependencies = problem.dependencies.groups, problem.dependencies
    try:
        yield from output_spectra(problem.calibration, problem.graph, dependencies, groups)
    except InputError:  # it comes before anything is yielded
        free = dependencies.shrinkable
        if len(free) == len(groups):
            raise
        yield from output_spectra(problem.calibration, problem.graph, dependencies, free)


def eigenvalue_shares(problem: Problem) -> dict[str, list[float]]:
    """By group, the eigenvalues of its outputs' covariance (centred over samples), as shares of their sum."""
    shares = dict[str, list[float]]()
    for group, _, moments in bases(problem.calibration, problem.graph, problem.dependencies, problem.groups):
        values = np.maximum(to_numpy(eigh_descending(moments.covariance)[0]), 0.0)
        shares[group.name] = [float(v) for v in values / max(float(values.sum()), 1e-300)]
    return shares


def _assessment(problem: Problem, group: Group, basis: Basis, shares: list[str]) -> PcnsAssessment:
    linear = problem.dependencies.layer(group.name).linear
    reason = refusal(problem.graph, problem.dependencies, group, refit=True)
    sigma = activation_of(problem.graph, problem.dependencies, group)
    values = to_numpy(basis.values)
    counts = {share: basis.components(float(share)) for share in shares}
    return PcnsAssessment(
        name=group.name,
        width=len(values),
        inputs=len(linear.reads) // linear.op.conv_groups * linear.op.taps,
        eigenvalues=[float(v) for v in values / max(float(values.sum()), 1e-300)],
        eigenvectors=counts,
        neurons=None
        if isinstance(sigma, str)
        else {share: min(neurons_for(count, sigma), len(values)) for share, count in counts.items()},
        reason=reason,
        trials=[],
    )


def _trials(problem: Problem, group: Group, variance: float, count: int) -> list[BatchTrial]:
    """Medians over the draws of each batch size; 'close': on new rows at most a tenth worse than on its batch."""
    sigma = activation_of(problem.graph, problem.dependencies, group)
    assert isinstance(sigma, Activation), "refused groups are not tried"
    x, t = rows(problem.calibration, problem.graph, problem.graph, problem.dependencies, group)
    weight = augmented(problem.calibration, problem.graph, problem.dependencies.layer(group.name))
    seed = (problem.calibration.seed, 6, problem.dependencies.groups.index(group))
    by_size: dict[int, list[Draw]] = {}
    for draw in draws(x, t, weight, sigma, variance, count, seed):
        by_size.setdefault(draw.rows, []).append(draw)
    return [
        BatchTrial(
            rows=size,
            neurons=int(np.median([d.neurons for d in same_size])),
            seen_error=float(np.median([d.batch_error for d in same_size])),
            new_error=float(np.median([d.new_error for d in same_size])),
            worst_new_error=max(d.new_error for d in same_size),
            close=sum(d.new_error <= 1.1 * d.batch_error for d in same_size) / len(same_size),
        )
        for size, same_size in by_size.items()
    ]
