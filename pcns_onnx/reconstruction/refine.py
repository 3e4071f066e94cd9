"""Refinement: a layer and its reader together, by nonlinear least squares against the original.

    min over W, b, V, c  E|y - V s(W x' + b) - c|²

x' are the layer's inputs in the shrunk model, y the reader's outputs in the original: no labels,
and nothing beyond the two layers. Least squares has solved each layer for what the original makes
at the same place; here W may make something else, if only V gets y from it. Adam (Kingma and Ba
2015) with a cosine schedule, on windows (`windows.Piece`), so that a step is a few matrix
products. Both matrices are moved in coordinates in which what they read is nearly white (`whitening`), with rates
relative to their size there. One sample in `VALID` is kept aside: steps that worsen what it sees are taken back at a
quarter of the rate, and its best point is the answer.

What onnxruntime computes between the two layers is what is differentiated, whatever it is (`nonlinearity`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.numerics.arrays import Array, namespace_of
from pcns_onnx.numerics.ridge import VALID
from pcns_onnx.reconstruction.descent import descend
from pcns_onnx.reconstruction.nonlinearity import Nonlinearity
from pcns_onnx.reconstruction.options import STEPS
from pcns_onnx.reconstruction.whitening import Coordinates, whitening
from pcns_onnx.reconstruction.windows import Piece

WORK = 2e11
"""Multiply-adds that a pair of layers may take in `STEPS`, and as much more in more: of large ones, fewer are made."""
MUCH = 0.02
"""Share of the targets' variance from which on a pair gets all steps; with less there is less to gain."""
ENOUGH = 1e-8
"""Share of the targets' variance below which there is nothing to gain."""
_ROWS = (512, 1024)
"""Rows of the target that a step should see at least: of samples apart, and of positions beside each other, which say
much the same."""


@dataclass(frozen=True)
class Weights:
    """W (M, n), b (M,), V (K, t*M), c (K,): a layer and its reader, all float32."""

    w: Array
    b: Array
    v: Array
    c: Array

    @property
    def all(self) -> tuple[Array, Array, Array, Array]:
        """In this order."""
        return self.w, self.b, self.v, self.c


@dataclass(frozen=True)
class Refined:
    """The best weights, and the share of the targets' variance missed on samples kept aside, before and after.

    `steps` were made, out of `rows` of the reader's output.
    """

    weights: Weights
    before: float
    after: float
    steps: int = 0
    rows: int = 0


class Pair:
    """The two layers on pieces: what comes out, and how the squared error changes with the weights."""

    def __init__(self, activation: Nonlinearity) -> None:
        self._activation = activation

    def read(self, weights: Weights, piece: Piece) -> Array:
        """The rows (N*Q, t*M) that V sees."""
        return self._forward(weights, piece)[-1]

    def error(self, weights: Weights, pieces: Sequence[Piece]) -> float:
        """Sum of squares that are missed."""
        total = 0.0
        for piece in pieces:
            xp = namespace_of(piece.x)
            residual = self._residual(weights, piece, self.read(weights, piece))
            total += float(xp.sum(residual * residual, dtype=xp.float64))
        return total

    def gradient(self, weights: Weights, piece: Piece) -> tuple[Array, Array, Array, Array]:
        """Half the derivative of the sum of squares by W, b, V and c."""
        xp = namespace_of(piece.x)
        s, t, pooled, rows = self._forward(weights, piece)
        residual = self._residual(weights, piece, rows)
        count = int(piece.x.shape[0])
        back = _gather_back(xp.reshape(residual @ weights.v, (count, piece.taps.size, -1)), piece.taps, pooled)
        if piece.peaks is not None:
            back = _peaks_back(back, t, pooled, piece.peaks)
        ds = xp.reshape(back, s.shape) * self._activation.slope_at(s)
        x = xp.reshape(piece.x, (-1, int(piece.x.shape[2])))
        return ds.T @ x, xp.sum(ds, axis=0), residual.T @ rows, xp.sum(residual, axis=0)

    def _residual(self, weights: Weights, piece: Piece, rows: Array) -> Array:
        return rows @ weights.v.T + weights.c - namespace_of(rows).reshape(piece.y, (int(rows.shape[0]), -1))

    def _forward(self, weights: Weights, piece: Piece) -> tuple[Array, Array, Array, Array]:
        """Pre-activations, activations (N, P, M), what the reader's taps choose from (N, S, M), its rows."""
        xp = namespace_of(piece.x)
        count, positions, columns = (int(size) for size in piece.x.shape)
        s = xp.reshape(piece.x, (-1, columns)) @ weights.w.T + weights.b
        t = xp.reshape(self._activation.value(s), (count, positions, -1))
        pooled = t
        if piece.peaks is not None:
            spread = _with_row(t, -np.inf)
            pooled = _take(spread, piece.peaks[:, 0])
            for tap in range(1, piece.peaks.shape[1]):
                pooled = xp.maximum(pooled, _take(spread, piece.peaks[:, tap]))
        rows = _take(_with_row(pooled, 0.0), piece.taps.reshape(-1))
        return s, t, pooled, xp.reshape(rows, (count * piece.taps.shape[0], -1))


