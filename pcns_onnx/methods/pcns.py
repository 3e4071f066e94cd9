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

from pcns_onnx.backend import Array, namespace_of, to_numpy
from pcns_onnx.linalg import add_ridge, dimensions_for, eigh_descending, majorize, solve_spd
from pcns_onnx.methods.activations import Activation

_RIDGE = 1e-7
_STEPS = 60
_SCALES = (0.3, 0.5, 0.7, 0.85, 0.95, 0.99)


@dataclass(frozen=True)
class Basis:
    """Eigenvalues (N,) from large to small and vectors U (N, N) of outputs centred across neurons."""

    values: Array
    vectors: Array

    @classmethod
    def of(cls, mean: Array, covariance: Array) -> Basis:
        """From mean (N,) and covariance (N, N) over samples of the outputs."""
        xp = namespace_of(covariance)
        moment = covariance + mean[:, None] * mean[None, :]
        moment = moment - xp.mean(moment, axis=0)[None, :]
        moment = moment - xp.mean(moment, axis=1)[:, None]
        values, vectors = eigh_descending((moment + moment.T) / 2)
        return cls(xp.clip(values, 0.0), vectors)

    def components(self, variance: float) -> int:
        """M: how many eigenvectors reach the variance threshold."""
        return dimensions_for(self.values, variance)

    def curve(self, sigma: Activation) -> NDArray[np.float64]:
        """(N+1,): share of variance lost when a layer of w neurons is made (before step 2's error)."""
        values = to_numpy(self.values)
        total = max(float(values.sum()), 1e-300)
        tail = np.append(values.sum() - np.cumsum(values), 0.0)
        lost = np.concatenate([[values.sum()], tail[:-1]]) / total
        n = len(values)
        error = np.ones(n + 1)
        for width in range(1, n + 1):
            error[width] = lost[min(components_in(width, sigma), n)]
        error[n] = 0.0
        return np.clip(error, 0.0, 1.0)


def neurons_for(components: int, sigma: Activation) -> int:
    """Neurons that carry M components and the mean: M + 1, or 2M + 1 behind a one-sided activation."""
    return (2 if sigma.handling == "one-sided" else 1) * components + 1


def components_in(neurons: int, sigma: Activation) -> int:
    """M: how many components fit into a layer of so many neurons."""
    return (neurons - 1) // (2 if sigma.handling == "one-sided" else 1)


@dataclass(frozen=True)
class Expansion:
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


def expand(x: Array, t: Array, basis: Basis, sigma: Activation, width: int) -> Expansion:
    """Steps 1 to 3 on rows of inputs x (R, n) and outputs t (R, N), for a layer of `width` neurons."""
    xp = namespace_of(x)
    x = xp.concat([xp.astype(x, xp.float64), xp.ones((int(x.shape[0]), 1), dtype=xp.float64)], axis=1)
    t = xp.astype(t, xp.float64)
    neurons = int(t.shape[1])
    if width >= neurons:
        targets, projection = t, xp.eye(neurons, dtype=xp.float64)
    else:
        targets, projection = _targets(t, basis, sigma, components_in(width, sigma))
    scale, shift = _into_range(x, targets, sigma)
    inside = targets * scale + shift
    plain = _least_squares(x, sigma.inverse(inside))
    weight = _weighted(x, inside, plain, sigma)
    projection = projection / scale
    return Expansion(
        matrix=weight[:-1, :].T,
        bias=weight[-1, :],
        projection=projection,
        offset=-(projection @ shift),
        errors=_relative(sigma.forward(x @ weight), inside, scale),
        plain_errors=_relative(sigma.forward(x @ plain), inside, scale),
    )


def _targets(t: Array, basis: Basis, sigma: Activation, components: int) -> tuple[Array, Array]:
    """Targets (R, w) for the new outputs and P (N, w) with t ~ targets Pᵀ."""
    xp = namespace_of(t)
    mean = xp.mean(t, axis=1)[:, None]
    scale = xp.sqrt(basis.values[:components])
    floor = float(xp.max(basis.values)) ** 0.5 * 1e-8 + 1e-300
    scale = xp.where(scale > floor, scale, floor)
    vectors = basis.vectors[:, :components]
    e = ((t - mean) @ vectors) / scale[None, :]
    loads = vectors * scale[None, :]
    ones = xp.ones((int(t.shape[1]), 1), dtype=t.dtype)
    if sigma.handling != "one-sided":
        return xp.concat([e, mean], axis=1), xp.concat([loads, ones], axis=1)
    positive, negative = xp.clip(e, 0.0), xp.clip(-e, 0.0)
    return xp.concat([positive, negative, mean], axis=1), xp.concat([loads, -loads, ones], axis=1)


def _least_squares(x: Array, targets: Array) -> Array:
    return solve_spd(add_ridge(x.T @ x, _RIDGE), x.T @ targets)


def _weighted(x: Array, inside: Array, plain: Array, sigma: Activation) -> Array:
    """Step 2 with the equations that matter behind sigma."""
    xp = namespace_of(x)
    if sigma.handling == "slope":
        wanted = sigma.inverse(inside)
        weights = xp.where(inside > 0, 1.0, sigma.alpha) ** 2
        top = max(1.0, sigma.alpha) ** 2
        weight, _ = majorize(x, plain, lambda s: s + (weights / top) * (wanted - s), _RIDGE, _STEPS)
        return weight
    if sigma.handling == "one-sided":

        def retarget(s: Array) -> Array:
            return xp.where(inside > 0, inside, xp.clip(s, None, 0.0))

        weight, _ = majorize(x, plain, retarget, _RIDGE, _STEPS)
        return weight
    return plain


def _into_range(x: Array, targets: Array, sigma: Activation) -> tuple[Array, Array]:
    """Scale and shift (w,) that put each target into sigma's open range.

    Of several scales the one with the least error *after* sigma is taken: a tiny scale merely
    makes sigma linear, a large one runs into the saturation that least squares cannot follow.
    """
    xp = namespace_of(targets)
    width = int(targets.shape[1])
    best_scale, best_shift = xp.ones(width, dtype=xp.float64), xp.zeros(width, dtype=xp.float64)
    if sigma.handling != "range":
        return best_scale, best_shift
    low, high = xp.min(targets, axis=0), xp.max(targets, axis=0)
    span = xp.where(high > low, high - low, 1.0)
    factor = add_ridge(x.T @ x, _RIDGE)
    best_error = None
    for share in (None, *_SCALES):
        scale, shift = _candidate(xp, sigma, low, high, span, share)
        inside = targets * scale + shift
        bad = (xp.min(inside, axis=0) <= sigma.low) | (xp.max(inside, axis=0) >= sigma.high)
        safe = xp.where(bad[None, :], 0.5 * xp.ones_like(inside), inside)
        weight = solve_spd(factor, x.T @ sigma.inverse(safe))
        miss = (sigma.forward(x @ weight) - inside) / scale
        error = xp.where(bad, float("inf"), xp.sum(miss * miss, axis=0))
        if best_error is None:
            best_error = error
            best_scale, best_shift = scale, shift
        better = error < best_error
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


def _relative(made: Array, wanted: Array, scale: Array) -> NDArray[np.float64]:
    """Relative L2 error of each generated target, in its own units."""
    xp = namespace_of(made)
    miss = xp.sum((made - wanted) ** 2, axis=0) / (scale * scale)
    centred = wanted - xp.mean(wanted, axis=0)[None, :]
    size = xp.sum(centred * centred, axis=0) / (scale * scale)
    return np.sqrt(to_numpy(miss) / np.maximum(to_numpy(size), 1e-300))
