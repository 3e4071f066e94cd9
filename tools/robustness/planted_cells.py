"""Recurrent layers half of whose units are superfluous, for `duplicates.py`."""

from __future__ import annotations

import numpy as np

from robustness.planted import Array, Planted

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(net: Planted) -> str:
    """One or two cells of a kind, in a direction or in both, and a layer at every step."""
    net.shape = int(net.rng.integers(4, 9)), int(net.rng.integers(3, 7))
    width, y = net.shape[-1], net.op("Transpose", "x", perm=[1, 0, 2])
    for _ in range(net.any(1, 2)):
        units, directions = 2 * int(net.rng.integers(2, 6)), net.any(1, 2)
        states = cell(net, y, width, units, directions)
        width = directions * units
        y = net.op("Reshape", net.op("Transpose", states, perm=[0, 2, 1, 3]), net.keep([0, 0, width]))
    return net.matmul(net.op("Transpose", y, perm=[1, 0, 2]), net.reader(4, width))


def cell(net: Planted, x: str, width: int, units: int, directions: int) -> str:
    """The states of a cell at all steps (T, D, N, H); the second half of its units are copies, in any order."""
    op = net.any(*GATES)
    gates, half = GATES[op], units // 2
    w, r, b = [], [], []
    for _ in range(directions):
        of = np.concatenate([np.arange(half), net.rng.permutation(half)])
        w.append(_rows(net.rng.standard_normal((gates, half, width)) / width**0.5, of))
        r.append(_rows(net.rng.standard_normal((gates, half, units)) / units**0.5, of))
        b.append(_rows(0.3 * net.rng.standard_normal((2 * gates, half)), of))
    direction = "bidirectional" if directions == 2 else net.any("forward", "reverse")
    attributes = {"linear_before_reset": net.any(0, 1)} if op == "GRU" else {}
    weights = [net.keep(np.stack(part)) for part in (w, r, b)]
    return net.op(op, x, *weights, hidden_size=units, direction=direction, **attributes)


def _rows(by_gate: Array, of: Array) -> Array:
    """The rows of all units, gate by gate."""
    return np.concatenate([rows[of] for rows in by_gate])
