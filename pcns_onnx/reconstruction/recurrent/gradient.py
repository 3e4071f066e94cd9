"""LSTM, GRU and RNN run over sequences, and how a squared error changes with their weights (backpropagation in time).

With s the sums of the gates, and h, c the state in front of the step, ONNX's operators are

    LSTM   i, o, f = sigma(s_i), sigma(s_o), sigma(s_f)     c' = f c + i tanh(s_c)     h' = o tanh(c')
    GRU    z, r = sigma(s_z), sigma(s_r)     n = tanh(W x + R (r h) + b), or tanh(W x + b + r (R h + b'))
           h' = (1 - z) n + z h
    RNN    h' = tanh(s)

A step that does not count (`mask` 0) leaves the first state, as onnxruntime does for the ends of shorter samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.graph import Node

Floats = NDArray[np.float32]
Steps = list[tuple[Floats, ...]]

DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
"""The functions of a direction that are understood here."""
_PEEPHOLES = 7


@dataclass(frozen=True)
class Sequences:
    """Some samples: x (S, B, I), the first states (D, B, H), which steps count (S, B)."""

    x: Floats
    h: Floats
    c: Floats
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class DirectionWeights:
    """The weights of a direction, float32: W (kH, I), R (kH, H), b (kH,), and b' (H,) inside of a GRU's reset gate."""

    w: Floats
    r: Floats
    b: Floats
    inner: Floats

    @property
    def all(self) -> tuple[Floats, Floats, Floats, Floats]:
        """In this order."""
        return self.w, self.r, self.b, self.inner


def is_differentiable(node: Node) -> bool:
    """Whether a cell is one of those above, with nothing added."""
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in node.attrs.get("activations", ())]
    default = [name.lower() for name in DEFAULTS[node.op]]
    plain = all(name.lower() == default[at % len(default)] for at, name in enumerate(names))
    peeks = len(node.inputs) > _PEEPHOLES and bool(node.inputs[_PEEPHOLES])
    return plain and not peeks and "clip" not in node.attrs and not node.attrs.get("input_forget", 0)


@dataclass(frozen=True)
class CellGradient:
    """A cell of operator `op`; `backward` says which directions run from the end."""

    op: str
    backward: tuple[bool, ...]
    is_reset_last: bool = False

    def run(self, sides: Sequence[DirectionWeights], sequences: Sequences) -> tuple[Floats, list[Steps]]:
        """The states (S, B, D*H), and what the way back needs of every direction."""
        states, kept = [], []
        for d, side in enumerate(sides):
            own, steps = self._forward(side, self._turned(sequences, d), sequences.h[d], sequences.c[d])
            states.append(own[::-1] if self.backward[d] else own)
            kept.append(steps)
        return np.concatenate(states, axis=2), kept

    def gradients(
        self, sides: Sequence[DirectionWeights], sequences: Sequences, kept: Sequence[Steps], slope: Floats
    ) -> list[tuple[Floats, Floats, Floats, Floats]]:
        """By direction the derivatives by W, R, b and b' of what has the `slope` (S, B, D*H) by the states."""
        size, result = sides[0].r.shape[1], []
        for d, side in enumerate(sides):
            own = slope[:, :, d * size : (d + 1) * size]
            in_order = self._turned(sequences, d)
            result.append(self._backward(side, in_order, kept[d], own[::-1] if self.backward[d] else own))
        return result

    def _turned(self, sequences: Sequences, direction: int) -> Sequences:
        if not self.backward[direction]:
            return sequences
        return Sequences(sequences.x[::-1], sequences.h, sequences.c, sequences.mask[::-1])

    def _forward(self, side: DirectionWeights, sequences: Sequences, h: Floats, c: Floats) -> tuple[Floats, Steps]:
        steps, states = Steps(), []
        first_h, first_c = h, c
        sums = sequences.x @ side.w.T + side.b
        for t, own in enumerate(sums):
            next_h, next_c, gates_of = self._step(side, own, h, c)
            steps.append((h, *gates_of))
            h, c = next_h, next_c
            if not sequences.mask[t].all():
                counts = sequences.mask[t][:, None]
                h, c = np.where(counts, next_h, first_h), np.where(counts, next_c, first_c)
            states.append(h)
        return np.stack(states), steps

    def _step(
        self, side: DirectionWeights, sums: Floats, h: Floats, c: Floats
    ) -> tuple[Floats, Floats, tuple[Floats, ...]]:
        """The new states, and the gates."""
        size = h.shape[1]
        if self.op == "RNN":
            state: Floats = np.tanh(sums + h @ side.r.T)
            return state, c, (state,)
        if self.op == "LSTM":
            s = sums + h @ side.r.T
            i, o, f = (logistic(s[:, at * size : (at + 1) * size]) for at in range(3))
            g = np.tanh(s[:, 3 * size :])
            after = f * c + i * g
            bent = np.tanh(after)
            return o * bent, after, (i, o, f, g, bent, c)
        gates = logistic(sums[:, : 2 * size] + h @ side.r[: 2 * size].T)
        z, r, last = gates[:, :size], gates[:, size:], side.r[2 * size :]
        inner = h @ last.T + side.inner if self.is_reset_last else r * h
        n = np.tanh(sums[:, 2 * size :] + (r * inner if self.is_reset_last else inner @ last.T))
        return (1 - z) * n + z * h, c, (z, r, n, inner)

    def _backward(
        self, side: DirectionWeights, sequences: Sequences, steps: Steps, slope: Floats
    ) -> tuple[Floats, Floats, Floats, Floats]:
        size = side.r.shape[1]
        ds = np.zeros((*slope.shape[:2], len(side.r)), dtype=np.float32)
        carried, memory = np.zeros_like(slope[0]), np.zeros_like(slope[0])
        by_r, by_inner = np.zeros_like(side.r), np.zeros_like(side.inner)
        for t in range(len(slope) - 1, -1, -1):
            counts = sequences.mask[t][:, None]
            dh, dc = (slope[t] + carried) * counts, memory * counts
            h, *gates_of = steps[t]
            if self.op == "GRU":
                ds[t], carried, own = self._gru_back(side, dh, h, gates_of)
                by_r[2 * size :] += own[0]
                by_inner += own[1]
                by_r[: 2 * size] += ds[t][:, : 2 * size].T @ h
                continue
            if self.op == "RNN":
                ds[t] = dh * (1 - gates_of[0] ** 2)
            else:
                i, o, f, g, bent, c = gates_of
                after = dh * o * (1 - bent**2) + dc
                parts = (
                    after * g * i * (1 - i),
                    dh * bent * o * (1 - o),
                    after * c * f * (1 - f),
                    after * i * (1 - g**2),
                )
                ds[t], memory = np.concatenate(parts, axis=1), after * f
            by_r += ds[t].T @ h
            carried = ds[t] @ side.r
        rows = ds.reshape(-1, ds.shape[2])
        return rows.T @ sequences.x.reshape(len(rows), -1), by_r, rows.sum(axis=0), by_inner

    def _gru_back(
        self, side: DirectionWeights, dh: Floats, h: Floats, gates_of: Sequence[Floats]
    ) -> tuple[Floats, Floats, tuple[Any, Any]]:
        """The slopes by the sums and by the state before, and what R of the candidate and its own bias get."""
        size, (z, r, n, inner) = h.shape[1], gates_of
        last, by_inner = side.r[2 * size :], 0 * side.inner
        dn = dh * (1 - z) * (1 - n**2)
        if self.is_reset_last:
            dr, through = dn * inner, dn * r
            before, by_last, by_inner = through @ last, through.T @ h, by_inner + through.sum(axis=0)
        else:
            back = dn @ last
            dr, before, by_last = back * h, back * r, dn.T @ inner
        gates: Floats = np.concatenate([dh * (h - n) * z * (1 - z), dr * r * (1 - r)], axis=1)
        before = before + dh * z + gates @ side.r[: 2 * size]
        slopes: Floats = np.concatenate([gates, dn], axis=1)
        return slopes, before, (by_last, by_inner)


def logistic(s: Any) -> Any:
    """1 / (1 + exp(-s))."""
    return 0.5 * (1.0 + np.tanh(0.5 * s))