def _with_row(values: Array, fill: float) -> Array:
    xp = namespace_of(values)
    shape = (int(values.shape[0]), 1, int(values.shape[2]))
    return xp.concat([values, xp.full(shape, fill, dtype=values.dtype)], axis=1)


def _take(values: Array, index: NDArray[np.int64]) -> Array:
    xp = namespace_of(values)
    return xp.take(values, xp.asarray(index), axis=1)


def _gather_back(grown: Array, taps: NDArray[np.int64], like: Array) -> Array:
    """The adjoint of taking `taps` (Q, t): (N, Q*t, M) summed into the places (N, S, M) that they came from.

    A place is taken by a few taps at most, so their lists are padded and gathered in turn: no scatter.
    """
    places = int(like.shape[1])
    flat = taps.reshape(-1)
    order = np.argsort(flat, kind="stable")
    order = order[flat[order] < places]
    owners = flat[order]
    counts = np.bincount(owners, minlength=places)
    lists = np.full((places, max(int(counts.max(initial=0)), 1)), flat.size, dtype=np.int64)
    lists[owners, np.arange(len(order)) - (np.cumsum(counts) - counts)[owners]] = order
    padded = _with_row(grown, 0.0)
    total = _take(padded, lists[:, 0])
    for use in range(1, lists.shape[1]):
        total = total + _take(padded, lists[:, use])
    return total


def _peaks_back(grown: Array, t: Array, pooled: Array, peaks: NDArray[np.int64]) -> Array:
    """The adjoint of the maximum: what arrives goes to where the largest value came from."""
    xp = namespace_of(grown)
    spread = _with_row(t, -np.inf)
    shares = []
    taken = xp.zeros(grown.shape, dtype=xp.bool)
    for tap in range(peaks.shape[1]):
        hit = (_take(spread, peaks[:, tap]) == pooled) & ~taken
        taken = taken | hit
        shares.append(xp.where(hit, grown, xp.zeros_like(grown)))
    stacked = xp.stack(shares, axis=2)
    flat = xp.reshape(stacked, (int(grown.shape[0]), peaks.size, int(grown.shape[2])))
    return _gather_back(flat, peaks, t)


def refine(
    pieces: Sequence[Piece], start: Weights, activation: Nonlinearity, steps: int, seed: tuple[int, ...]
) -> Refined:
    """At most `steps` steps from `start`; never worse than it on the samples kept aside."""
    pair = Pair(activation)
    valid, train = kept_aside(pieces)
    train = in_steps(train)
    if not train or not valid:
        return Refined(start, float("nan"), float("nan"))
    scale = max(_variation(valid), 1e-30)
    first = pair.error(start, valid) / scale
    if first < ENOUGH:
        return Refined(start, first, first)
    rows, worthwhile = sum(piece.rows for piece in train), _worthwhile(steps, first, _problem(start, train))
    if not worthwhile:
        return Refined(start, first, first, 0, rows)
    w = whitening(namespace_of(piece.x).reshape(piece.x, (-1, int(piece.x.shape[2]))) for piece in train)
    descended = descend(
        start.all,
        first,
        lambda weights, piece: pair.gradient(Weights(*weights), piece),
        lambda weights: pair.error(Weights(*weights), valid) / scale,
        Coordinates((w, None, whitening(pair.read(start, piece) for piece in train), None)),
        _sizes,
        train,
        rows_of_step(train[0]),
        worthwhile,
        seed,
    )
    return Refined(Weights(*descended.weights), first, descended.error, descended.steps, rows)


