"""What methods are told of a group, the statistics of its readers, and what they answer: a ranking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.numerics.arrays import Array, namespace_of, to_numpy
from pcns_onnx.numerics.dependence import TOLERANCE, copied, tolerance_for, with_copies_equal
from pcns_onnx.numerics.linalg import solve_spd


@dataclass(frozen=True)
class ReaderStats:
    """How one layer reads a group of N channels.

    `covariance` (n, n) float64 of the reader's input columns, `matrix` V (K, n) float64.
    Columns are channel-major: channel g owns columns g*taps .. (g+1)*taps, n = N*taps.
    `rows` is how many rows the covariance was estimated from, `values` how many values of each channel
    these hold (None: one each), and `changes` (N,) how often each changes from one row to the next, if that is known.
    Where the layer reads some of the group's channels only, `places` (N,) says which.
    """

    covariance: Array
    matrix: Array
    taps: int
    rows: int
    places: NDArray[np.int64] | None = None
    values: int | None = None
    changes: NDArray[np.float64] | None = None

    @property
    def channels(self) -> int:
        """N."""
        return int(self.covariance.shape[0]) // self.taps

    def among(self, group: int) -> NDArray[np.int64]:
        """Place of each channel among the `group` channels of the group."""
        return np.arange(group) if self.places is None else self.places

    def output_variance(self) -> float:
        """tr(V C Vᵀ): the variance of the reader's output, summed over its neurons."""
        return float(namespace_of(self.covariance).sum(self._products()))

    def row_variances(self) -> NDArray[np.float64]:
        """(K,): the variance of each of the reader's neurons."""
        variances = to_numpy(namespace_of(self.covariance).sum(self._products(), axis=1))
        return np.asarray(np.maximum(variances, 0.0), dtype=np.float64)

    def _products(self) -> Array:
        """(K, n): V C, times V place by place, whose rows sum up to the variances."""
        return (self.matrix @ self.covariance) * self.matrix

    def channel_covariance(self) -> Array:
        """(N, N): the covariance between channels, averaged over taps."""
        xp = namespace_of(self.covariance)
        n, t = self.channels, self.taps
        blocks = xp.permute_dims(xp.reshape(self.covariance, (n, t, n, t)), (0, 2, 1, 3))
        mean = xp.mean(xp.linalg.diagonal(blocks), axis=-1)
        tolerance = tolerance_for(int(self.covariance.shape[0]))
        return mean if tolerance == TOLERANCE else xp.asarray(with_copies_equal(to_numpy(mean), tolerance))

    def channel_energy(self) -> Array:
        """(N,): squared norm of the weights that read each channel."""
        xp = namespace_of(self.matrix)
        return xp.sum(xp.reshape(xp.sum(self.matrix * self.matrix, axis=0), (self.channels, self.taps)), axis=1)

    def channel_output(self) -> Array:
        """(N,): the variance of what the reader makes of each channel alone."""
        xp = namespace_of(self.matrix)
        of_column = xp.sum(self.matrix * self.matrix, axis=0) * xp.linalg.diagonal(self.covariance)
        return xp.sum(xp.reshape(of_column, (self.channels, self.taps)), axis=1)

    def mixed(self, places: NDArray[np.int64]) -> Array:
        """V (K, M, taps) on the channels at `places` (M,), the others replaced by their mixture of these."""
        xp = namespace_of(self.covariance)
        split = xp.permute_dims(xp.reshape(self.matrix, (-1, self.channels, self.taps)), (0, 2, 1))
        return xp.permute_dims(split @ mixing(self.channel_covariance(), places), (0, 2, 1))

    def lost(self, places: NDArray[np.int64]) -> float:
        """tr(D C Dᵀ) for D what V loses when the channels at other places follow those at `places`."""
        xp = namespace_of(self.covariance)
        split = xp.reshape(self.matrix, (-1, self.channels, self.taps))
        source = np.full(self.channels, len(places))  # a column of zeros, where nothing is read any more
        source[places] = np.arange(len(places))
        padded = xp.concat([self.mixed(places), xp.zeros_like(split[:, :1, :])], axis=1)
        whole = xp.take(padded, xp.asarray(source), axis=1)
        off = xp.reshape(split - whole, self.matrix.shape)
        return float(xp.sum((off @ self.covariance) * off))


