"""Channels that follow exactly from others: they go first, and their readers lose nothing.

A ridge large enough for few rows hides from a sweep what is exact. So it is looked for without one
(`numerics.dependence`), in the channels' own moments: C (N, N) averaged over the taps of all readers,
where one mixture has to hold for all positions. There a Conv in front of a Flatten has as many rows as
it has samples times positions, and fewer samples than columns say nothing against it. In the order in
which they go, the surest first:

1. what does the same as another channel, and what does so up to a factor,
2. what hardly reaches any reader: less than the rounding of float32 of what they put out,
3. what is a linear combination of the rest, if its rank is not just that of the rows,
4. what does not vary on these samples.

A neuron that fires on a single sample is a multiple of every other that does so: such channels are left to the sweep.
Whatever the readers lose all the same is counted, and where that is no rounding the last kinds stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.ranking import Rank, Ranking, ReaderStats
from pcns_onnx.numerics.arrays import namespace_of, to_numpy
from pcns_onnx.numerics.dependence import copies, independent, repeats, tolerance_for

Channels = NDArray[np.int64]

_UNHEARD = 1e-12
"""Share of a reader's output variance that its own rounding hides."""
_RANK_OF_ROWS = 0.9
"""A rank above this share of the values that were seen of a channel says nothing of the channels."""
_FIRES, _FIRES_OFTEN = 2.0, 16.0
"""Changes from row to row, up and down again, that more than one sample makes, and that many do."""
_LOSS, _ROUNDING = 1e-7, 1e-10
"""Shares of a reader's output variance: what may be lost, at most, and what is nothing."""


@dataclass(frozen=True)
class Reduction:
    """The channels that stay, ascending, those that go, first to last, and how the readers read what stays.

    `loss` is the share of the readers' output variance that goes with them, averaged.
    """

    stays: Channels
    goes: Channels
    readings: list[ReaderStats]
    loss: float


def exact_first(readings: Sequence[ReaderStats], channels: int, rank: Rank) -> Ranking:
    """The ranking of a method, after what follows exactly from other channels has gone."""
    reduction = reduce(readings, channels)
    if not len(reduction.goes):
        return rank(readings, channels)
    rest = rank(reduction.readings, len(reduction.stays)) if reduction.readings else _unranked(len(reduction.stays))
    order = np.concatenate([reduction.stays[rest.order], reduction.goes[::-1]])
    extra = np.full(len(reduction.goes), reduction.loss)
    extra[-1] = 0.0
    return Ranking(order, np.concatenate([np.minimum(rest.error + reduction.loss, 1.0), extra]))


def _unranked(channels: int) -> Ranking:
    """Channels that nobody tells apart, all of which are needed."""
    error = np.ones(channels + 1)
    error[-1] = 0.0
    return Ranking(np.arange(channels, dtype=np.int64), error)


def reduce(readings: Sequence[ReaderStats], channels: int) -> Reduction:
    """Take out of a group of `channels` what follows exactly from the rest, at least one stays."""
    limit = max(_LOSS, *(tolerance_for(int(reading.covariance.shape[0])) for reading in readings))
    for goes in _candidates(readings, channels):
        stays = np.setdiff1d(np.arange(channels), goes)
        losses = [_lost(reading, stays, channels) for reading in readings] if len(goes) else [0.0]
        if max(losses) <= limit:
            break
    loss = float(np.mean(losses))
    if len(goes):
        left = [reading for reading in readings if np.isin(reading.among(channels), stays).any()]
        readings = [_on(reading, stays, channels) for reading in left]
    return Reduction(stays, goes, list(readings), loss if loss > _ROUNDING else 0.0)


def _candidates(readings: Sequence[ReaderStats], channels: int) -> Iterator[Channels]:
    """What may go, in order: everything that looks exact, then less and less of it."""
    covariance, heard = _together(readings, channels)
    tolerance = max(tolerance_for(int(reading.covariance.shape[0])) for reading in readings)
    varies = covariance.diagonal() > 0
    alive = np.flatnonzero(heard & varies)
    changes = _changes(readings, channels)
    own = covariance[np.ix_(alive, alive)]
    original, again = copies(own, tolerance), repeats(own, tolerance)
    scaled = (original != np.arange(len(alive))) & ~again & (changes[alive] > _FIRES)
    copied = np.concatenate([alive[again], alive[scaled]])
    unique = alive[~again & ~scaled]
    often = unique[changes[unique] >= _FIRES_OFTEN]
    basis = often[independent(covariance[np.ix_(often, often)], tolerance)]
    values = max((reading.rows if reading.values is None else reading.values) for reading in readings)
    combined = np.setdiff1d(often, basis if len(basis) < _RANK_OF_ROWS * values else often)
    unheard, constant = np.flatnonzero(~heard & varies), np.flatnonzero(~varies)
    for kinds in ([copied, unheard, combined, constant], [copied, unheard, constant], [unheard, constant]):
        goes = np.concatenate(kinds)
        yield goes[:-1] if len(goes) == channels else goes
    yield np.zeros(0, dtype=np.int64)


def _together(readings: Sequence[ReaderStats], channels: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """C (N, N) of all readers, each of the same size; and which channels any of them hears."""
    covariance, heard = np.zeros((channels, channels)), np.zeros(channels, dtype=np.bool_)
    for reading in readings:
        at, own = reading.among(channels), to_numpy(reading.channel_covariance())
        covariance[np.ix_(at, at)] += own / max(float(own.diagonal().mean()), 1e-300)
        heard[at] |= to_numpy(reading.channel_output()) > _UNHEARD * reading.output_variance()
    return covariance, heard


def _changes(readings: Sequence[ReaderStats], channels: int) -> NDArray[np.float64]:
    """How often each channel changes, for the reader that sees most of it; infinite where that is not known."""
    most = np.zeros(channels)
    for reading in readings:
        at, changes = reading.among(channels), reading.changes
        most[at] = np.maximum(most[at], np.inf if changes is None or not changes.any() else changes)
    return most


def _lost(reading: ReaderStats, stays: Channels, channels: int) -> float:
    """The share of a reader's output variance that is lost without the channels that go."""
    places = np.flatnonzero(np.isin(reading.among(channels), stays))
    variance = reading.output_variance()
    return reading.lost(places) / variance if variance > 0 and len(places) < reading.channels else 0.0


def _on(reading: ReaderStats, stays: Channels, channels: int) -> ReaderStats:
    """The same reading of the channels that stay, which make up for the others."""
    xp, among = namespace_of(reading.covariance), reading.among(channels)
    places = np.flatnonzero(np.isin(among, stays))
    index = xp.asarray((places[:, None] * reading.taps + np.arange(reading.taps)).reshape(-1))
    covariance = xp.take(xp.take(reading.covariance, index, axis=0), index, axis=1)
    matrix = xp.reshape(reading.mixed(places), (-1, len(places) * reading.taps))
    left = None if reading.places is None else np.searchsorted(stays, among[places])
    return replace(reading, covariance=covariance, matrix=matrix, places=left, changes=None)
