"""The re-fit of a recurrent layer, whose new weights change the states that they are solved from.

What the kept rows of its gates add up in the original is known, from X, Y and the weights:

    s(t) = W x(t) + R h(t-1) + b

The shrunk cell is to make the same of its own input x'(t) and of its own state h'(t-1):

    min over V, c of  E|s(t) - V [x'(t) h'(t-1)] - c|²  +  a ridge towards the original's, what went by its mixture

h' follows from V. So it is solved on the original's kept states first, then on the states of the cell that came of
that, running free, and again: `ROUNDS` times in all. Errors feed back, and a better fit of every step may run worse:
the cells, and the one with the mixture in place of what went, run free over the samples kept aside, and the one whose
kept states are nearest to the original's is taken.

A GRU's candidate reads the state behind the reset gate. With linear_before_reset 0 that is an input of its own,
r(t) h(t-1), of the r that is solved already. With 1 what is reset is R h + Rb: it is solved from h', and W x + Wb
from x', each for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pcns_onnx.numerics.arrays import Array, to_numpy
from pcns_onnx.numerics.moments import Moments
from pcns_onnx.numerics.ridge import Evidence, Fit, fit_apart
from pcns_onnx.reconstruction.recurrent.targets import CellSequences, Feeds, Floats, StepRows, fed_by
from pcns_onnx.reconstruction.refine import Refined
from pcns_onnx.rewrite.patch import Patch, apply
from pcns_onnx.rewrite.recurrent_cells import CellWeights, set_cell
from pcns_onnx.runtime.engine import Engine, Tensors

Refine = Callable[[CellSequences, CellWeights], tuple[CellWeights, Refined] | None]
"""Better weights than these, and how much better; None where none can be sought."""
ROUNDS = 3
"""How often a cell is solved: on the original's states, then on its own."""


def solve_cell(
    engine: Engine,
    data: CellSequences,
    priors: Sequence[Array],
    refine: Refine | None = None,
) -> tuple[Patch, Fit, Refined | None]:
    """The edits that give a recurrent layer its new weights, and how well it does, running free.

    `priors` are by direction [W R] (kH', I' + H') on what stays. `refine` goes on from what was solved.
    """
    solve = _CellSolve(engine, data)
    rows = [to_numpy(prior) for prior in priors]
    best = solve.judged(solve.start(rows))
    states: list[Floats] | None = None
    for _ in range(ROUNDS):
        solved = solve.solved(rows, states)
        if solved is None:
            break
        trial = solve.judged(solved)
        states, best = trial.states, min(best, trial, key=lambda candidate: candidate.missed[1])
    weights, refined = best.weights, None
    matrix = weights.matrix.reshape(-1, weights.matrix.shape[2])
    fit = Fit(matrix, (weights.wb + weights.rb).reshape(-1), best.ridge, data.rows, *best.missed, solve.scale)
    better = None if refine is None else refine(data, weights)
    if better is not None:
        weights, refined = better
    return set_cell(data.shrunk, data.layer, weights), fit, refined


@dataclass(frozen=True)
class _Solved:
    weights: CellWeights
    ridge: float


@dataclass(frozen=True)
class _Trial:
    """A cell that ran free: its states by batch, the shares of the kept states' variance that it misses."""

    weights: CellWeights
    ridge: float
    states: list[Floats]
    missed: tuple[float, float]


