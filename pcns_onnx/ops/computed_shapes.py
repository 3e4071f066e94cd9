"""Shapes that the model computes: where each of their numbers comes from, and where it goes.

Exporters write the target shape of a Reshape or a Resize as small pieces: Shape, Gather, Unsqueeze, Concat.
What only moves numbers about is looked through. A number of channels may come that way from one tensor's shape
to another tensor's axis with the same channels; one that enters anything else must stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from pcns_onnx.graph import Node
from pcns_onnx.ops.facts import ChannelCount, Frozen, Labels, OpContext, describe

SHAPED = {"Reshape": 1, "Expand": 1, "Resize": 3, "ConstantOfShape": 0}
"""Operators whose rules ask `target` where the numbers of a target shape come from, and the input that holds it."""
COUNTING = frozenset({
    "NonMaxSuppression", "NonZero", "Unique", "Compress", "StringSplit", "BeamSearch", "GreedySearch", "Sampling",
    "WhisperBeamSearch",
})  # fmt: skip
"""Operators that put out as many rows as they find in the values that they read."""
SIZE_INPUTS: Mapping[str, tuple[int, ...]] = {
    "Reshape": (1,), "Expand": (1,), "ConstantOfShape": (0,), "Tile": (1,), "Slice": (1, 2, 3, 4), "Resize": (2, 3),
    "Upsample": (1,), "TopK": (1,), "OneHot": (1,), "Range": (0, 1, 2), "Pad": (1,), "Split": (1,),
    "CenterCropPad": (1,),
    "MaxUnpool": (2,), "AffineGrid": (1,), "DFT": (1,), "STFT": (1, 3), "Col2Im": (1, 2), "SplitToSequence": (1,),
    "HannWindow": (0,), "HammingWindow": (0,), "BlackmanWindow": (0,), "MelWeightMatrix": (0, 1, 2),
}  # fmt: skip
"""Operators whose output has the shape that numbers in these inputs say."""
_MOVING = ("Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten")
_INTEGERS = (6, 7)


@dataclass(frozen=True)
class Stored:
    """A number that is stored; `plain`: behind nothing but concatenations."""

    value: float
    plain: bool


@dataclass(frozen=True)
class Dim:
    """The size of an axis of a tensor."""

    tensor: str
    axis: int


def origin(context: OpContext, place: int | str, element: int) -> Stored | Dim | None:
    """Where number `element` of an input or attribute of the node comes from; None if it is computed otherwise."""
    node, plain = context.node, True
    if isinstance(place, str):
        return Stored(node.attrs[place][element], plain) if place in node.attrs else None
    while place < len(node.inputs):
        name = node.inputs[place]
        value = context.value(name)
        if value is not None:
            flat = value.reshape(-1)
            return Stored(flat[element].item(), plain) if element < flat.size else None
        maker = context.producer(name)
        if maker is None or maker.domain:
            return None
        if maker.op == "Shape":
            axes = measured(context, maker)
            return None if axes is None else Dim(maker.inputs[0], axes[element])
        sources = _sources(context, maker)
        if sources is None or element >= len(sources):
            return None
        plain = plain and maker.op not in ("Gather", "Slice")
        node, (place, element) = maker, sources[element]
    return None


def measured(context: OpContext, node: Node) -> list[int] | None:
    """The axes whose sizes a Shape puts out; None where the rank is not known."""
    shape = context.size(node.inputs[0])
    axes = None if shape is None else list(range(len(shape)))
    return None if axes is None else axes[node.attrs.get("start", 0) : node.attrs.get("end", None)]


def is_followed(context: OpContext, name: str, element: int) -> bool:
    """Whether number `element` of tensor `name` ends in target shapes only, all of whose numbers are looked at."""
    if context.leaves(name):
        return False
    for node in context.readers(name):
        positions = [position for position, source in enumerate(node.inputs) if source == name]
        if node.domain or not positions:
            return False
        if positions == [SHAPED.get(node.op)] and _count(context, name) is not None:
            continue
        sources = _sources(context, node)
        if sources is None or (node.op != "Concat" and positions != [0]):
            return False
        for moved, (position, taken) in enumerate(sources):
            if position in positions and taken == element and not is_followed(context, node.outputs[0], moved):
                return False
    return True


def target(
    context: OpContext, place: int | str, labels: Labels | None, axes: Sequence[int] | None = None
) -> tuple[tuple[ChannelCount, ...], tuple[Frozen, ...]]:
    """What a target shape says of the output's `labels`: sizes to keep in step, and what must stay.

    It stands at an input or attribute; its numbers belong to `axes` of the output, the last ones if not given.
    """
    sizes, frozen = list[ChannelCount](), list[Frozen]()
    count = (
        len(context.node.attrs[place]) if isinstance(place, str) else _count(context, context.node.inputs[place]) or 0
    )
    for element in range(count):
        axis = element - count if axes is None else axes[element]
        channels = counted(labels, axis)
        source = origin(context, place, element)
        if isinstance(source, Dim):
            source_channels = counted(context.carried(source.tensor), source.axis)
            if not _same(channels, source_channels):
                why = f"the number of channels is read by {describe(context.node)}"
                frozen += [Frozen(side, why) for side in (channels, source_channels) if side is not None]
        elif channels is not None and not _stands_for_itself(context, source, element, channels):
            why = _refusal(source, len(channels))
            if why or source is None:
                frozen.append(Frozen(channels, f"{describe(context.node)} {why}"))
            else:
                sizes.append(ChannelCount(context.node.key, place, element, channels))
    return tuple(sizes), tuple(frozen)


def counted(labels: Labels | None, axis: int) -> Labels | None:
    """The channels along an axis, one after the other; None where they do not vary along it."""
    if labels is None or labels.shape[axis] < 2:
        return None
    vector: Labels = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)[:, 0]
    return vector


@dataclass(frozen=True)
class SliceBounds:
    """What a Slice takes: `starts`, `ends` and `steps` along `axes`; None where they are computed.

    `places` are where starts and ends are stored.
    """

    axes: list[int] | None
    starts: list[int] | None
    ends: list[int] | None
    steps: list[int] | None
    places: tuple[int | str, int | str]


def slice_bounds(context: OpContext, node: Node) -> SliceBounds:
    """What a Slice takes, from attributes or inputs."""
    if len(node.inputs) == 1:
        starts, ends = list(node.attrs["starts"]), list(node.attrs["ends"])
        axes = list(node.attrs.get("axes", range(len(starts))))
        return SliceBounds(axes, starts, ends, [1] * len(starts), ("starts", "ends"))
    count = _count(context, node.inputs[1])
    bounds = list[list[int] | None]()
    for place, default in enumerate((None, None, None if count is None else range(count), [1] * (count or 0)), start=1):
        name = node.inputs[place] if place < len(node.inputs) else ""
        value = context.value(name) if name else default
        bounds.append(None if value is None else [int(v) for v in np.asarray(value).reshape(-1)])
    return SliceBounds(bounds[2], bounds[0], bounds[1], bounds[3], (1, 2))


def _refusal(source: Stored | None, count: int) -> str:
    """Why a number cannot be kept in step with the channels that it counts; empty if it can."""
    if source is None:
        return "computes the size of the channel axis"
    if source.value != count:
        return "changes the number of channels"
    return "" if source.plain else "computes the size of the channel axis"


def _stands_for_itself(context: OpContext, source: Stored | None, element: int, channels: Labels) -> bool:
    """Whether a stored number says that the axis is as large as the input's, or as what is left."""
    if source is None or context.node.op not in ("Reshape", "Expand"):
        return False
    if context.node.op == "Expand":
        return source.value == 1
    copies = source.value == 0 and not context.attr("allowzero", 0)
    before = context.labels[0]
    is_copy = copies and before is not None and element < before.ndim and _same(counted(before, element), channels)
    return is_copy or source.value == -1


