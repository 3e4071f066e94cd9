"""Interpolative subset: pivoted Cholesky of the channels' second moments.

With C the covariance of the channels and w_g the norm of the weights that read channel g,
pivots are taken from D C D, D = diag(w): column-pivoted QR of the activations with rows
weighted by how much the readers use them. The residual trace is the error curve.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pcns_onnx.backend import namespace_of
from pcns_onnx.linalg import pivoted_cholesky
from pcns_onnx.methods.ranking import Ranking, Reading


def rank(readings: Sequence[Reading], channels: int) -> Ranking:
    """Order the channels of a group by greedy pivots over all its readers."""
    xp = namespace_of(readings[0].covariance)
    total = xp.zeros((channels, channels), dtype=xp.float64)
    for reading in readings:
        weight = xp.sqrt(reading.channel_energy())
        scaled = weight[:, None] * reading.channel_covariance() * weight[None, :]
        scaled = scaled / max(float(xp.sum(xp.linalg.diagonal(scaled))), 1e-300)
        if reading.places is not None:  # rows of the identity, to lay it among the group's channels
            chosen = xp.asarray(np.eye(channels)[reading.places])
            scaled = chosen.T @ scaled @ chosen
        total = total + scaled
    pivots = pivoted_cholesky(total)
    return Ranking(pivots.order, pivots.residual / max(float(pivots.residual[0]), 1e-300))
