"""Interpolative subset: pivoted Cholesky of the channels' second moments.

With C the covariance of the channels and w_g the norm of the weights that read channel g,
pivots are taken from D C D, D = diag(w): column-pivoted QR of the activations, weighted by how
much the readers use them. The residual trace is the error curve. Several readers have their C
and w² added up, all of the same size: one D for all, so that copies are copies for them together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pcns_onnx.calibration.ranking import Ranking, ReaderStats
from pcns_onnx.methods.subset.dependence import exact_first
from pcns_onnx.numerics.arrays import namespace_of
from pcns_onnx.numerics.linalg import pivoted_cholesky


def rank_by_pivots(readings: Sequence[ReaderStats], channels: int) -> Ranking:
    """Order the channels of a group: what follows exactly from others goes first, then greedy pivots over the rest."""
    return exact_first(readings, channels, _pivots)


def _pivots(readings: Sequence[ReaderStats], channels: int) -> Ranking:
    xp = namespace_of(readings[0].covariance)
    covariance = xp.zeros((channels, channels), dtype=xp.float64)
    use = xp.zeros((channels,), dtype=xp.float64)
    for reading in readings:
        reader_covariance, energy = reading.channel_covariance(), reading.channel_energy()
        variance = xp.linalg.diagonal(reader_covariance)
        size = max(float(xp.mean(variance)), 1e-300)
        read = max(float(xp.sum(energy * variance)), 1e-300)
        reader_covariance, energy = reader_covariance / size, energy * (size / read)
        if reading.places is not None:  # rows of the identity, to lay it among the group's channels
            chosen = xp.asarray(np.eye(channels)[reading.places])
            reader_covariance, energy = chosen.T @ reader_covariance @ chosen, energy @ chosen
        covariance, use = covariance + reader_covariance, use + energy
    weight = xp.sqrt(use)
    total = weight[:, None] * covariance * weight[None, :]
    pivots = pivoted_cholesky(total)
    return Ranking(pivots.order, pivots.residual / max(float(pivots.residual[0]), 1e-300))
