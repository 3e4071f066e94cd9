"""Joining and parting: Concat puts the channels of several layers into one tensor, the others take some of them.

Labels are joined and taken as data is. Where tensors are joined along another axis than the channels', these
are tied. Numbers that say where to cut count the channels in front of the cut; places are looked up anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pcns_onnx.ops.computed_shapes import counted, slice_bounds
from pcns_onnx.ops.facts import (
    MUST_STAY,
    ChannelCount,
    ChannelIndex,
    Frozen,
    Labels,
    OpContext,
    OpFacts,
    PerChannelConstant,
    Tie,
    axes_of,
    describe,
    freeze,
    spread,
)
from pcns_onnx.ops.registry import rule


@rule("Concat", operands="all")
def concat(context: OpContext) -> OpFacts:
    """Channels one after the other, or, along another axis, tied."""
    carried = [labels for labels in context.labels if labels is not None]
    if not carried:
        return OpFacts((None,))
    rank = carried[0].ndim
    axis = context.attr("axis", 1) % rank
    coupled = tuple(carried) if len(carried) > 1 else ()
    if any(a != axis for labels in carried for a in axes_of(labels)):
        if context.given_back(context.node.outputs[0]) and (rows := _rows(context, axis)) is not None:
            return OpFacts((rows,), "move")
        if any(labels.shape[axis] > 1 for labels in carried):
            return freeze(context, f"{describe(context.node)} joins channels that lie on several axes")
        return _side_by_side(context, carried, coupled)
    pieces = []
    for labels, shape in zip(context.labels, context.shapes, strict=True):
        vector = np.full(1, -1, dtype=np.int64) if labels is None else labels.reshape(-1)
        size = len(vector) if len(vector) > 1 else None if shape is None else shape[axis]
        if size is None:
            return freeze(context, f"{describe(context.node)} joins a tensor of unknown size to its channels")
        pieces.append(np.broadcast_to(vector, (size,)))
    return OpFacts((spread(np.concatenate(pieces), axis, rank),), "move", coupled=coupled)


def _rows(context: OpContext, axis: int) -> Labels | None:
    """States of several layers one behind the other, each with channels of its own; None where a size is not known."""
    carried = [labels for labels in context.labels if labels is not None]
    whole = np.broadcast_shapes(*(np.take(labels, [0], axis=axis).shape for labels in carried))
    rows = []
    for labels, shape in zip(context.labels, context.shapes, strict=True):
        if shape is None or (size := shape[axis]) is None:
            return None
        own = np.full(1, -1, dtype=np.int64) if labels is None else labels
        rows.append(np.broadcast_to(own, (*whole[:axis], size, *whole[axis + 1 :])))
    return np.concatenate(rows, axis=axis)


def _side_by_side(context: OpContext, carried: Sequence[Labels], coupled: tuple[Labels, ...]) -> OpFacts:
    """Tensors with the same channels; a constant one is sliced along, any other without channels holds them fast."""
    whole = np.broadcast_shapes(*(labels.shape for labels in carried))
    rows = [np.broadcast_to(labels, whole) for labels in carried]
    labels = np.max(np.stack(rows), axis=0)
    why = f"{describe(context.node)} joins its channels with a tensor's {MUST_STAY}"
    others = [position for position, channels in enumerate(context.labels) if channels is None]
    is_fixed = any(context.constant(position) is None for position in others)
    return OpFacts(
        (labels,),
        "channelwise" if others else "move",
        per_channel=() if is_fixed else tuple(PerChannelConstant(position, labels) for position in others),
        ties=tuple(Tie(labels, row, why) for row in rows if not np.array_equal(row, labels)),
        coupled=coupled,
        frozen=(Frozen(labels, why),) if is_fixed else (),
    )


@rule("Split")
def split_op(context: OpContext) -> OpFacts:
    """Pieces of the channels, their sizes written out; or all of them in every output."""
    labels, count = context.labels[0], len(context.node.outputs)
    if labels is None:
        return OpFacts((None,) * count)
    axis = context.attr("axis", 0) % labels.ndim
    vector = counted(labels, axis)
    if vector is None:
        return OpFacts((labels,) * count, "move")
    sizes = _piece_sizes(context, len(vector), count)
    if sizes is None:
        return freeze(context, f"{describe(context.node)} computes how many channels it takes")
    if _are_directions(labels):
        return OpFacts(tuple(_some(piece) for piece in np.split(labels, np.cumsum(sizes)[:-1], axis=axis)), "select")
    place: int | str = 1 if context.opset >= 13 or len(context.node.inputs) > 1 else "split"
    cuts = np.cumsum(sizes)[:-1]
    outputs = tuple(_some(piece) for piece in np.split(labels, cuts, axis=axis))
    counts = np.split(vector, cuts)
    facts = (ChannelCount(context.node.key, place, i, piece, replaces="num_outputs") for i, piece in enumerate(counts))
    return OpFacts(outputs, "select", sizes=tuple(facts))


def _piece_sizes(context: OpContext, width: int, count: int) -> list[int] | None:
    """Sizes of the pieces, equal ones (the last may be smaller) if the model says nothing; None: computed."""
    if len(context.node.inputs) > 1 and context.node.inputs[1]:
        stored = context.constant(1)
        return None if stored is None else [int(size) for size in stored]
    sizes = context.attr("split", None)
    chunk = -(-width // count)
    return list(sizes) if sizes else [max(min(chunk, width - chunk * i), 0) for i in range(count)]


@rule("Slice")
def cut(context: OpContext) -> OpFacts:
    """A run of channels, every n-th one, or all in reverse; along other axes all of them."""
    labels = context.labels[0]
    if labels is None:
        return OpFacts((None,))
    taken = slice_bounds(context, context.node)
    touched = set(axes_of(labels)) if taken.axes is None else {a % labels.ndim for a in taken.axes} & {*axes_of(labels)}
    if not touched:
        return OpFacts((labels,), "move")
    if taken.axes is None or taken.starts is None or taken.ends is None or taken.steps is None:
        return freeze(context, f"{describe(context.node)} computes which channels it takes")
    sizes, ties = list[ChannelCount](), list[Tie]()
    for i, (axis, step) in enumerate(zip((a % labels.ndim for a in taken.axes), taken.steps, strict=True)):
        vector = counted(labels, axis)
        if vector is None:
            continue
        width = len(vector)
        start, end, _ = slice(taken.starts[i], taken.ends[i], step).indices(width)
        if _are_directions(labels):
            labels = np.take(labels, np.arange(width)[slice(start, end if end >= 0 else None, step)], axis=axis)
            continue
        if step < 0:
            if (step, start, end) != (-1, width - 1, -1):
                return freeze(context, f"{describe(context.node)} takes some of its channels backwards")
        else:
            for place, literal, at in zip(taken.places, (taken.starts[i], taken.ends[i]), (start, end), strict=True):
                if at and -width <= literal <= width:
                    sizes.append(
                        ChannelCount(context.node.key, place, i, vector[:at], along=vector if literal < 0 else None)
                    )
            ties += _strides(context, vector[start:], step)
        labels = np.take(labels, np.arange(width)[slice(start, None if end < 0 else end, step)], axis=axis)
    return OpFacts((_some(labels),), "select", sizes=tuple(sizes), ties=tuple(ties))


def _strides(context: OpContext, vector: Labels, step: int) -> list[Tie]:
    """Where every n-th channel is taken, n of them go together."""
    why = f"{describe(context.node)} takes every {step}th of these channels"
    first = np.repeat(vector[::step], step)[: len(vector)]
    return [Tie(first, vector, why)] if step > 1 else []


@rule("Gather")
def gather(context: OpContext) -> OpFacts:
    """Channels at stored places; along another axis all of them."""
    labels, indices = context.labels[0], context.constant(1)
    if labels is None:
        return OpFacts((None,))
    axis = context.attr("axis", 0) % labels.ndim
    vector = counted(labels, axis)
    shape = context.shapes[1]
    if vector is None:
        if shape is None:
            return freeze(context, f"{describe(context.node)} has places of unknown rank")
        head, tail = labels.shape[:axis], labels.shape[axis + 1 :]
        return OpFacts((labels.reshape((*head, *(1,) * len(shape), *tail)),), "move")
    if indices is None or indices.ndim > 1:
        return freeze(context, f"{describe(context.node)} takes channels at places that are computed or form a table")
    taken = np.take(labels, indices, axis=axis)
    if indices.ndim == 0 and axes_of(taken):
        return OpFacts((_some(taken),), "move")
    if _are_directions(labels):
        return OpFacts((_some(taken),), "move")
    channel_indices = (ChannelIndex(context.node.key, 1, vector),)
    if indices.ndim == 0:
        why = f"{describe(context.node)} takes a single channel"
        return OpFacts((None,), "select", channel_indices=channel_indices, frozen=(Frozen(taken, why),))
    return OpFacts((_some(taken),), "select", channel_indices=channel_indices)


def _are_directions(labels: Labels) -> bool:
    """Whether channels lie on two axes, as the units of a recurrent layer's directions do: whole ones are taken."""
    return len(axes_of(labels)) > 1


def _some(labels: Labels) -> Labels | None:
    """Labels of a part; None if it holds no channels of a layer."""
    return labels if labels.size and labels.max() >= 0 else None
