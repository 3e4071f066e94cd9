"""Data movement: reshaping, transposing, repeating, and the shapes that come of it.

Movement acts on labels as it acts on data. A Reshape is first cut into the smallest blocks of
axes whose sizes match, so only axes that really merge or split are expanded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from pcns_onnx.graph import Node
from pcns_onnx.graph.protobuf import array_of
from pcns_onnx.ops.attention.kernels import takes_whole_heads
from pcns_onnx.ops.computed_shapes import Dim, Stored, counted, is_followed, measured, origin, target
from pcns_onnx.ops.elementwise import BINARY, UNARY
from pcns_onnx.ops.facts import (
    ImpliedAxes,
    Labels,
    OpContext,
    OpFacts,
    PerChannelConstant,
    Tie,
    along,
    axes_of,
    describe,
    freeze,
    spread,
)
from pcns_onnx.ops.normalization import is_group_norm
from pcns_onnx.ops.recurrent import GATES
from pcns_onnx.ops.registry import rule


@rule("Flatten")
def flatten(context: OpContext) -> OpFacts:
    """A channel becomes H*W columns."""
    return _moved(context)


@rule("Unsqueeze")
def unsqueeze(context: OpContext) -> OpFacts:
    """Axes of size one come."""
    return _moved(context)


@rule("Squeeze")
def squeeze(context: OpContext) -> OpFacts:
    """Axes of size one go: where none are named, one that has a single channel left must not go with them."""
    facts, labels, before = _moved(context), context.labels[0], context.known_shape(0)
    inputs = context.node.inputs
    if labels is None or before is None or "axes" in context.node.attrs or (len(inputs) > 1 and inputs[1]):
        return facts
    axes = tuple(axis for axis, size in enumerate(before) if size == 1)
    place: int | str = 1 if context.opset >= 13 else "axes"
    vectors = [counted(labels, axis) for axis in axes_of(labels)]
    implied = tuple(ImpliedAxes(context.node.key, place, axes, v) for v in vectors if v is not None)
    return facts if facts.frozen else replace(facts, implied_axes=implied)


@rule("Transpose")
def transpose(context: OpContext) -> OpFacts:
    """Axes change places."""
    labels = context.labels[0]
    if labels is None:
        return OpFacts((None,))
    order = context.attr("perm", None) or tuple(reversed(range(labels.ndim)))
    return OpFacts((np.transpose(labels, order),), "move")


@rule("Reshape")
def reshape(context: OpContext) -> OpFacts:
    """Static or exporter-style; a stored size of an axis that carries channels is kept in step.

    Where channels are split over several axes they can only go in whole slices of one of these: that which
    a Conv or a pool further on takes for its channels (Gemm, view, ConvTranspose; a pixel shuffle), else
    the last one (the same place in every group of a shuffle, the same dimension of every head),
    or the one before where whole heads are to go, or the groups that a norm takes together.
    """
    facts = _moved(context)
    place: int | str = 1 if len(context.node.inputs) > 1 else "shape"
    labels = facts.outputs[0]
    if labels is None:
        return replace(facts, frozen=(*facts.frozen, *target(context, place, None)[1]))
    axes = axes_of(labels)
    slices, ties = labels, tuple[Tie, ...]()
    if len(axes) > 1:
        is_heads = axes[-1] == labels.ndim - 1 and takes_whole_heads(context)
        read = 1 if 1 in axes and is_group_norm(context) else _axis_that_is_read(context, labels.ndim, axes)
        kept = read if read is not None else axes[-2] if is_heads else axes[-1]
        for axis in axes:
            slices = slices if axis == kept else np.take(slices, [0], axis=axis)
        why = f"{describe(context.node)} splits its channels over several axes"
        ties = (Tie(np.broadcast_to(slices, labels.shape), labels, why),)
    sizes, frozen = target(context, place, slices)
    return OpFacts((labels,), "move", sizes=sizes, ties=ties, frozen=frozen)


_CHANNELS_FIRST = (
    "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "DepthToSpace", "GlobalAveragePool",
    "GlobalMaxPool", "InstanceNormalization", "LRN", "LpPool", "MaxPool", "SpaceToDepth",
)  # fmt: skip
"""Operators whose channels lie on axis 1."""
_KEEPING_AXES = (*UNARY, *BINARY, "Concat", "Dropout", "Identity", "Neg", "Pad", "Resize", "Slice", "Split", "Upsample")


def _axis_that_is_read(context: OpContext, rank: int, axes: tuple[int, ...]) -> int | None:
    """Which of these axes of a Reshape's output becomes the channels of operators further on; None if not one does."""
    pending = [(name, tuple(frozenset({axis}) for axis in range(rank))) for name in context.node.outputs]
    visited, answers = set[str](), set[frozenset[int]]()
    while pending:
        name, made_of = pending.pop()  # by axis of this tensor, the axes of the Reshape's output that are in it
        if name in visited:
            continue
        visited.add(name)
        for reader in context.readers(name):
            if reader.domain or not reader.inputs:
                continue
            if reader.op in _CHANNELS_FIRST and len(made_of) > 2:
                answers.add(made_of[1].intersection(axes))
            elif moved := _moved_axes(context, reader, name, made_of):
                pending += [(output, moved) for output in reader.outputs if output]
    answer = answers.pop() if len(answers) == 1 else frozenset[int]()
    return next(iter(answer)) if len(answer) == 1 else None


