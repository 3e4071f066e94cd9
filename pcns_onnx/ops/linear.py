"""Conv, Gemm and MatMul: the layers that are solved for, and products of two computed tensors.

Each is y = V x + c per output position: for Gemm and MatMul x is a row, for Conv the patch
under the kernel (zero padding included, so border effects are in the moments).

A grouped Conv whose blocks are wide is solved block by block, and the same places go in every
block, so that the blocks stay equal. One with more blocks than channels in a block (ResNeXt,
depthwise) loses whole blocks instead: what is left of it needs no solving.

In a product A @ B of computed tensors (attention) channels may lie

- on the axis that is summed over, in both (Q Kᵀ): the same ones go on both sides;
- on another axis of one of them (P V): they pass to the product, which is linear in them;
- on the axis of the heads, in both: tied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.graph import Array, Node
from pcns_onnx.numerics.arrays import namespace_of
from pcns_onnx.ops.facts import (
    MUST_STAY,
    Bilinear,
    Labels,
    Linear,
    OpContext,
    OpFacts,
    Tie,
    axes_of,
    describe,
    freeze,
    spread,
)
from pcns_onnx.ops.registry import rule
from pcns_onnx.ops.sliding_window import WindowOp, alike, form_of, reads_of, unsolvable, whole_blocks

COMPUTED = "multiplies two computed tensors"
Order = Sequence[int | None]
"""Axes of a tensor in another order; None is a new one of size one."""


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
    """Gemm or MatMul on rows: V is `scale` times the (transposed) weight, axes of size one in front of it left out.

    Where samples are not on the first axis alone (`mixed`: a batch of sequences, time first), rows
    do not belong to samples in order: there is one position, all rows. What is read has rows in its
    columns unless `rows_first`; what is made has them there where the weight is the left operand (`columns_out`).
    """

    transposed: bool
    scale: float = 1.0
    rows_first: bool = True
    mixed: bool = False
    columns_out: bool = False

    conv_groups = 1
    taps = 1
    padded = False

    @property
    def axis(self) -> int:
        """Channels lie on the last axis, or on the one before."""
        return -1 if self.rows_first else -2

    def part(self, block: int) -> RowOp:
        """There is one block."""
        return self

    @property
    def layout(self) -> tuple[str, bool, float]:
        """Transposed or not, and the scale."""
        return "rows", self.transposed, self.scale

    def matrix(self, weight: Array) -> Array:
        """(C, K), or (K, C) when `transposed`, -> (K, C)."""
        weight = weight.reshape(weight.shape[-2:])
        return (weight if self.transposed else weight.T) * self.scale

    def weight(self, matrix: Array, like: Array) -> Array:
        """(K, C) -> the weight's own layout, with a scale of one."""
        laid_out = matrix if self.transposed else matrix.T
        return laid_out.reshape(*like.shape[:-2], *laid_out.shape)

    def owners(self, reads: Labels) -> Labels:
        """One column per channel."""
        return reads

    def grid(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Sizes of the axes of positions, but for that of the samples."""
        return x_shape[1:-1] if self.rows_first else (*x_shape[1:-2], *x_shape[2:][-1:])

    def positions(self, x_shape: tuple[int, ...]) -> int:
        """Rows per sample."""
        return 1 if self.mixed else prod(self.grid(x_shape))

    def positions_of(self, y_shape: tuple[int, ...]) -> int:
        """Rows per sample."""
        return 1 if self.mixed else prod(y_shape[1:]) // y_shape[-2 if self.columns_out else -1]

    def places(self, x_shape: tuple[int, ...], at: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Every position reads itself."""
        return (np.arange(self.positions(x_shape)) if at is None else at)[:, None]

    def inputs(self, x: Any, at: NDArray[np.int64] | None) -> Any:
        """Rows (R, C); `at` picks positions within each sample."""
        return rows_of(x if self.rows_first else _last_two_swapped(x), at)

    def outputs(self, y: Any, at: NDArray[np.int64] | None) -> Any:
        """Rows (R, K)."""
        return rows_of(_last_two_swapped(y) if self.columns_out else y, at)


def _last_two_swapped(x: Any) -> Any:
    *lead, rows, columns = range(x.ndim)
    return namespace_of(x).permute_dims(x, (*lead, columns, rows))


def rows_of(x: Any, at: NDArray[np.int64] | None) -> Any:
    """Rows (R, C) of a tensor whose samples are on the first axis and channels on the last, at some positions."""
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
    reads = reads_of(context, axis=1, rank=rank, width=shape[1] * op.conv_groups)
    if reads is None:
        return freeze(context, f"{describe(context.node)} reads channels along another axis", macs=macs)
    if op.conv_groups > shape[1]:
        return whole_blocks(context, reads.reshape(op.conv_groups, -1), shape[0] // op.conv_groups, macs)
    writes = context.fresh(shape[0])
    linear = Linear(op, weight=1, weight_axes=(0, 1), bias=2, reads=reads, writes=writes)
    ties = (*alike(reads, op.conv_groups, context), *alike(writes, op.conv_groups, context))
    return OpFacts((spread(writes, 1, rank),), "reader", linear=linear, macs=macs, ties=ties)


@rule("Gemm", operands="all")
def gemm(context: OpContext) -> OpFacts:
    """Gemm: alpha and the transposes are absorbed into V, beta scales the bias."""
    weight, shape, out = context.constant(1), context.known_shape(1), context.known_output()
    trans_b, trans_a = bool(context.attr("transB", 0)), bool(context.attr("transA", 0))
    k = shape[0 if trans_b else 1] if shape else 0
    c = shape[1 if trans_b else 0] if shape else 0
    macs = prod(out) * c if out else 0
    if weight is None or shape is None or form_of(context, 1):
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


def _is_matrix(value: Array | None) -> bool:
    """Whether a constant is a matrix, perhaps with axes of size one in front."""
    return value is not None and value.ndim >= 2 and prod(value.shape[:-2]) == 1


def _bias_shape(node: Node, value: Callable[[str], Array | None]) -> tuple[int, ...] | None:
    left, right = (value(name) for name in node.inputs)
    if right is not None:
        return right.shape[-1:] if _is_matrix(right) else None
    return (left.shape[-2], 1) if left is not None and _is_matrix(left) else None


@rule("MatMul", operands="all", bias_behind=_bias_shape)
def matmul(context: OpContext) -> OpFacts:
    """MatMul by a stored matrix, on either side; a bias, if any, is the Add behind it."""
    x, out = context.known_shape(0), context.known_output()
    macs = prod(out) * x[-1] if out and x else 0
    left, right = (context.constant(position) for position in (0, 1))
    if why := form_of(context, 0 if right is None and left is not None else 1):
        return freeze(context, f"{describe(context.node)} {why}", macs=macs)
    if left is None and right is None:
        ranks = [0 if s is None else len(s) for s in context.shapes]
        if min(ranks) < 2:
            return freeze(context, f"{describe(context.node)} {COMPUTED}", macs=macs)
        (*lead, row, last), (*others, first, column) = ([None] * (max(ranks) - r) + [*range(r)] for r in ranks)
        return product(context, Operand(0, (*lead, row, last)), Operand(1, (*others, column, first)), macs)
    is_left = right is None
    weight = left if is_left else right
    if weight is None or not _is_matrix(weight):
        return freeze(context, f"{describe(context.node)} does not multiply by one stored matrix", macs=macs)
    source = 1 if is_left else 0
    shape = context.shapes[source]
    if shape is None:
        return freeze(context, f"{describe(context.node)} has an input of unknown rank", macs=macs)
    rank, channels = len(shape), -2 if is_left else -1
    outputs, inputs = weight.shape[::-1][:2] if not is_left else weight.shape[-2:]
    reads = None if rank < 2 else reads_of(context, axis=rank + channels, rank=rank, width=inputs, source=source)
    if reads is None:
        return freeze(context, f"{describe(context.node)} reads channels along another axis", macs=macs)
    writes, whole = context.fresh(outputs), max(rank, weight.ndim)
    # Rows do not come sample by sample where the weight brings axes to the front, or samples lie in columns.
    mixed = any(axis for axis in context.batched[source]) or weight.ndim > rank or (is_left and rank < 3)
    linear = Linear(
        RowOp(is_left, rows_first=not is_left, mixed=mixed, columns_out=is_left),
        weight=1 - source,
        weight_axes=(weight.ndim + channels, weight.ndim - 3 - channels),
        bias=None,
        reads=reads,
        writes=writes,
        source=source,
        bias_axes=(channels,),
    )
    return OpFacts((spread(writes, whole + channels, whole),), "reader", linear=linear, macs=macs)


@dataclass(frozen=True)
class Operand:
    """A computed operand of a product: input `position`, and its axes as (heads..., own positions, sum)."""

    position: int
    order: Order

    def labels(self, context: OpContext) -> Labels:
        """Its labels in this order."""
        labels = context.labels[self.position]
        if labels is None:
            return np.full((1,) * len(self.order), -1, dtype=np.int64)
        moved = np.transpose(labels, self.axes)
        return np.expand_dims(moved, [position for position, axis in enumerate(self.order) if axis is None])

    @property
    def axes(self) -> tuple[int, ...]:
        """The order without the axes that are new."""
        return tuple(axis for axis in self.order if axis is not None)


def product(context: OpContext, left: Operand, right: Operand, macs: int) -> OpFacts:
    """A product of two computed tensors, whose labels come out as (heads..., positions of left, of right)."""
    if not any(labels is not None and axes_of(labels) for labels in context.labels):
        return freeze(context, f"{describe(context.node)} {COMPUTED}", macs=macs)
    a, b = left.labels(context), right.labels(context)
    if a.shape[-1] > 1 or b.shape[-1] > 1:
        return _summed(context, (left, right), a, b, macs)
    b = np.swapaxes(b, -1, -2)
    both = all(labels is not None for labels in context.labels)
    if both and sum(size > 1 for size in np.broadcast_shapes(a.shape, b.shape)) != 1:
        return freeze(context, f"{describe(context.node)} multiplies channels by channels", macs=macs)
    return _passed(context, (left, right), a, b, macs)


def _summed(context: OpContext, sides: tuple[Operand, Operand], a: Labels, b: Labels, macs: int) -> OpFacts:
    """The channels are summed over: the same ones must go on both sides. Labels have the sum's axis last."""
    if a.shape[-1] != b.shape[-1] or a.shape[-2] > 1 or b.shape[-2] > 1:
        return freeze(
            context, f"{describe(context.node)} sums over the channels of one of its operands only", macs=macs
        )
    why = f"{describe(context.node)} multiplies its channels by some {MUST_STAY}"
    a, b = np.broadcast_arrays(a, b)
    left, right = sides
    sums = Bilinear((left.position, right.position), (tuple(left.order), tuple(right.order)), a, b)
    return OpFacts((None,), "linear", ties=(Tie(a, b, why),), bilinear=sums, scales=a.reshape(-1), macs=macs)


def _passed(context: OpContext, sides: tuple[Operand, Operand], a: Labels, b: Labels, macs: int) -> OpFacts:
    """The channels pass; on the axes of the heads they are tied to the other operand's, or must stay with them."""
    labels = np.broadcast_to(np.maximum(a, b), np.broadcast_shapes(a.shape, b.shape))
    why = f"{describe(context.node)} multiplies its channels by some {MUST_STAY}"
    ties = []
    for own, operand in zip((a, b), sides, strict=True):
        shape = context.shapes[operand.position] or ()
        heads = [operand.order[axis] for axis in axes_of(labels) if axis < labels.ndim - 2]
        if any(axis is not None and shape[axis] != 1 for axis in heads):
            ties.append(Tie(labels, np.broadcast_to(own, labels.shape), why))
    return OpFacts((labels,), "linear", ties=tuple(ties), scales=labels.reshape(-1), macs=macs)