@dataclass(frozen=True)
class Ranking:
    """A nested family of subsets: the M best channels are `order[:M]`.

    `order` (N,) int64, most important first; `error` (N+1,) is the share of the readers' output
    variance that is lost when M channels are kept and the readers are re-fitted. At least `least`
    channels have to stay.
    """

    order: NDArray[np.int64]
    error: NDArray[np.float64]
    least: int = 1

    def keep(self, width: int) -> NDArray[np.int64]:
        """The `width` channels to keep, ascending."""
        return np.sort(self.order[:width])

    def led_by(self, channels: Sequence[int]) -> Ranking:
        """The same ranking with these channels in front, all of which have to stay.

        They take the places of better ones: a width loses at most what the best channels lose that are all in it.
        """
        rest = self.order[~np.isin(self.order, channels)]
        error, least = self.error.copy(), len(channels)
        error[least : least + len(rest)] = self.error[np.flatnonzero(~np.isin(self.order, channels))]
        return Ranking(np.concatenate([np.asarray(channels, dtype=np.int64), rest]), error, least)

    def balanced(self, sides: Sequence[NDArray[np.int64]]) -> Ranking:
        """The same ranking of channels of which equally many of each of `sides` stay at multiples of their number.

        The best of every side take turns; a width loses at most what the best channels lose that are all in it.
        """
        if not sides:
            return self
        by_side = [self.order[np.isin(self.order, side)] for side in sides]
        order = np.stack(by_side, axis=1).reshape(-1)
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        needed = np.concatenate([[0], np.maximum.accumulate(place[self.order]) + 1])
        inside = np.searchsorted(needed, np.arange(len(order) + 1), side="right") - 1
        return Ranking(order, self.error[inside], -(-int(needed[self.least]) // len(sides)) * len(sides))


Rank = Callable[[Sequence[ReaderStats], int], Ranking]
"""From the readings of a group and its number of channels to a ranking."""


FAINT = 0.03
"""Of the median channel's standard deviation: a mixture that leans on less is a matter of luck."""
EXACT = 1e-6
"""The share of a channel's variance that a mixture misses at most which is exact."""


def damping(reading: ReaderStats) -> float:
    """Relative ridge for a covariance of n columns from R rows: 1e-7, and 3 % of (n/R)² where rows are few."""
    return 1e-7 + 3e-2 * min(int(reading.covariance.shape[0]) / max(reading.rows, 1), 10.0) ** 2


def _mixed(covariance: Array, index: Array, size: Array, ridge: float) -> Array:
    """P (N, M) with every channel in units of `size`, which what is kept has at least."""
    xp = namespace_of(covariance)
    rows = xp.take(covariance / size[:, None] / size[None, :], index, axis=0)
    kept = xp.take(rows, index, axis=1)
    own = xp.linalg.diagonal(kept)
    if bool(xp.any((own > 0) & (own < 1.0 - EXACT))):
        kept = kept + xp.where(own > 0, 1.0 - own, xp.zeros_like(own)) * xp.eye(int(kept.shape[0]), dtype=kept.dtype)
    return solve_spd(kept, rows, ridge).T * size[:, None] / xp.take(size, index, axis=0)[None, :]


def _missed(covariance: Array, index: Array, mix: Array) -> Array:
    """(N,): the variance of every channel that its mixture misses."""
    xp = namespace_of(covariance)
    columns = xp.take(covariance, index, axis=1)
    kept = xp.take(columns, index, axis=0)
    return xp.linalg.diagonal(covariance) - xp.sum(mix * (2.0 * columns - mix @ kept), axis=1)


def mixing(covariance: Array, keep: NDArray[np.int64], ridge: float = 1e-9) -> Array:
    """P (N, M): least squares of all N channels from the kept ones (ascending), from their covariance (N, N).

    In the scale of each channel, so that weak ones count like strong ones. Where that is not exact, though, one below
    `FAINT` of the median is no unit: what it does in these samples would be multiplied up to what the others do. Those
    kept are themselves, and copies of one of them follow that one alone: few rows cannot tell otherwise, and what was
    the same stays so.
    """
    xp = namespace_of(covariance)
    if not len(keep):
        return xp.zeros((int(covariance.shape[0]), 0), dtype=covariance.dtype)
    index, variance = xp.asarray(keep), xp.linalg.diagonal(covariance)
    size = xp.sqrt(xp.where(variance > 0, variance, xp.ones_like(variance)))
    mix = _mixed(covariance, index, size, ridge)
    least = FAINT * float(np.sqrt(np.median(np.clip(to_numpy(variance), 0.0, None))))
    if bool(xp.any(xp.take(size, index, axis=0) < least)):
        firm = _mixed(covariance, index, xp.where(size < least, least * xp.ones_like(size), size), ridge)
        mix = xp.where((_missed(covariance, index, mix) > EXACT * variance)[:, None], firm, mix)
    which, place, factor = copied(to_numpy(covariance), keep)
    known, exact = np.zeros((int(mix.shape[0]), 1), dtype=np.bool_), np.zeros(mix.shape)
    known[which], exact[which, place] = True, factor
    return xp.where(xp.asarray(known), xp.asarray(exact), mix)
