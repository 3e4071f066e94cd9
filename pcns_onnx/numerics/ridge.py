"""The re-fit: a layer's new weights by least squares, from the shrunk model to the original.

With x' the layer's inputs in the shrunk model and y its outputs in the original,

    min over V, b of  E|y - V x' - b|²  +  r |V - V₀|² s,      s = mean diag cov(x')

    V = V₀ + (cov(y, x') - V₀ cov(x')) (cov(x') + r s I)⁻¹,    b = mean(y) - V mean(x')

V₀ are the original weights, in which every removed channel is replaced by its least-squares
mixture of the kept ones (one N x M matrix shared over all taps). So full width is a no-op, and
where rows are few the answer falls back on that mixture. The relative ridge r is the one that
predicts a fifth of the samples best when it is solved on the others.

Where the rows X are fewer than half the columns, the same V comes from the dual, whose system is
as small as the rows are few: with T = Y - X V₀ᵀ, all centred, and R rows,

    V = V₀ + Aᵀ X,    (X Xᵀ + R r s I) A = T
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.numerics.arrays import Array, namespace_of
from pcns_onnx.numerics.linalg import solve_spd
from pcns_onnx.numerics.moments import Moments, Rows

RIDGES = (1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
VALID = 5
"""One sample in so many is kept aside to choose the ridge."""
_STILL = 1e-12
"""Targets whose variance is a smaller share of their squared mean do not vary: it is rounding of float32."""
_JUDGES = 64
"""Outputs, evenly spaced, that choose the ridge for all."""


@dataclass(frozen=True)
class Fit:
    """A solved layer: V (K, n) and b (K,) float64, and how well it does.

    Errors are relative: the share of the targets' variance that is missed, on the samples it was
    solved on and on those that chose the ridge (NaN where there were none, or where the targets do not
    vary on them). `scale` is the targets' root mean square deviation.
    """

    matrix: Array
    bias: Array
    ridge: float
    rows: int
    error: float
    held_out_error: float
    scale: float

    @classmethod
    def joined(cls, blocks: Sequence[Fit]) -> Fit:
        """The fits of a layer's blocks as one: V and b stacked, errors and scale averaged, the largest ridge."""
        if len(blocks) == 1:
            return blocks[0]
        xp = namespace_of(blocks[0].matrix)
        return cls(
            matrix=xp.concat([fit.matrix for fit in blocks], axis=0),
            bias=xp.concat([fit.bias for fit in blocks], axis=0),
            ridge=max(fit.ridge for fit in blocks),
            rows=min(fit.rows for fit in blocks),
            error=_mean_of_known([fit.error for fit in blocks]),
            held_out_error=_mean_of_known([fit.held_out_error for fit in blocks]),
            scale=float(np.mean([fit.scale for fit in blocks])),
        )

    @property
    def quiet_bias(self) -> Array:
        """The bias, zero where it is only rounding: a layer without one should not get one for that."""
        xp = namespace_of(self.bias)
        loudest = float(xp.max(xp.abs(self.bias))) if self.bias.size else 0.0
        return self.bias if loudest > 1e-6 * self.scale else xp.zeros_like(self.bias)


def _mean_of_known(errors: Sequence[float]) -> float:
    known = [error for error in errors if error == error]
    return float(np.mean(known)) if known else float("nan")


Known = TypeVar("Known", Moments, Rows)


@dataclass(frozen=True)
class Evidence(Generic[Known]):
    """What is known of one layer: the part that is solved on and the part that chooses the ridge."""

    train: Known
    valid: Known

    def only(self, rows: NDArray[np.int64]) -> Evidence[Known]:
        """The same evidence for some of the targets."""
        return Evidence(self.train.only(rows), self.valid.only(rows))

    def merged(self) -> Known:
        """All rows together (adds the second part into the first)."""
        self.train.merge(self.valid)
        return self.train

    @property
    def moments(self) -> Evidence[Moments]:
        """The same as moments, of rows that there must be some of."""
        if isinstance(self.train, Moments) and isinstance(self.valid, Moments):
            return Evidence(self.train, self.valid)
        parts = [part for part in (self.train, self.valid) if isinstance(part, Rows)]
        x, y = next(part.blocks[0] for part in parts if part.blocks)
        train, valid = (Moments(int(x.shape[1]), int(y.shape[1]), namespace_of(x)) for _ in parts)
        for known, part in zip((train, valid), parts, strict=True):
            for block in part.blocks:
                known.update(*block)
        return Evidence(train, valid)