def _same(a: Labels | None, b: Labels | None) -> bool:
    if a is None or b is None:
        return a is b
    return np.array_equal(np.sort(a), np.sort(b))


def _count(context: OpContext, name: str) -> int | None:
    """How many numbers a tensor holds."""
    shape = context.size(name)
    return None if shape is None or None in shape else prod(d or 0 for d in shape)


def _sources(context: OpContext, node: Node) -> list[tuple[int, int]] | None:
    """(input, element) of each number that a node puts out; None if it does more than move numbers about."""
    if node.domain:
        return None
    counts = [_count(context, name) for name in node.inputs]
    if node.op == "Concat" and None not in counts:
        return [(place, element) for place, count in enumerate(counts) for element in range(count or 0)]
    if not counts or counts[0] is None:
        return None
    whole = range(counts[0])
    if node.op in _MOVING or (node.op == "Cast" and node.attrs["to"] in _INTEGERS):
        return [(0, element) for element in whole]
    if node.op == "Gather" and (indices := context.value(node.inputs[1])) is not None:
        return [(0, whole[int(i)]) for i in indices.reshape(-1)]
    if node.op == "Slice":
        taken = slice_bounds(context, node)
        starts, ends, steps = taken.starts or [], taken.ends or [], taken.steps or []
        if taken.axes in ([0], [-1]) and starts and ends and steps:
            return [(0, element) for element in whole[slice(starts[0], ends[0], steps[0])]]
    return None
