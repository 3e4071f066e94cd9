"""PCNS: neurons replaced by the principal components of their outputs (Rolet, 2022).

With t (N) the outputs of a layer, centred *across neurons* by m = (1/N) sum_i t_i, and
U S² Uᵀ the eigen-decomposition of E[(t - m 1)(t - m 1)ᵀ]:

1. the eigenvectors of the transposed outputs are e = S⁻¹ Uᵀ (t - m 1), a function of one
   sample's activations, so nothing as long as the batch is stored;
2. the new layer makes e_1..e_M and m: least squares from its inputs to sigma⁻¹ of them;
3. the reader becomes V P with P = [U S, 1]: lambda_ji = <TO_j - mean | EV_i> is U S. (The drafts
   write <TO_j | EV_i>, which counts the mean twice, and one of them omits 1/N in the mean.)

At full width every basis spans the space, so the neurons themselves are taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.eigenbasis import Basis
from pcns_onnx.methods.pcns.activations import Activation
from pcns_onnx.numerics.arrays import Array, namespace_of, to_numpy
from pcns_onnx.numerics.linalg import add_ridge, majorize, solve_spd

_RIDGES = (1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_STEPS = 60
_SCALES = (0.3, 0.5, 0.7, 0.85, 0.95, 0.99)


def neurons_for(components: int, sigma: Activation) -> int:
    """Neurons that carry M components and the mean: M + 1, or 2M + 1 behind a one-sided activation."""
    return (2 if sigma.handling == "one-sided" else 1) * components + 1


def components_in(neurons: int, sigma: Activation) -> int:
    """M: how many components fit into a layer of so many neurons."""
    return (neurons - 1) // (2 if sigma.handling == "one-sided" else 1)


def width_curve(basis: Basis, sigma: Activation) -> NDArray[np.float64]:
    """(N+1,): share of variance lost when a layer of w neurons is made (before step 2's error)."""
    values = to_numpy(basis.values)
    total = max(float(values.sum()), 1e-300)
    tail = np.append(values.sum() - np.cumsum(values), 0.0)
    lost = np.concatenate([[values.sum()], tail[:-1]]) / total
    n = len(values)
    error = np.ones(n + 1)
    for width in range(1, n + 1):
        error[width] = lost[min(components_in(width, sigma), n)]
    error[n] = 0.0
    return np.clip(error, 0.0, 1.0)


@dataclass(frozen=True)
class RebuiltLayer:
    """A layer rebuilt: W (w, n) and b (w,); t ~ P t_new + q with P (N, w) and q (N,).

    `errors` (w,) are the relative L2 errors of each generated eigenvector (and, last, of the
    mean); `plain_errors` the same for ordinary least squares to sigma⁻¹ of the targets.
    """

    matrix: Array
    bias: Array
    projection: Array
    offset: Array
    errors: NDArray[np.float64]
    plain_errors: NDArray[np.float64]


def expand_components(x: Array, t: Array, weight: Array, basis: Basis, sigma: Activation, width: int) -> RebuiltLayer:
    """Steps 1 to 3 on rows of inputs x (R, n) and outputs t (R, N), for a layer of `width` neurons.

    `weight` (N, n + 1) are the layer's own weights, its bias last: the same mixtures of its rows
    are what the ridge pulls the new neurons towards, so that they are exact without sigma.
    """
    xp = namespace_of(x)
    x = xp.concat([xp.astype(x, xp.float64), xp.ones((int(x.shape[0]), 1), dtype=xp.float64)], axis=1)
    t = xp.astype(t, xp.float64)
    neurons = int(t.shape[1])
    if width >= neurons:
        demix = projection = xp.eye(neurons, dtype=xp.float64)
    else:
        demix, projection = _mixtures(basis, components_in(width, sigma))
    targets = t @ demix
    prior = weight.T @ demix
    if sigma.handling == "one-sided" and width < neurons:
        targets, prior, projection = _signed(targets, prior, projection)
    if width < neurons:
        scale, shift = _into_range(x, targets, sigma)
    else:
        scale, shift = xp.ones(neurons, dtype=xp.float64), xp.zeros(neurons, dtype=xp.float64)
    inside = targets * scale + shift
    prior = prior * scale
    prior[-1, :] += shift
    plain, ridge = _least_squares(x, inside, prior, sigma)
    solved = _better(x, inside, sigma, _weighted(x, inside, plain, ridge, sigma), prior)
    projection = projection / scale
    return RebuiltLayer(
        matrix=solved[:-1, :].T,
        bias=solved[-1, :],
        projection=projection,
        offset=-(projection @ shift),
        errors=_relative(sigma.forward(x @ solved), inside, scale),
        plain_errors=_relative(sigma.forward(x @ plain), inside, scale),
    )


def _mixtures(basis: Basis, components: int) -> tuple[Array, Array]:
    """D (N, M + 1) with [e, m] = t D, and P (N, M + 1) with t ~ [e, m] Pᵀ."""
    xp = namespace_of(basis.values)
    neurons = int(basis.values.shape[0])
    scale = xp.sqrt(basis.values[:components])
    floor = float(xp.max(basis.values)) ** 0.5 * 1e-8
    scale = xp.where(scale > floor, scale, 1.0)  # what is nothing but rounding is not blown up
    vectors = basis.vectors[:, :components]
    centred = vectors - xp.mean(vectors, axis=0)[None, :]
    ones = xp.ones((neurons, 1), dtype=xp.float64)
    return xp.concat([centred / scale, ones / neurons], axis=1), xp.concat([vectors * scale, ones], axis=1)


def _signed(targets: Array, prior: Array, projection: Array) -> tuple[Array, Array, Array]:
    """e = e⁺ - e⁻ for all columns but the last: the mean of outputs that are not negative."""
    xp = namespace_of(targets)

    def paired(a: Array) -> Array:
        return xp.concat([a[:, :-1], -a[:, :-1], a[:, -1:]], axis=1)

    return xp.clip(paired(targets), 0.0, None), paired(prior), paired(projection)


def _least_squares(x: Array, inside: Array, prior: Array, sigma: Activation) -> tuple[Array, float]:
    """Ridge regression to sigma⁻¹(inside), towards `prior`, and the ridge that it took.

    That is the one with the least error behind sigma on the last fifth of the rows.
    """
    xp = namespace_of(x)
    cut = int(x.shape[0]) - int(x.shape[0]) // 5
    residual = _preactivations(inside, sigma) - x @ prior

    def solved(rows: int, ridge: float) -> Array:
        known = x[:rows, :]
        return prior + solve_spd(known.T @ known, known.T @ residual[:rows, :], ridge)

    def error(ridge: float) -> float:
        deviation = sigma.forward(x[cut:, :] @ solved(cut, ridge)) - inside[cut:, :]
        return float(xp.sum(deviation * deviation))

    best = min(_RIDGES, key=error)
    return solved(int(x.shape[0]), best), best


def _weighted(x: Array, inside: Array, plain: Array, ridge: float, sigma: Activation) -> Array:
    """Step 2 with the equations that matter behind sigma."""
    xp = namespace_of(x)
    if sigma.handling == "slope":
        wanted = _preactivations(inside, sigma)
        weights = xp.where(inside > 0, 1.0, sigma.alpha * xp.ones_like(inside)) ** 2
        top = max(1.0, sigma.alpha) ** 2
        weight, _ = majorize(x, plain, lambda s: s + (weights / top) * (wanted - s), ridge, _STEPS)
        return weight
    if sigma.handling == "one-sided":

        def retarget(s: Array) -> Array:
            wanted = xp.where(inside > 0, inside, xp.clip(s, None, 0.0))
            if sigma.high < float("inf"):
                wanted = xp.where(inside >= sigma.high, xp.clip(s, sigma.high, None), wanted)
            return wanted

        weight, _ = majorize(x, plain, retarget, ridge, _STEPS)
        return weight
    return plain


def _preactivations(inside: Array, sigma: Activation) -> Array:
    """sigma⁻¹ of targets; those that saturate (float32 outputs do) are taken from just inside the range."""
    xp = namespace_of(inside)
    if sigma.handling == "one-sided":
        return inside
    bounded = sigma.low > float("-inf"), sigma.high < float("inf")
    margin = 1e-6 * (sigma.high - sigma.low if all(bounded) else 1.0)
    low, high = sigma.low + margin if bounded[0] else None, sigma.high - margin if bounded[1] else None
    return sigma.inverse(xp.clip(inside, low, high) if any(bounded) else inside)


def _better(x: Array, inside: Array, sigma: Activation, solved: Array, prior: Array) -> Array:
    """Neuron by neuron the answer with the least error behind sigma: at full width the prior has none."""
    xp = namespace_of(x)

    def error(weight: Array) -> Array:
        residual = sigma.forward(x @ weight) - inside
        return xp.sum(residual * residual, axis=0)

    return xp.where((error(solved) <= error(prior))[None, :], solved, prior)


def _into_range(x: Array, targets: Array, sigma: Activation) -> tuple[Array, Array]:
    """Scale and shift (w,) that put each target into sigma's open range.

    Of several scales the one with the least error *after* sigma is taken: a tiny scale merely
    makes sigma linear, a large one runs into the saturation that least squares cannot follow.
    """
    xp = namespace_of(targets)
    width = int(targets.shape[1])
    best_scale, best_shift = xp.ones(width, dtype=xp.float64), xp.zeros(width, dtype=xp.float64)
    if sigma.handling == "one-sided" and sigma.high < float("inf"):
        top = xp.max(targets, axis=0)
        return xp.where(top > sigma.high, 0.98 * sigma.high / xp.where(top > 0, top, 1.0), 1.0 + best_shift), best_shift
    if sigma.handling != "range":
        return best_scale, best_shift
    low, high = xp.min(targets, axis=0), xp.max(targets, axis=0)
    span = xp.where(high > low, high - low, 1.0)
    factor = add_ridge(x.T @ x, _RIDGES[2])
    best_error = None
    for share in (None, *_SCALES):
        scale, shift = _candidate(xp, sigma, low, high, span, share)
        inside = targets * scale + shift
        out_of_range = (xp.min(inside, axis=0) <= sigma.low) | (xp.max(inside, axis=0) >= sigma.high)
        safe = xp.where(out_of_range[None, :], 0.5 * xp.ones_like(inside), inside)
        weight = solve_spd(factor, x.T @ sigma.inverse(safe))
        residual = (sigma.forward(x @ weight) - inside) / scale
        error = xp.where(out_of_range, float("inf"), xp.sum(residual * residual, axis=0))
        if best_error is None:
            best_error = error
            best_scale, best_shift = scale, shift
        better = error < best_error * (1 - 1e-6)  # ties go to the earlier one, whatever the rounding
        best_error = xp.where(better, error, best_error)
        best_scale = xp.where(better, scale, best_scale)
        best_shift = xp.where(better, shift, best_shift)
    return best_scale, best_shift


def _candidate(
    xp: object, sigma: Activation, low: Array, high: Array, span: Array, share: float | None
) -> tuple[Array, Array]:
    """One way into the range; share None leaves the targets as they are."""
    ones = span / span
    if share is None:
        return ones, ones * 0.0
    if sigma.high < float("inf"):
        room = sigma.high - sigma.low
        scale = share * room / span
        return scale, sigma.low + 0.5 * (1 - share) * room - low * scale
    # one bound: start a little above it; `share` sets the size in units of the bend at zero
    scale = 4.0 * share / span
    return scale, sigma.low + 0.02 * scale * span - low * scale


def _relative(outputs: Array, wanted: Array, scale: Array) -> NDArray[np.float64]:
    """Relative L2 error of each generated target, in its own units."""
    xp = namespace_of(outputs)
    squared_error = xp.sum((outputs - wanted) ** 2, axis=0) / (scale * scale)
    centred = wanted - xp.mean(wanted, axis=0)[None, :]
    size = xp.sum(centred * centred, axis=0) / (scale * scale)
    return np.asarray(np.sqrt(to_numpy(squared_error) / np.maximum(to_numpy(size), 1e-300)))
