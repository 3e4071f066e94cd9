"""Structured optimal brain surgeon: remove channels one by one, re-fit what is left.

With C the covariance of the reader's input (all taps of a channel are one group) and V its
weights, removing group g and optimally re-fitting the rest costs

    tr( V_g ([C⁻¹]_gg)⁻¹ V_gᵀ )

(Hassibi and Stork 1993, in blocks). The cheapest goes, C⁻¹ and V are downdated

    C⁻¹ <- C⁻¹ - C⁻¹_:g ([C⁻¹]_gg)⁻¹ C⁻¹_g:        V <- V - V_g ([C⁻¹]_gg)⁻¹ C⁻¹_g:

and so on down to one channel: a single sweep yields the order of importance and the whole
error-versus-width curve. Several readers add their costs, each relative to its own variance;
one that reads some of the channels only has nothing to say about the others.

A downdate of one group is a thin product bound by memory. So a *round* takes the cheapest
candidates out as a small dense problem, eliminates a few of them there exactly as above, and
applies all of these to the full matrices as one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.ranking import Ranking, ReaderStats, damping
from pcns_onnx.methods.subset.dependence import exact_first
from pcns_onnx.numerics.arrays import Array, namespace_of, to_numpy
from pcns_onnx.numerics.linalg import add_ridge, inverse_spd, subtract_product

_ROUNDS = 24
_POOL = 4
_SMALL = 512  # columns up to which channels go strictly one by one


@dataclass
class _State:
    """One reader during the sweep: C⁻¹ (n, n), V (K, n) over its active channels, 1/variance.

    `group_channels` (n/taps,) are these channels among those of the group, ascending.
    """

    inverse: Array
    matrix: Array
    taps: int
    scale: float
    group_channels: NDArray[np.int64]
    alive: NDArray[np.bool_]

    def costs(self) -> NDArray[np.float64]:
        """Cost of removing each of its channels; 0 where it is gone."""
        xp = namespace_of(self.inverse)
        n, t = int(self.inverse.shape[0]) // self.taps, self.taps
        blocks = xp.reshape(self.inverse, (n, t, n, t))
        own = xp.permute_dims(xp.linalg.diagonal(xp.permute_dims(blocks, (1, 3, 0, 2))), (2, 0, 1))
        gone = xp.asarray((~self.alive).astype(np.float64))
        own = own + gone[:, None, None] * xp.eye(t, dtype=own.dtype)  # keeps the stacked solve regular
        v = xp.permute_dims(xp.reshape(self.matrix, (int(self.matrix.shape[0]), n, t)), (1, 2, 0))
        gram = v @ xp.permute_dims(v, (0, 2, 1))
        costs = np.maximum(to_numpy(_traces(own, gram)) * self.scale, 0.0)
        return np.where(self.alive, costs, 0.0)

    def columns(self, channels: NDArray[np.int64]) -> Array:
        xp = namespace_of(self.inverse)
        return xp.asarray((channels[:, None] * self.taps + np.arange(self.taps)).reshape(-1))

    def restrict(self, wanted: NDArray[np.bool_]) -> _State:
        """The same problem on those of the group's channels that are wanted, as copies."""
        xp = namespace_of(self.inverse)
        kept = np.flatnonzero(wanted[self.group_channels])
        index = self.columns(kept)
        inverse = xp.take(xp.take(self.inverse, index, axis=0), index, axis=1)
        matrix = xp.take(self.matrix, index, axis=1)
        return _State(inverse, matrix, self.taps, self.scale, self.group_channels[kept], self.alive[kept])

    def eliminate(self, channels: Sequence[int]) -> None:
        """Remove channels of the group, as far as it reads them, and re-fit the rest."""
        xp = namespace_of(self.inverse)
        removed = np.flatnonzero(np.isin(self.group_channels, channels))
        if not len(removed):
            return
        index = self.columns(removed)
        rows = xp.take(self.inverse, index, axis=0)
        own = xp.take(rows, index, axis=1)
        gain = xp.linalg.solve(own, rows)
        self.matrix = self.matrix - xp.take(self.matrix, index, axis=1) @ gain
        subtract_product(self.inverse, rows.T, gain)
        self.alive = self.alive.copy()
        self.alive[removed] = False


def _traces(own: Array, gram: Array) -> Array:
    """tr(own⁻¹ gram) for stacks (N, t, t)."""
    xp = namespace_of(own)
    if int(own.shape[1]) == 1:
        return gram[:, 0, 0] / own[:, 0, 0]
    return xp.sum(xp.linalg.diagonal(xp.linalg.solve(own, gram)), axis=-1)


def rank_by_surgeon(readings: Sequence[ReaderStats], channels: int) -> Ranking:
    """Order the `channels` of a group: what follows exactly from others goes first, then one sweep over the rest."""
    return exact_first(readings, channels, _sweep)


def _sweep(readings: Sequence[ReaderStats], channels: int) -> Ranking:
    states = [_prepare(reading, channels) for reading in readings]
    left = np.ones(channels, dtype=np.bool_)
    state_channels = channels
    removed: list[int] = []
    errors: list[float] = [0.0]
    block = max(1, channels // _ROUNDS) if channels * max(s.taps for s in states) > _SMALL else 1
    while (count := int(left.sum())) > 1:
        gone = _round(states, left, min(block, count - 1))
        for channel, cost in gone:
            removed.append(channel)
            errors.append(errors[-1] + cost)
        for state in states:
            state.eliminate([channel for channel, _ in gone])
        left[[channel for channel, _ in gone]] = False
        if left.sum() < 0.8 * state_channels:
            states, state_channels = [state.restrict(left) for state in states], int(left.sum())
    removed.append(int(np.flatnonzero(left)[0]))
    errors.append(float(len(readings)))
    curve = np.asarray(errors[::-1]) / len(readings)
    return Ranking(np.asarray(removed[::-1], dtype=np.int64), np.minimum(curve, 1.0))


def _prepare(reading: ReaderStats, channels: int) -> _State:
    xp = namespace_of(reading.covariance)
    inverse = inverse_spd(add_ridge(reading.covariance, damping(reading)))
    scale = 1.0 / max(reading.output_variance(), 1e-300)
    alive = np.ones(reading.channels, dtype=np.bool_)
    matrix = reading.matrix + xp.zeros_like(reading.matrix)
    return _State(inverse, matrix, reading.taps, scale, reading.among(channels), alive)


def _total(states: Sequence[_State], left: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Cost of removing each channel of the group for all readers; infinite where it is gone."""
    total = np.where(left, 0.0, np.inf)
    for state in states:
        total[state.group_channels] += state.costs()
    return total


def _round(states: Sequence[_State], left: NDArray[np.bool_], count: int) -> list[tuple[int, float]]:
    """Choose `count` channels exactly among the cheapest candidates: (channel, cost) each."""
    costs = _total(states, left)
    if count == 1:
        best = int(np.argmin(costs))
        return [(best, float(costs[best]))]
    pool = np.zeros_like(left)
    pool[np.argsort(costs, kind="stable")[: min(_POOL * count, int(left.sum()))]] = True
    local = [state.restrict(pool) for state in states]
    gone: list[tuple[int, float]] = []
    for _ in range(count):
        prices = _total(local, pool)
        best = int(np.argmin(prices))
        gone.append((best, float(prices[best])))
        pool[best] = False
        for state in local:
            state.eliminate([best])
    return gone
