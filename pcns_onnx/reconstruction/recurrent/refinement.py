"""Refinement of a recurrent layer: its weights and what reads its states, together, over whole sequences.

    min over the cell, U, c  E|L h(t) - U h'(t) - c|²

h are the original's states, h' those of the shrunk cell running free, L what the layers behind make of h: all their
weights, each in the scale of its output, as a root of the sum of their squares (K, D*H). The shrunk cell's states may
become others than the original's, if only L h can be read off them. As in `refine`: Adam with a cosine schedule in
whitened coordinates, rates relative to the weights' size, samples kept aside that steps are judged by. Gradients go
back in time (`gradient`); a cell with functions of its own, peepholes or a clip is left as it was solved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.linalg import eigh_descending, solve_spd
from pcns_onnx.numerics.moments import Moments
from pcns_onnx.reconstruction.descent import descend
from pcns_onnx.reconstruction.recurrent.gradient import CellGradient, DirectionWeights, Sequences, is_differentiable
from pcns_onnx.reconstruction.recurrent.targets import CellSequences
from pcns_onnx.reconstruction.refine import ENOUGH, Refined, Weights
from pcns_onnx.reconstruction.whitening import Coordinates, Whitening, whitening
from pcns_onnx.rewrite.layer_weights import stored_weight
from pcns_onnx.rewrite.recurrent_cells import CellWeights, cell_of

_WORK = 2e12
"""Multiply-adds that a cell may take: it is often the larger half of a network, and one of few."""
_SAMPLES = 32
"""Sequences of a piece."""
_ROWS = 1024
"""Steps of sequences that a step of Adam should see at least."""
_FAINT = 1e-6
"""Share of the largest direction below which what is read is left out."""
_STILL = 1e-14
"""Variance of states below which it is rounding of float32: they lie in -1 to 1, or near."""

Floats32 = NDArray[np.float32]


@dataclass(frozen=True)
class SequencePiece:
    """Some samples of one batch, and what should be read off their states, (S, B, K)."""

    sequences: Sequences
    aim: Floats32

    @property
    def rows(self) -> int:
        """Steps that count."""
        return int(self.sequences.mask.sum())


def read_of(graph: Graph, dependencies: DependencyGraph, layer: Layer, covariance: NDArray[np.float64]) -> Floats32:
    """L (K, D*H): what the layers behind make of the states of a cell, of that `covariance` (D*H, D*H).

    No rows where all that they read stands still.
    """
    hidden = cell_of(layer).hidden.reshape(-1)
    total = np.zeros((len(hidden), len(hidden)))
    for reader in dependencies.layers:
        if reader.name == layer.name or not np.isin(reader.linear.reads, hidden).any():
            continue
        weight, own = stored_weight(graph, reader), np.zeros_like(total)
        for part in reader.parts:
            owners, matrix = part.op.owners(part.reads), np.asarray(part.op.matrix(weight))
            for tap in _taps(owners, hidden):
                read = np.where(tap < 0, 0.0, matrix[:, np.maximum(tap, 0)])
                own += read.T @ read
        variance = float((own * covariance).sum())
        if variance > _STILL * float(np.trace(own)):
            total += own / variance
    values, vectors = eigh_descending(total)
    strong = values > _FAINT * max(float(values[0]), 1e-300)
    return np.asarray(np.sqrt(values[strong])[:, None] * vectors[:, strong].T, dtype=np.float32)


def _taps(owners: NDArray[np.int64], hidden: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """For each time that a layer reads the units, which column reads each of them, -1 for none."""
    columns = [np.flatnonzero(owners == unit) for unit in hidden]
    times = max(map(len, columns))
    return [np.array([own[at] if at < len(own) else -1 for own in columns]) for at in range(times)]


@dataclass(frozen=True)
class CellRefinement:
    """At most `steps` steps of refinement; what reads a cell is looked up in the `graph` of the original."""

    graph: Graph
    dependencies: DependencyGraph
    steps: int
    seed: int

    def __call__(self, data: CellSequences, start: CellWeights) -> tuple[CellWeights, Refined] | None:
        """Better weights, never worse on the samples kept aside; None where there is no way back."""
        keeps_meaning = bool(self.dependencies.writes(data.layer).states)  # of what a caller carries along
        if not self.steps or keeps_meaning or not is_differentiable(data.node):
            return None
        known = Moments(data.layer.width, 0, np)
        for _, whole in data.batches:
            known.update(np.moveaxis(whole[data.layer.output], 1, 2).reshape(-1, data.layer.width))
        read = read_of(self.graph, self.dependencies, data.layer, known.covariance)
        if not len(read):
            return None
        number = self.dependencies.layers.index(data.layer)
        train, valid = (_pieces(data, read, aside) for aside in (False, True))
        if not train or not valid:
            return None
        is_reset_last = data.reset and data.is_reset_last
        problem = _Problem(CellGradient(data.node.op, data.backward, is_reset_last), is_reset_last)
        weights, states = problem.begin(start, train)
        rows = np.concatenate([piece.aim[piece.sequences.mask] for piece in valid])
        scale = max(float(((rows - rows.mean(axis=0)) ** 2).sum(dtype=np.float64)), 1e-30)
        first = problem.error(weights, valid) / scale
        per_step = max(_ROWS, max(piece.rows for piece in train))
        steps = min(self.steps, int(_WORK / max(problem.cost(weights, per_step), 1))) if first >= ENOUGH else 0
        descended = descend(
            weights,
            first,
            problem.slopes,
            lambda moved: problem.error(moved, valid) / scale,
            problem.coordinates(states, train),
            problem.sizes,
            train,
            _ROWS,
            steps,
            (self.seed, 3, number),
        )
        best = descended.weights
        cell = problem.cell(best, start)
        flat = Weights(cell.matrix.reshape(-1, cell.matrix.shape[2]), (cell.wb + cell.rb).reshape(-1), *best[-2:])
        return cell, Refined(flat, first, descended.error, descended.steps, sum(piece.rows for piece in train))


def _pieces(data: CellSequences, read: Floats32, aside: bool) -> list[SequencePiece]:
    """The samples kept `aside` or the others, as many at once as `_SAMPLES`; sequences of one length together."""
    by_length: dict[int, list[tuple[NDArray[Any], ...]]] = {}
    for batch, ((fed, whole), mask) in enumerate(zip(data.batches, data.masks(aside), strict=True)):
        chosen = np.flatnonzero(data.aside[batch] == aside)
        if not len(chosen):
            continue
        states = np.moveaxis(whole[data.layer.output][:, :, chosen], 1, 2)
        aim = states.reshape(*states.shape[:2], -1) @ read.T
        by_length.setdefault(len(mask), []).append((*data.first_of(fed, chosen), mask[:, chosen], aim))
    pieces = []
    for batches in by_length.values():
        arrays = [np.concatenate(parts, axis=1) for parts in zip(*batches, strict=True)]
        for at in range(0, arrays[0].shape[1], _SAMPLES):
            x, h, c, counts, aim = (array[:, at : at + _SAMPLES] for array in arrays)
            pieces.append(SequencePiece(Sequences(x, h, c, counts), aim))
    return [piece for piece in pieces if piece.rows]


Parameters = Sequence[Floats32]


@dataclass(frozen=True)
class _Problem:
    """The cell and its reader, as a list of arrays: W, R, b, b' of every direction, then U (K, D*H') and c (K,)."""

    gradient: CellGradient
    has_inner: bool

    def begin(self, start: CellWeights, train: Sequence[SequencePiece]) -> tuple[Parameters, list[Floats32]]:
        """The cell as it is with the reader by least squares, and by piece the states (rows, D*H') that it makes."""
        size, weights = start.units, list[Floats32]()
        for d in range(len(start.w)):
            b, inner = start.wb[d] + start.rb[d], np.zeros(size)
            if self.has_inner:
                inner, b[2 * size :] = start.rb[d, 2 * size :], start.wb[d, 2 * size :]
            weights += [np.asarray(part, dtype=np.float32) for part in (start.w[d], start.r[d], b, inner)]
        known, sides = Moments(size * len(start.w), int(train[0].aim.shape[2]), np), self.sides(weights)
        states = [self.gradient.run(sides, piece.sequences)[0][piece.sequences.mask] for piece in train]
        for rows, piece in zip(states, train, strict=True):
            known.update(rows, piece.aim[piece.sequences.mask])
        u = solve_spd(known.covariance, known.cross.T, 1e-5).T
        mean_x, mean_y = known.mean_x, known.mean_y
        return [*weights, u.astype(np.float32), (mean_y - u @ mean_x).astype(np.float32)], states

    def coordinates(self, states: Sequence[Floats32], train: Sequence[SequencePiece]) -> Coordinates:
        """Those of W by the inputs, of R and U by the `states` that the cell makes as it is."""
        x = whitening(piece.sequences.x[piece.sequences.mask] for piece in train)
        directions, by_array = len(self.gradient.backward), list[Whitening | None]()
        for d in range(directions):
            by_array += [x, whitening(np.split(rows, directions, axis=1)[d] for rows in states), None, None]
        return Coordinates([*by_array, whitening(states), None])

    def sides(self, weights: Parameters) -> list[DirectionWeights]:
        """The directions."""
        return [DirectionWeights(*weights[4 * d : 4 * d + 4]) for d in range(len(weights) // 4)]

    def error(self, weights: Parameters, pieces: Sequence[SequencePiece]) -> float:
        """Sum of squares that are missed."""
        return sum(float((self._residual(weights, piece)[0] ** 2).sum(dtype=np.float64)) for piece in pieces)

    def _residual(
        self, weights: Parameters, piece: SequencePiece
    ) -> tuple[Floats32, Floats32, list[list[tuple[Floats32, ...]]]]:
        states, kept = self.gradient.run(self.sides(weights), piece.sequences)
        residual = (states @ weights[-2].T + weights[-1] - piece.aim) * piece.sequences.mask[:, :, None]
        return residual, states, kept

    def slopes(self, weights: Parameters, piece: SequencePiece) -> Parameters:
        """Half the derivative of the sum of squares by all."""
        residual, states, kept = self._residual(weights, piece)
        by_side = self.gradient.gradients(self.sides(weights), piece.sequences, kept, residual @ weights[-2])
        rows = residual.reshape(-1, residual.shape[2])
        own = [part for side in by_side for part in side]
        return [*own, rows.T @ states.reshape(len(rows), -1), rows.sum(axis=0)]

    def cell(self, weights: Parameters, like: CellWeights) -> CellWeights:
        """The cell's weights as they are stored."""
        sides, size, wb, rb = self.sides(weights), like.units, like.wb.copy(), like.rb.copy()
        for d, side in enumerate(sides):
            b = side.b.astype(np.float64)
            if self.has_inner:
                rb[d, 2 * size :] = side.inner
                wb[d, : 2 * size], wb[d, 2 * size :] = b[: 2 * size] - rb[d, : 2 * size], b[2 * size :]
            else:
                wb[d] = b - rb[d]
        w, r = (np.stack([getattr(side, part) for side in sides]).astype(np.float64) for part in ("w", "r"))
        return replace(like, w=w, r=r, wb=wb, rb=rb)

    def sizes(self, weights: Parameters) -> list[float]:
        """How far a step of one moves each array: a bias as far as its matrix."""
        sizes = list[float]()
        for side in self.sides(weights):
            w, r = (float(np.sqrt(np.mean(matrix**2))) for matrix in (side.w, side.r))
            sizes += [w, r, r, r]
        return sizes + [float(np.sqrt(np.mean(weights[-2] ** 2)))] * 2

    def cost(self, weights: Parameters, rows: float) -> float:
        """Multiply-adds of a step: forward, and twice as much back."""
        return 3.0 * rows * sum(float(part.size) for part in weights)