def _moved_axes(
    context: OpContext, node: Node, name: str, made_of: tuple[frozenset[int], ...]
) -> tuple[frozenset[int], ...] | None:
    """What the axes of a node's output are made of, None where that is not followed."""
    before, after = (context.size(tensor) for tensor in (name, node.outputs[0]))
    if before is None or after is None:
        return None
    if node.op == "Transpose":
        return tuple(made_of[axis] for axis in node.attrs.get("perm", None) or reversed(range(len(made_of))))
    if node.op in ("Flatten", "Reshape", "Squeeze", "Unsqueeze") and None not in (*before, *after):
        blocks = _blocks(tuple(d or 0 for d in before), tuple(d or 0 for d in after))
        by_block = {block: frozenset[int]() for block in blocks[1]}
        for sources, block in zip(made_of, blocks[0], strict=True):
            by_block[block] = by_block.get(block, frozenset()) | sources
        return tuple(by_block[block] for block in blocks[1])
    return made_of if node.op in _KEEPING_AXES and len(after) == len(before) else None


@rule("Expand")
def expand_op(context: OpContext) -> OpFacts:
    """Positions are repeated; a stored number of channels is kept in step."""
    labels, rank = context.labels[0], len(context.outputs[0] or ())
    stored = _stored_state(context) if labels is None else None
    labels = stored if stored is not None else labels
    if labels is None or not axes_of(labels) or rank < labels.ndim:
        facts = freeze(context, f"{describe(context.node)} may spread one channel over many")
        return replace(facts, frozen=(*facts.frozen, *target(context, 1, None)[1]))
    labels = labels.reshape((1,) * (rank - labels.ndim) + labels.shape)
    sizes, frozen = target(context, 1, labels)
    own = () if stored is None else (PerChannelConstant(0, stored),)
    return OpFacts((labels,), "linear", sizes=sizes, frozen=frozen, per_channel=own)


def _stored_state(context: OpContext) -> Labels | None:
    """Labels of a stored state (D, 1, H) that is repeated for every sample, for recurrent layers to start from."""
    state, output = context.constant(0), context.node.outputs[0]
    readers = context.readers(output)
    if state is None or state.ndim != 3 or state.shape[1] != 1 or state.shape[2] == 1 or not state.any():
        return None
    if (
        not readers
        or context.leaves(output)
        or not all(r.op in GATES and not r.domain and output in r.inputs[5:7] for r in readers)
    ):
        return None
    return context.fresh(state.size).reshape(state.shape)


@rule("ConstantOfShape")
def constant_of_shape(context: OpContext) -> OpFacts:
    """One number everywhere: as many channels as a tensor has whose size it takes, or as cells and layers behind it."""
    shape, count = context.outputs[0], context.size(context.node.inputs[0])
    if shape is None or count != (len(shape),):
        return OpFacts((None,))
    sizes = [origin(context, 0, axis) for axis in range(len(shape))]
    taken = {
        axis: vector
        for axis, size in enumerate(sizes)
        if isinstance(size, Dim) and (vector := counted(context.carried(size.tensor), size.axis)) is not None
    }
    if not taken and _is_first_state(context, sizes):
        taken = {1: context.fresh(shape[1] or 0)}
    labels = None
    if len(taken) == 1:
        ((axis, vector),) = taken.items()
        labels = spread(vector, axis, len(shape))
    numbers, frozen = target(context, 0, labels)
    value = context.attr("value", None)
    is_zero = value is None or not np.any(array_of(value))
    return OpFacts((labels,), "linear" if is_zero else "channelwise", sizes=numbers, frozen=frozen)


