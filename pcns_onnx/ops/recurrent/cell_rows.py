"""The rows of a recurrent layer: at every step the input beside the state that the step before has left.

    s(t) = W x(t) + R h(t-1) + b          V = [W R],  x = [x(t) h(t-1)]

for each direction a block of its own, as a grouped Conv has them. The operator shows no gates, but what they are made
of it does: X is its input, and h(t-1) its own output Y, a step later (earlier for the direction that runs backwards).
A GRU's candidate reads r(t) h(t-1); to choose units it is taken for h(t-1), the re-fit tells them apart.

Samples may have lengths of their own. Steps past the end count for nothing: the sample's own steps stand there again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.graph import Array
from pcns_onnx.numerics.arrays import namespace_of, to_numpy
from pcns_onnx.ops.facts import Labels
from pcns_onnx.ops.linear import rows_of


@dataclass(frozen=True)
class CellOp:
    """[W R] of `conv_groups` directions, `block` one of them; `backward`: whether each runs from the end."""

    conv_groups: int
    backward: tuple[bool, ...]
    block: int | None = None
    taps: int = 1
    padded: bool = False
    mixed: bool = False
    axis: int = -1

    def part(self, block: int) -> CellOp:
        """One direction as a layer of its own."""
        return replace(self, block=block)

    @property
    def layout(self) -> tuple[str, tuple[bool, ...]]:
        """The directions."""
        return "cell", self.backward

    def matrix(self, weight: Array) -> Array:
        """(D, kH, I + H) -> (D*kH, I + H), or the rows of the direction."""
        weight = weight if self.block is None else weight[self.block : self.block + 1]
        return weight.reshape(-1, weight.shape[-1])

    def weight(self, matrix: Array, like: Array) -> Array:
        """(D*kH, I + H) -> (D, kH, I + H)."""
        return matrix.reshape(self.conv_groups, -1, matrix.shape[-1])

    def owners(self, reads: Labels) -> Labels:
        """One column per channel."""
        return reads

    def grid(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The steps."""
        return x_shape[:1]

    def positions(self, x_shape: tuple[int, ...]) -> int:
        """Steps per sample."""
        return int(x_shape[0])

    def positions_of(self, y_shape: tuple[int, ...]) -> int:
        """Steps per sample; one where only the last state is put out."""
        return int(y_shape[0]) if len(y_shape) == 4 else 1

    def places(self, x_shape: tuple[int, ...], at: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Every step reads itself."""
        return (np.arange(self.positions(x_shape)) if at is None else at)[:, None]

    def inputs(self, x: Any, at: NDArray[np.int64] | None) -> Any:
        """Rows (R, D*(I + H)), or those of the direction, of what `joined` makes (S, B, D*(I + H))."""
        xp = namespace_of(x)
        if self.block is not None:
            width = int(x.shape[-1]) // self.conv_groups
            x = x[:, :, self.block * width : (self.block + 1) * width]
        return rows_of(xp.permute_dims(x, (1, 0, 2)), at)

    def outputs(self, y: Any, at: NDArray[np.int64] | None) -> Any:
        """Rows (R, D*H) of Y (S, D, B, H), of Y_h (D, B, H)."""
        xp = namespace_of(y)
        y = y if y.ndim == 4 else y[None, ...]
        y = xp.permute_dims(y, (2, 0, 1, 3))
        return rows_of(xp.reshape(y, (int(y.shape[0]), int(y.shape[1]), -1)), at)

    def joined(self, x: Any, y: Any, lengths: Any = None, initial: Any = None) -> Any:
        """[x(t) h(t-1)] of all directions, (S, B, D*(I + H)), from X (S, B, I) and Y (S, D, B, H).

        `lengths` (B,) are the samples' own numbers of steps, `initial` (D, B, H) the states that they start from.
        """
        xp = namespace_of(x)
        before = previous(y, self.backward, lengths, initial)
        steps = own_steps(lengths, int(x.shape[0]))
        parts = [part for block in range(self.conv_groups) for part in (x, before[:, block, :, :])]
        whole = xp.concat(parts, axis=2)
        if steps is None:
            return whole
        batch = np.arange(int(x.shape[1]))[None, :]
        flat = xp.reshape(whole, (-1, int(whole.shape[2])))
        places = xp.asarray((steps * len(batch[0]) + batch).reshape(-1))
        return xp.reshape(xp.take(flat, places, axis=0), whole.shape)


def previous(y: Any, backward: Sequence[bool], lengths: Any = None, initial: Any = None) -> Any:
    """The state in front of every step, (S, D, B, H): Y a step later, behind the initial state (zero without one).

    Backwards that stands in front of a sample's own last step.
    """
    xp = namespace_of(y)
    start = xp.zeros_like(y[:1, ...]) if initial is None else xp.astype(xp.asarray(initial), y.dtype)[None, ...]
    start = start + xp.zeros_like(y[:1, ...])
    sides = []
    for block, runs_back in enumerate(backward):
        own, first = y[:, block : block + 1, ...], start[:, block : block + 1, ...]
        side = xp.concat([own[1:, ...], first] if runs_back else [first, own[:-1, ...]], axis=0)
        if runs_back and lengths is not None:
            is_last = np.arange(int(y.shape[0]))[:, None] == to_numpy(lengths).astype(np.int64).reshape(1, -1) - 1
            side = xp.where(xp.asarray(is_last[:, None, :, None]), first, side)
        sides.append(side)
    return xp.concat(sides, axis=1)


def own_steps(lengths: Any, steps: int) -> NDArray[np.int64] | None:
    """(S, B): of every step of every sample its own number, past the sample's end again from its first on."""
    if lengths is None:
        return None
    own = np.maximum(to_numpy(lengths).astype(np.int64).reshape(1, -1), 1)
    return np.arange(steps)[:, None] % own if (own < steps).any() else None
