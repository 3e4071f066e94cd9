"""Batch size: what the error on the batch that PCNS is solved on says about new samples (Rolet, 3.2).

The draft asks for P(eps, B | eps0), the probability that what is rebuilt errs less than eps on a new
batch, given that it errs less than eps0 on the batch of size B that it was solved on. Here it is
counted: batches of B rows are drawn, PCNS is run on each, and its error is measured on the batch
and on rows that are set aside. An error is the relative L2 error of the layer's outputs,

    |t' - t| / |t - mean(t)|,   t' = P sigma(W x + b) + q.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pcns_onnx.calibration.eigenbasis import Basis
from pcns_onnx.methods.pcns.activations import Activation
from pcns_onnx.methods.pcns.components import RebuiltLayer, expand_components, neurons_for
from pcns_onnx.numerics.arrays import Array, namespace_of
from pcns_onnx.numerics.moments import Moments

SIZES = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
"""Batch sizes that are tried, in multiples of the layer's width (the draft asks for 5 to 10)."""
_ASIDE = 0.25


@dataclass(frozen=True)
class Draw:
    """One batch of `rows` B: neurons for the threshold, error on the batch and on rows set aside."""

    rows: int
    neurons: int
    batch_error: float
    new_error: float


def draws(
    x: Array, t: Array, weight: Array, sigma: Activation, variance: float, count: int, seed: tuple[int, ...]
) -> Iterator[Draw]:
    """`count` draws of every size that there are rows for.

    x (R, n) are the inputs and t (R, N) the outputs of a layer with `weight` (N, n + 1), its bias last. The last
    quarter of the rows is set aside; without an overlap, since rows of one sample (positions of a Conv) are alike.
    """
    xp = namespace_of(x)
    total, neurons = int(t.shape[0]), int(t.shape[1])
    known = total - int(total * _ASIDE)
    aside = slice(known, total)
    for size in SIZES:
        rows = max(2, round(size * neurons))
        if rows > known:
            return
        for number in range(count):
            chosen = np.sort(np.random.default_rng((*seed, rows, number)).choice(known, rows, replace=False))
            at = xp.asarray(chosen)
            inputs, outputs = xp.take(x, at, axis=0), xp.take(t, at, axis=0)
            moments = Moments(neurons, 0, xp)
            moments.update(outputs)
            basis = Basis.of(moments.mean_x, moments.covariance)
            width = min(neurons_for(basis.components(variance), sigma), neurons)
            new = expand_components(inputs, outputs, weight, basis, sigma, width)
            yield Draw(rows, width, _error(new, sigma, inputs, outputs), _error(new, sigma, x[aside, :], t[aside, :]))


def _error(new: RebuiltLayer, sigma: Activation, x: Array, t: Array) -> float:
    """Relative L2 error of the outputs that the rebuilt layer stands for."""
    xp = namespace_of(x)
    activations = sigma.forward(xp.astype(x, xp.float64) @ new.matrix.T + new.bias)
    residual = activations @ new.projection.T + new.offset - t
    spread = t - xp.mean(t, axis=0)[None, :]
    return math.sqrt(float(xp.sum(residual * residual)) / max(float(xp.sum(spread * spread)), 1e-300))


def probability(sample: Sequence[Draw], rows: int, error: float, batch_error: float) -> float | None:
    """P(error, rows | batch_error): of the draws of `rows` that err at most `batch_error` on their batch, how many err
    at most `error` on new rows. None where there is no such draw."""
    matches = [draw for draw in sample if draw.rows == rows and draw.batch_error <= batch_error]
    return sum(draw.new_error <= error for draw in matches) / len(matches) if matches else None