@dataclass
class _CellSolve:
    """One cell, from its sequences."""

    engine: Engine
    data: CellSequences

    def start(self, priors: Sequence[Floats]) -> _Solved:
        """The mixture in place of what went; the bias makes up for the means."""
        kept, count, shift = self.data.kept, 0, np.zeros((len(priors), len(priors[0])))
        inputs = priors[0].shape[1] - kept.units
        for batch in self.data.steps():
            counts = batch.train | batch.valid
            count += int(counts.sum())
            for d, prior in enumerate(priors):
                sums = (batch.of_x + batch.of_h)[:, d]
                shift[d] += sums[counts].sum(axis=0) - prior @ batch.both(d)[counts].sum(axis=0)
        shift /= max(count, 1)
        if self.data.reset:  # the candidate sees another state than the gates
            shift[:, 2 * kept.units :] = (kept.wb + kept.rb)[:, 2 * kept.units :]
        whole = np.stack(priors)
        return _Solved(replace(kept, w=whole[:, :, :inputs], r=whole[:, :, inputs:], wb=shift - kept.rb), 0.0)

    def solved(self, priors: Sequence[Floats], states: Sequence[Floats] | None) -> _Solved | None:
        """Solved on these states, the original's where there are none; None where it cannot be."""
        if not self.data.is_known:
            return None
        kept, size = self.data.kept, self.data.kept.units
        last, width = slice(2 * size, 3 * size), priors[0].shape[1] - size
        if not self.data.reset:
            fits = self._fits(states, [[prior] for prior in priors], lambda batch, d: [self._sums(batch, d)])
            return self._joined(
                [one.matrix for (one,) in fits], [one.bias for (one,) in fits], kept.rb, max(f.ridge for (f,) in fits)
            )
        if self.data.is_reset_last:
            parts = [[prior[: 2 * size], prior[last, :width], prior[last, width:]] for prior in priors]
            fits = self._fits(states, parts, self._apart)
            inner = kept.rb.copy()
            inner[:, last] = [of_h.bias for *_, of_h in fits]
            matrices = [np.vstack([g.matrix, np.hstack([x.matrix, h.matrix])]) for g, x, h in fits]
            biases = [np.concatenate([g.bias, x.bias + h.bias]) for g, x, h in fits]
            return self._joined(matrices, biases, inner, max(gates.ridge for gates, *_ in fits))
        gates = self._fits(states, [[prior[: 2 * size]] for prior in priors], self._gates)

        def behind_reset(batch: StepRows, d: int) -> list[tuple[Floats, Floats]]:
            one, rows = gates[d][0], slice(size, 2 * size)
            reset = self.data.gate_of(batch.both(d) @ one.matrix[rows].T + one.bias[rows], d)
            read = np.concatenate([batch.x, reset * batch.before[:, d]], axis=-1)
            return [(read, self._sums(batch, d)[1][..., last])]

        candidates = self._fits(states, [[prior[last]] for prior in priors], behind_reset)
        pairs = [(first, second) for (first,), (second,) in zip(gates, candidates, strict=True)]
        return self._joined(
            [np.vstack([first.matrix, second.matrix]) for first, second in pairs],
            [np.concatenate([first.bias, second.bias]) for first, second in pairs],
            kept.rb,
            max(first.ridge for first, _ in pairs),
        )

    def _joined(self, matrices: Sequence[Floats], biases: Sequence[Floats], inner: Floats, ridge: float) -> _Solved:
        """Both directions: [W R], the sum of the biases, and the second of these."""
        whole, size = np.stack(matrices), self.data.kept.units
        w, r = whole[:, :, : whole.shape[2] - size], whole[:, :, whole.shape[2] - size :]
        return _Solved(CellWeights(w, r, np.stack(biases) - inner, inner), ridge)

    def _sums(self, batch: StepRows, d: int) -> tuple[Floats, Floats]:
        """[x h], and what all gates of a direction sum up."""
        return batch.both(d), batch.of_x[:, d] + batch.of_h[:, d]

    def _gates(self, batch: StepRows, d: int) -> list[tuple[Floats, Floats]]:
        """The same of the gates of a GRU, but for its candidate."""
        rows, sums = self._sums(batch, d)
        return [(rows, sums[..., : 2 * self.data.kept.units])]

    def _apart(self, batch: StepRows, d: int) -> list[tuple[Floats, Floats]]:
        """The gates of a GRU, and what its candidate takes of the input, and of the state."""
        last = slice(2 * self.data.kept.units, None)
        of_input, of_state = batch.of_x[:, d][..., last], batch.of_h[:, d][..., last]
        return [*self._gates(batch, d), (batch.x, of_input), (batch.before[:, d], of_state)]

    def _fits(
        self,
        states: Sequence[Floats] | None,
        priors: Sequence[Sequence[Floats]],
        rows: Callable[[StepRows, int], list[tuple[Floats, Floats]]],
    ) -> list[list[Fit]]:
        """By direction, least squares of rows y (S, B, K) from rows x (S, B, n), one for each prior."""
        known = [
            [Evidence(*(Moments(prior.shape[1], len(prior), np) for _ in range(2))) for prior in own] for own in priors
        ]
        for batch in self.data.steps(states):
            for d, by_part in enumerate(known):
                for evidence, (x, y) in zip(by_part, rows(batch, d), strict=True):
                    evidence.train.update(x[batch.train], y[batch.train])
                    evidence.valid.update(x[batch.valid], y[batch.valid])
        return [
            [fit_apart(evidence, prior) for evidence, prior in zip(by_part, own, strict=True)]
            for by_part, own in zip(known, priors, strict=True)
        ]

    def judged(self, solved: _Solved) -> _Trial:
        """The cell with these weights, running free."""
        trial = apply(self.data.shrunk, set_cell(self.data.shrunk, self.data.layer, solved.weights))
        names = fed_by(trial, self.data.layer)
        session = self.engine.session(trial.extract(names, [self.data.layer.output]).program())
        states = [to_numpy(session.run(_only(fed, names))[self.data.layer.output]) for fed, _ in self.data.batches]
        shares = [self._missed(states, aside) for aside in (False, True)]
        missed = shares[0], shares[0] if np.isnan(shares[1]) else shares[1]
        return _Trial(solved.weights, solved.ridge, states, missed)

    def _missed(self, states: Sequence[Floats], aside: bool) -> float:
        """The share of the kept states' variance that is missed on samples kept aside, or on the others."""
        missed = 0.0
        for own, wanted, mask in zip(states, self.data.expected, self.data.masks(aside), strict=True):
            missed += float((np.moveaxis(own - wanted, 1, 2)[mask] ** 2).sum(dtype=np.float64))
        spread = self._spread(aside)
        return missed / spread if spread > 0 else float("nan")

    def _spread(self, aside: bool) -> float:
        """The sum of squares of the kept states around their means."""
        kept = self.data.kept
        width = len(kept.w) * kept.units
        known = Moments(1, width, np)
        for wanted, mask in zip(self.data.expected, self.data.masks(aside), strict=True):
            rows = np.moveaxis(wanted, 1, 2)[mask].reshape(int(mask.sum()), width)
            known.update(np.zeros((len(rows), 1)), rows)
        return float(known.variance_y.sum()) * known.rows if known.rows else 0.0

    @property
    def scale(self) -> float:
        """Root mean square deviation of the kept states."""
        kept = self.data.kept
        return float((self._spread(False) / max(self.data.rows * len(kept.w) * kept.units, 1)) ** 0.5)


def _only(feeds: Feeds, names: Sequence[str]) -> Tensors:
    return {name: feeds[name] for name in names}