AnyEvidence = Evidence[Moments] | Evidence[Rows]


def evidence_for(rows: int, columns: int, targets: int, xp: Any) -> AnyEvidence:
    """Empty evidence: the rows themselves where there will be less than half as many as columns."""
    if 2 * rows < columns:
        return Evidence(Rows(), Rows())
    return Evidence(Moments(columns, targets, xp), Moments(columns, targets, xp))


def settled(evidence: AnyEvidence) -> AnyEvidence:
    """The same evidence, as moments where the rows have become more than was expected of them."""
    rows = evidence.train
    return evidence.moments if isinstance(rows, Rows) and rows.rows and 2 * rows.rows >= rows.columns else evidence


def merged(evidence: AnyEvidence, other: AnyEvidence) -> AnyEvidence:
    """What is known of the samples of both; neither is of use afterwards."""
    if not other.train.rows + other.valid.rows:
        return evidence
    if not evidence.train.rows + evidence.valid.rows:
        return other
    if isinstance(evidence.train, Moments) or isinstance(other.train, Moments):
        evidence, other = evidence.moments, other.moments
    more: Any
    for known, more in ((evidence.train, other.train), (evidence.valid, other.valid)):
        known.merge(more)
    return settled(evidence)


def fit(evidence: AnyEvidence, prior: Array, guess: float | None = None) -> Fit:
    """Solve for V and b, towards `prior` (K, n). `guess` is where the search for the ridge starts."""
    ridge, held_out = _choose_ridge(evidence, prior, guess)
    moments = evidence.merged()
    system = _system(moments, prior)
    matrix, bias = system.solve(ridge)
    xp = namespace_of(prior)
    scale = float(xp.mean(moments.variance_y)) ** 0.5
    return Fit(matrix, bias, ridge, moments.rows, _known(system, matrix, bias), held_out, scale)


def fit_jointly(evidence: Sequence[AnyEvidence], prior: Array, guess: float | None = None) -> list[Fit]:
    """One V for several sets of rows, each with a bias of its own: all rows less the means of their set."""
    if len(evidence) == 1:
        return [fit(evidence[0], prior, guess)]
    if any(isinstance(known.train, Moments) for known in evidence):
        evidence = [known.moments for known in evidence]
    kind: type[Any] = type(evidence[0].train)
    train, valid = (kind.centred([getattr(e, part) for e in evidence]) for part in ("train", "valid"))
    whole = fit(Evidence(train, valid), prior, guess)
    wholes = [e.merged() for e in evidence]
    return [replace(whole, bias=known.mean_y - whole.matrix @ known.mean_x) for known in wholes]


def fit_apart(evidence: AnyEvidence, prior: Array, guess: float | None = None) -> Fit:
    """The same, solved without the samples that choose the ridge: these stay unseen."""
    ridge, held_out = _choose_ridge(evidence, prior, guess)
    known = evidence.train
    system = _system(known, prior)
    matrix, bias = system.solve(ridge)
    scale = float(namespace_of(prior).mean(known.variance_y)) ** 0.5
    return Fit(matrix, bias, ridge, known.rows, _known(system, matrix, bias), held_out, scale)


def _known(system: _System | _Dual, matrix: Array, bias: Array) -> float:
    """The error, NaN where there is no variance that it could be a share of."""
    return system.error(matrix, bias) if system.varies else float("nan")


def _system(known: Moments | Rows, prior: Array) -> _System | _Dual:
    return _System(known, prior) if isinstance(known, Moments) else _Dual(known, prior)