def _is_first_state(context: OpContext, sizes: Sequence[Dim | Stored | None]) -> bool:
    """Whether (N, H) numbers are what a cell that is written out over its steps starts from: a layer, or arithmetic
    with what layers make, reads each of them."""
    shape, output = context.outputs[0] or (), context.node.outputs[0]
    width = sizes[1] if len(sizes) == 2 else None
    if not isinstance(width, Stored) or not width.plain or width.value != shape[1] or context.leaves(output):
        return False
    readers = context.readers(output)
    layers = [reader for reader in readers if reader.op in ("Gemm", "MatMul") and reader.inputs.index(output) == 0]
    return bool(layers) and all(reader in layers or reader.op in ("Add", "Sub", "Mul") for reader in readers)


@rule("Tile")
def tile(context: OpContext) -> OpFacts:
    """Positions are repeated, or whole sets of channels."""
    labels = context.labels[0]
    if labels is None:
        return OpFacts((None,))
    repeats = {axis: origin(context, 1, axis) for axis in axes_of(labels)}
    if not repeats or len(context.node.inputs) > 2:
        return freeze(context, f"{describe(context.node)} may spread one channel over many")
    for axis, source in repeats.items():
        if not isinstance(source, Stored) or source.value < 1:
            return freeze(context, f"{describe(context.node)} computes how often it repeats its channels")
        labels = np.concatenate([labels] * int(source.value), axis=axis)
    is_plain = all(isinstance(s, Stored) and s.value == 1 for s in repeats.values())
    return OpFacts((labels,), "linear" if is_plain else "channelwise")


@rule("DepthToSpace", "SpaceToDepth")
def depth_to_space(context: OpContext) -> OpFacts:
    """Channels become positions: those that stand side by side go together. Or positions become channels."""
    labels, blocks = context.labels[0], int(context.attr("blocksize", 1)) ** 2
    if labels is None:
        return OpFacts((None,))
    vector = along(labels, 1, 4)
    if vector is None or len(vector) == 1:
        return freeze(context, f"{describe(context.node)} takes its channels from another axis")
    if context.node.op == "SpaceToDepth":
        return OpFacts((spread(np.tile(vector, blocks), 1, 4),), "channelwise")
    is_last = context.attr("mode", b"DCR") == b"CRD"
    together = vector.reshape(-1, blocks).T if is_last else vector.reshape(blocks, -1)
    why = f"{describe(context.node)} puts these channels side by side"
    ties = (Tie(np.broadcast_to(together[:1], together.shape), together, why),)
    return OpFacts((spread(together[0], 1, 4),), "channelwise", ties=ties)


@rule("Shape")
def shape(context: OpContext) -> OpFacts:
    """Harmless where the number only becomes that of a tensor with the same channels (see `computed_shapes`)."""
    labels = context.labels[0]
    if labels is None:
        return OpFacts((None,))
    axes, name = measured(context, context.node), context.node.outputs[0]
    if axes is None or any(labels.shape[a] > 1 and not is_followed(context, name, i) for i, a in enumerate(axes)):
        return freeze(context, f"the number of channels is read by {describe(context.node)}")
    return OpFacts((None,), "move")


def _moved(context: OpContext) -> OpFacts:
    labels = context.labels[0]
    if labels is None:
        return OpFacts((None,) * len(context.node.outputs))
    before, after = context.known_shape(0), context.known_output()
    if before is None or after is None:
        return freeze(context, f"{describe(context.node)} has a shape that cannot be inferred")
    moved = reshape_labels(labels, before, after)
    if moved is None:
        return freeze(context, f"{describe(context.node)} regroups channels in a way that is not understood")
    for axis in axes_of(moved):
        first = np.take(moved, [0], axis=axis)
        moved = first if (moved == first).all() else moved
    return OpFacts((moved,), "move")


def reshape_labels(labels: Labels, before: tuple[int, ...], after: tuple[int, ...]) -> Labels | None:
    """Labels of a tensor reshaped from `before` to `after`; None if the sizes do not match."""
    if prod(before) != prod(after) or 0 in before:
        return None
    block_before, block_after = _blocks(before, after)
    varying = {int(block_before[axis]) for axis in axes_of(labels)}
    expanded = [size if block in varying else 1 for size, block in zip(before, block_before, strict=True)]
    shape = [size if block in varying else 1 for size, block in zip(after, block_after, strict=True)]
    return np.broadcast_to(labels, expanded).reshape(shape)


def _blocks(before: tuple[int, ...], after: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """By axis, the number of the block that it is in: the smallest runs of axes whose sizes match."""
    ends_before, ends_after = np.cumprod(before), np.cumprod(after)
    cuts = sorted({*ends_before.tolist()} & {*ends_after.tolist()} - {1}) or [1]
    return np.searchsorted(cuts, ends_before).tolist(), np.searchsorted(cuts, ends_after).tolist()
