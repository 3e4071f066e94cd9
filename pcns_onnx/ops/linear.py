"""Conv, Gemm and MatMul: the layers that are solved for.

Each is y = V x + c per output position: for Gemm and MatMul x is a row, for Conv the patch
under the kernel (zero padding included, so border effects are in the moments).

A grouped Conv whose blocks are wide is solved block by block, and the same places go in every
block, so that the blocks stay equal. One with more blocks than channels in a block (ResNeXt,
depthwise) loses whole blocks instead: what is left of it needs no solving.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.graph import Array
from pcns_onnx.numerics.arrays import namespace_of
from pcns_onnx.ops.attention import product
from pcns_onnx.ops.facts import Labels, Linear, OpContext, OpFacts, describe, freeze, spread
from pcns_onnx.ops.registry import rule
from pcns_onnx.ops.sliding_window import WindowOp, alike, form_of, reads_of, unsolvable, whole_blocks


@dataclass(frozen=True)
class ConvOp(WindowOp):
    """A convolution with any number of spatial axes."""

    @property
    def padded(self) -> bool:
        """Whether zeros are added around the input."""
        if self.auto_pad.startswith("SAME"):
            return any(k > 1 for k in self.kernel)
        return any(self.pads or ())

    def matrix(self, weight: Array) -> Array:
        """(K, C, *kernel) -> (K, taps*C), or the rows of the block."""
        weight = self._own(weight, 0)
        return np.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1)

    def weight(self, matrix: Array, like: Array) -> Array:
        """(K, taps*C) -> (K, C, *kernel)."""
        return np.moveaxis(matrix.reshape(matrix.shape[0], *like.shape[2:], -1), -1, 1)


@dataclass(frozen=True)
class RowOp:
    """Gemm or MatMul on rows: V is `scale` times the (transposed) weight.

    Where samples are not on the first axis alone (`mixed`: a batch of sequences, time first), rows
    do not belong to samples in order: there is one position, all rows.
    """

    transposed: bool
    scale: float = 1.0
    rows_first: bool = True
    mixed: bool = False

    blocks = 1
    taps = 1
    padded = False

    def part(self, block: int) -> RowOp:
        """There is one block."""
        return self

    def matrix(self, weight: Array) -> Array:
        """(C, K), or (K, C) when `transposed`, -> (K, C)."""
        return (weight if self.transposed else weight.T) * self.scale

    def weight(self, matrix: Array, like: Array) -> Array:
        """(K, C) -> the weight's own layout, with a scale of one."""
        return matrix if self.transposed else matrix.T

    def owners(self, reads: Labels) -> Labels:
        """One column per channel."""
        return reads

    def grid(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Sizes of the axes between samples and channels."""
        return x_shape[1:-1]

    def positions(self, x_shape: tuple[int, ...]) -> int:
        """Rows per sample."""
        return 1 if self.mixed else prod(x_shape[1:-1])

    def positions_of(self, y_shape: tuple[int, ...]) -> int:
        """Rows per sample."""
        return 1 if self.mixed else prod(y_shape[1:-1])

    def places(self, x_shape: tuple[int, ...], at: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Every position reads itself."""
        return (np.arange(self.positions(x_shape)) if at is None else at)[:, None]

    def inputs(self, x: Any, at: NDArray[np.int64] | None) -> Any:
        """Rows (R, C); `at` picks positions within each sample."""
        xp = namespace_of(x)
        return _rows(x if self.rows_first else xp.permute_dims(x, (1, 0)), at)

    def outputs(self, y: Any, at: NDArray[np.int64] | None) -> Any:
        """Rows (R, K)."""
        return _rows(y, at)


def _rows(x: Any, at: NDArray[np.int64] | None) -> Any:
    xp = namespace_of(x)
    width = int(x.shape[-1])
    if at is not None:
        x = xp.take(xp.reshape(x, (int(x.shape[0]), -1, width)), xp.asarray(at), axis=1)
    return xp.reshape(x, (-1, width))


@rule("Conv", operands="all")
def conv(context: OpContext) -> OpFacts:
    """Conv: mixes channels on axis 1, in blocks where it is grouped."""
    shape, out = context.known_shape(1), context.known_output()
    if shape is None:
        return freeze(context, f"{describe(context.node)} has a weight of unknown shape", macs=0)
    macs = prod(out) * prod(shape[1:]) if out else 0
    if why := unsolvable(context):
        return freeze(context, f"{describe(context.node)} {why}", macs=macs)
    op, rank = ConvOp.of(context, shape[2:]), len(shape)
    reads = reads_of(context, axis=1, rank=rank, width=shape[1] * op.blocks)
    if reads is None:
        return freeze(context, f"{describe(context.node)} reads channels along another axis", macs=macs)
    if op.blocks > shape[1]:
        return whole_blocks(context, reads.reshape(op.blocks, -1), shape[0] // op.blocks, macs)
    writes = context.fresh(shape[0])
    linear = Linear(op, weight=1, weight_axes=(0, 1), bias=2, reads=reads, writes=writes)
    ties = (*alike(reads, op.blocks, context), *alike(writes, op.blocks, context))
    return OpFacts((spread(writes, 1, rank),), "reader", linear=linear, macs=macs, ties=ties)


@rule("Gemm", operands="all")
def gemm(context: OpContext) -> OpFacts:
    """Gemm: alpha and the transposes are absorbed into V, beta scales the bias."""
    weight, shape, out = context.constant(1), context.known_shape(1), context.known_output()
    trans_b, trans_a = bool(context.attr("transB", 0)), bool(context.attr("transA", 0))
    k = shape[0 if trans_b else 1] if shape else 0
    c = shape[1 if trans_b else 0] if shape else 0
    macs = prod(out) * c if out else 0
    if weight is None or shape is None:
        why = form_of(context, 1) or "multiplies two computed matrices"
        return freeze(context, f"{describe(context.node)} {why}", macs=macs)
    reads = reads_of(context, axis=0 if trans_a else 1, rank=2, width=c)
    if reads is None:
        return freeze(context, f"{describe(context.node)} reads channels along its rows", macs=macs)
    has_bias = len(context.node.inputs) > 2 and bool(context.node.inputs[2])
    bias = context.constant(2)
    if has_bias and (bias is None or bias.size not in (1, k) or (bias.ndim == 2 and bias.shape[0] not in (1,))):
        return freeze(context, f"{describe(context.node)} has a bias that is not one value per neuron", macs=macs)
    writes = context.fresh(k)
    axes = (0, 1) if trans_b else (1, 0)
    linear = Linear(
        RowOp(trans_b, float(context.attr("alpha", 1.0)), rows_first=not trans_a),
        weight=1,
        weight_axes=axes,
        bias=2,
        reads=reads,
        writes=writes,
        bias_scale=float(context.attr("beta", 1.0)),
        resets=(("alpha", 1.0), ("beta", 1.0)),
    )
    return OpFacts((spread(writes, 1, 2),), "reader", linear=linear, macs=macs)


@rule("MatMul", operands="all")
def matmul(context: OpContext) -> OpFacts:
    """MatMul by a stored matrix; a bias, if any, is the Add behind it."""
    x, shape, out = context.known_shape(0), context.known_shape(1), context.known_output()
    macs = prod(out) * x[-1] if out and x else 0
    weight = context.constant(1)
    if weight is None and (why := form_of(context, 1)):
        return freeze(context, f"{describe(context.node)} {why}", macs=macs)
    if weight is None and context.constant(0) is None:
        return product(context, macs)
    if weight is None or weight.ndim != 2 or shape is None:
        return freeze(context, f"{describe(context.node)} does not multiply by one stored matrix", macs=macs)
    if context.shapes[0] is None:
        return freeze(context, f"{describe(context.node)} has an input of unknown rank", macs=macs)
    rank = len(context.shapes[0])
    reads = reads_of(context, axis=rank - 1, rank=rank, width=shape[0])
    if reads is None or rank < 2:
        return freeze(context, f"{describe(context.node)} reads channels along another axis", macs=macs)
    writes = context.fresh(shape[1])
    mixed = any(axis for axis in context.batched[0])
    linear = Linear(RowOp(False, mixed=mixed), weight=1, weight_axes=(1, 0), bias=None, reads=reads, writes=writes)
    return OpFacts((spread(writes, rank - 1, rank),), "reader", linear=linear, macs=macs)
