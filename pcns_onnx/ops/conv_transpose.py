"""ConvTranspose, the third layer that slides a window: y = V x + c at every output position.

Input position i and tap t meet at output i*stride + t*dilation - pad. Seen from output o, tap t
reads input (o + pad - t*dilation) / stride where that is a whole number inside the input, and
zero elsewhere. x is these readings, all channels of the first tap, then of the second; with a
stride of s only one tap in s**axes reads anything.

The weight is (C, K/blocks, *kernel). Blocks are as in a grouped Conv.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.graph import Array
from pcns_onnx.ops.facts import Linear, OpContext, OpFacts, describe, freeze, spread
from pcns_onnx.ops.registry import rule
from pcns_onnx.ops.sliding_window import WindowOp, alike, reads_of, unsolvable, whole_blocks


@dataclass(frozen=True)
class TransposedOp(WindowOp):
    """A transposed convolution; `extra` is its output padding, `size` its output where that is given."""

    extra: tuple[int, ...] = ()
    size: tuple[int, ...] = ()

    @property
    def padded(self) -> bool:
        """Whether some output misses a tap; true of all but pointwise ones."""
        return self.taps > 1 or any(s > 1 for s in self.strides) or any((*self.extra, *self.size, *(self.pads or ())))

    def matrix(self, weight: Array) -> Array:
        """(C, K/blocks, *kernel) -> (K, taps*C/blocks), or the rows of the block."""
        weight = self._own(weight, 0)
        split = weight.reshape(self._own_blocks, -1, weight.shape[1], self.taps)
        return np.transpose(split, (0, 2, 3, 1)).reshape(self._own_blocks * weight.shape[1], -1)

    def weight(self, matrix: Array, like: Array) -> Array:
        """(K, taps*C/blocks) -> (C, K/blocks, *kernel)."""
        split = matrix.reshape(self._own_blocks, matrix.shape[0] // self._own_blocks, self.taps, -1)
        return np.transpose(split, (0, 3, 1, 2)).reshape(-1, split.shape[1], *like.shape[2:])

    @property
    def _own_blocks(self) -> int:
        return self.conv_groups if self.block is None else 1

    def places(self, x_shape: tuple[int, ...], at: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Flat input position that each tap reads, (P, taps); -1 where it falls between two or outside."""
        size = tuple(int(s) for s in x_shape[2:])
        out = self._out(size)
        corners = np.unravel_index(np.arange(prod(out)) if at is None else at, out)
        taps = np.unravel_index(np.arange(self.taps), self.kernel)
        where, inside = [], np.ones((), dtype=np.bool_)
        for axis, (corner, tap, pad) in enumerate(zip(corners, taps, self._heads(size), strict=True)):
            place, between = np.divmod(corner[:, None] + pad - tap * self.dilations[axis], self.strides[axis])
            inside = inside & (between == 0) & (place >= 0) & (place < size[axis])
            where.append(np.clip(place, 0, size[axis] - 1))
        return np.where(inside, np.ravel_multi_index(where, size), -1).astype(np.int64)

    def _whole(self, size: Sequence[int]) -> list[int]:
        """What comes out of an input of `size` before anything is cut off."""
        return [
            (s - 1) * stride + span + extra
            for s, stride, span, extra in zip(size, self.strides, self._spans(), self.extra, strict=True)
        ]

    def _out(self, size: Sequence[int]) -> tuple[int, ...]:
        if self.size:
            return self.size
        pads, half = self.pads or (0,) * (2 * len(self.kernel)), len(self.kernel)
        whole = self._whole(size)
        if self.auto_pad.startswith("SAME"):
            return tuple(min(w, s * stride) for w, s, stride in zip(whole, size, self.strides, strict=True))
        return tuple(w - pads[i] - pads[i + half] for i, w in enumerate(whole))

    def _heads(self, size: Sequence[int]) -> tuple[int, ...]:
        """What is cut off in front of each axis: the larger half, for SAME_UPPER the smaller one."""
        if not self.size and not self.auto_pad.startswith("SAME"):
            return (self.pads or (0,) * len(self.kernel))[: len(self.kernel)]
        cut = [max(w - o, 0) for w, o in zip(self._whole(size), self._out(size), strict=True)]
        return tuple(c // 2 if self.auto_pad == "SAME_UPPER" else c - c // 2 for c in cut)


@rule("ConvTranspose", operands="all")
def conv_transpose(context: OpContext) -> OpFacts:
    """ConvTranspose: mixes channels on axis 1, in blocks where it is grouped."""
    x, shape = context.known_shape(0), context.known_shape(1)
    macs = prod(x) * prod(shape[1:]) if x and shape else 0
    if shape is None:
        return freeze(context, f"{describe(context.node)} has a weight of unknown shape", macs=macs)
    if why := unsolvable(context):
        return freeze(context, f"{describe(context.node)} {why}", macs=macs)
    rank, spatial = len(shape), len(shape) - 2
    output_shape = context.attr("output_shape", ())[-spatial:]
    extra = context.attr("output_padding", (0,) * spatial)
    op = TransposedOp.of(context, shape[2:], extra=tuple(extra), size=tuple(output_shape))
    reads = reads_of(context, axis=1, rank=rank, width=shape[0])
    if reads is None:
        return freeze(context, f"{describe(context.node)} reads channels along another axis", macs=macs)
    if op.conv_groups > shape[0] // op.conv_groups:
        return whole_blocks(context, reads.reshape(op.conv_groups, -1), shape[1], macs)
    writes = context.fresh(shape[1] * op.conv_groups)
    linear = Linear(op, weight=1, weight_axes=(1, 0), bias=2, reads=reads, writes=writes)
    ties = (*alike(reads, op.conv_groups, context), *alike(writes, op.conv_groups, context))
    return OpFacts((spread(writes, 1, rank),), "reader", linear=linear, macs=macs, ties=ties)