class _Dual:
    """The same solve from the rows themselves."""

    def __init__(self, rows: Rows, prior: Array) -> None:
        xp = namespace_of(prior)
        self._x, self._y, self._prior = rows.x, rows.y, prior
        self._mean_x, self._mean_y = xp.mean(self._x, axis=0), xp.mean(self._y, axis=0)
        self._centred = self._x - self._mean_x
        self._residual = self._y - self._mean_y - self._centred @ prior.T

    def solve(self, ridge: float) -> tuple[Array, Array]:
        """V (K, n) and b (K,)."""
        xp = namespace_of(self._prior)
        count, columns = (int(size) for size in self._x.shape)
        gram = self._centred @ self._centred.T
        spread = float(xp.sum(xp.linalg.diagonal(gram))) / columns
        system = gram + (ridge * spread if spread > 0 else 1.0) * xp.eye(count, dtype=gram.dtype)
        matrix = self._prior + solve_spd(system, self._residual).T @ self._centred
        return matrix, self._mean_y - matrix @ self._mean_x

    @property
    def varies(self) -> bool:
        """Whether the targets do."""
        xp = namespace_of(self._prior)
        spread = float(xp.sum((self._y - self._mean_y) ** 2))
        return spread > _STILL * float(xp.sum(self._mean_y**2)) * int(self._y.shape[0]) + 1e-300

    def error(self, matrix: Array, bias: Array) -> float:
        """Share of the targets' variance that V x + b misses on these rows, as `_System.error` counts it."""
        xp = namespace_of(matrix)
        off = self._y - self._x @ matrix.T - bias
        deviation = self._y - self._mean_y
        rounding = 1e-14 * float(xp.sum(self._mean_y**2)) * int(self._y.shape[0]) + 1e-300
        return float(xp.sum(off * off)) / max(float(xp.sum(deviation * deviation)), rounding)


class _System:
    """The normal equations of one layer, solved for as many ridges as are asked for."""

    def __init__(self, moments: Moments, prior: Array) -> None:
        self._moments, self._prior = moments, prior
        self._covariance = moments.covariance
        self._residual_cross = (moments.cross - prior @ self._covariance).T

    def solve(self, ridge: float) -> tuple[Array, Array]:
        """V (K, n) and b (K,)."""
        matrix = self._prior + solve_spd(self._covariance, self._residual_cross, ridge).T
        return matrix, self._moments.mean_y - matrix @ self._moments.mean_x

    @property
    def varies(self) -> bool:
        """Whether the targets do."""
        xp, moments = namespace_of(self._prior), self._moments
        return float(xp.sum(moments.variance_y)) > _STILL * float(xp.sum(moments.mean_y**2)) + 1e-300

    def error(self, matrix: Array, bias: Array) -> float:
        """Share of the targets' variance that V x + b misses on these moments.

        Targets that do not vary beyond the rounding of float32 count as large as that rounding.
        """
        xp = namespace_of(matrix)
        moments = self._moments
        off = moments.mean_y - matrix @ moments.mean_x - bias
        change = matrix - self._prior
        # E|y - Vx|² around the prior: |y|² - <V0, 2 yx - V0 xx> - <D, 2 r - D xx>, D = V - V0, r = yx - V0 xx
        base = xp.sum(self._prior * (self._residual_cross.T + moments.cross))
        gain = xp.sum(change * (2.0 * self._residual_cross.T - change @ self._covariance))
        total = float(xp.sum(moments.variance_y))
        rounding = 1e-14 * float(xp.sum(moments.mean_y**2)) + 1e-300
        return max(total - float(base) - float(gain) + float(xp.sum(off * off)), 0.0) / max(total, rounding)


def _choose_ridge(evidence: AnyEvidence, prior: Array, guess: float | None) -> tuple[float, float]:
    """Walk the grid downhill on the held-out error: the ridge and its error (NaN without samples)."""
    ample = evidence.train.rows / max(int(prior.shape[1]), 1)
    at = 2 if ample > 100 else 4 if ample > 10 else 5 if ample > 1 else 6
    if guess is not None:
        at = RIDGES.index(guess)
    if not evidence.valid.rows:
        return RIDGES[at], float("nan")
    xp = namespace_of(prior)
    some = np.unique(np.linspace(0, int(prior.shape[0]) - 1, _JUDGES).astype(np.int64))
    evidence, prior = evidence.only(some), xp.take(prior, xp.asarray(some), axis=0)
    train, valid = _system(evidence.train, prior), _system(evidence.valid, prior)
    errors: dict[int, float] = {}

    def error(index: int) -> float:
        if index not in errors:
            errors[index] = valid.error(*train.solve(RIDGES[index]))
        return errors[index]

    while True:
        around = [i for i in (at - 1, at, at + 1) if 0 <= i < len(RIDGES)]
        best = min(around, key=error)
        if best == at:
            return RIDGES[at], errors[at] if valid.varies else float("nan")
        at = best