def _sizes(arrays: Sequence[Array]) -> list[float]:
    """How far a step of one moves each of W, b, V and c: a bias moves as fast as its matrix."""
    xp = namespace_of(arrays[0])
    w, v = (float(xp.sqrt(xp.mean(matrix * matrix))) for matrix in (arrays[0], arrays[2]))
    return [w, w, v, v]


def kept_aside(pieces: Sequence[Piece]) -> tuple[list[Piece], list[Piece]]:
    """One sample in `VALID`, and the others; of batches of fewer, every `VALID`th."""
    valid, train = list[Piece](), list[Piece]()
    for index, piece in enumerate(pieces):
        cut = int(piece.x.shape[0]) // VALID
        if cut:
            some, others = piece.split(cut)
            valid.append(some)
            train.append(others)
        else:
            (valid if index % VALID == VALID - 1 else train).append(piece)
    return valid, train


def _worthwhile(steps: int, error: float, problem: float) -> int:
    """How many of `steps` a pair gets that misses the share `error` and takes `problem` multiply-adds a step."""
    share = min(1.0, error / MUCH)
    work = WORK * max(1.0, steps / STEPS)
    return min(math.ceil(steps * math.sqrt(share)), int(work * share / max(problem, 1)))


def rows_of_step(piece: Piece) -> int:
    """Rows of the target that a step on such pieces should see at least."""
    return _ROWS[piece.stacked or piece.taps.shape[0] > 1]


def in_steps(pieces: Sequence[Piece]) -> list[Piece]:
    """The same samples in pieces of about as many rows as a step should see."""
    steps, waiting = list[Piece](), list[Piece]()
    for piece in pieces:
        if waiting and not waiting[0].fits(piece):
            steps += _even(waiting)
            waiting = []
        waiting.append(piece)
        if sum(part.rows for part in waiting) >= rows_of_step(piece):
            steps += _even(waiting)
            waiting = []
    return steps + (_even(waiting) if waiting else [])


def _even(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces of the same positions, put together and divided into equal ones, each of a step's rows or little more."""
    xp = namespace_of(pieces[0].x)
    whole = pieces[0]
    if len(pieces) > 1:
        x, y = (xp.concat([getattr(piece, side) for piece in pieces], axis=0) for side in ("x", "y"))
        whole = replace(whole, x=x, y=y)
    count, parts = int(whole.x.shape[0]), list[Piece]()
    for left in range(min(count, max(1, whole.rows // rows_of_step(whole))), 1, -1):
        part, whole = whole.split(int(whole.x.shape[0]) // left)
        parts.append(part)
    return [*parts, whole]


def _problem(weights: Weights, pieces: Sequence[Piece]) -> float:
    """Multiply-adds of a step: two matrices forward, and twice as much back."""
    rows = max(int(piece.x.shape[0]) * int(piece.x.shape[1]) for piece in pieces)
    targets = max(int(piece.y.shape[0]) * int(piece.y.shape[1]) for piece in pieces)
    steps = max(1.0, rows_of_step(pieces[0]) / targets)
    return 3.0 * steps * (rows * float(np.prod(weights.w.shape)) + targets * float(np.prod(weights.v.shape)))


def _variation(pieces: Sequence[Piece]) -> float:
    """Sum of squares of the targets, less their mean."""
    xp = namespace_of(pieces[0].y)
    rows = xp.concat([xp.reshape(piece.y, (-1, int(piece.y.shape[2]))) for piece in pieces], axis=0)
    centred = rows - xp.mean(rows, axis=0)
    return float(xp.sum(centred * centred, dtype=xp.float64))
