"""What the rules of layers have in common: sliding windows, blocks of channels, stored weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.numerics.arrays import namespace_of
from pcns_onnx.ops.facts import (
    MUST_STAY,
    ChannelCount,
    Labels,
    OpContext,
    OpFacts,
    PerChannelConstant,
    Tie,
    along,
    describe,
    freeze,
    spread,
)


@dataclass(frozen=True)
class WindowOp:
    """A kernel over any number of spatial axes; `block` is the one that this sees, None for all."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | None
    auto_pad: str
    conv_groups: int = 1
    block: int | None = None

    axis = 1

    @classmethod
    def of(cls, context: OpContext, kernel: Sequence[int], **more: Any) -> Self:
        """From the attributes of the node, and what is `more` than these."""
        auto_pad = _text(context.attr("auto_pad", b"NOTSET"))
        pads = context.attr("pads", None) if auto_pad == "NOTSET" else None
        return cls(
            kernel=tuple(kernel),
            strides=tuple(context.attr("strides", (1,) * len(kernel))),
            dilations=tuple(context.attr("dilations", (1,) * len(kernel))),
            pads=tuple(pads) if pads else None,
            auto_pad=auto_pad,
            conv_groups=int(context.attr("group", 1)),
            **more,
        )

    def part(self, block: int) -> Self:
        """One block of a grouped layer; an ungrouped one is its own only block."""
        return self if self.conv_groups == 1 else replace(self, block=block)

    @property
    def mixed(self) -> bool:
        """Rows come sample by sample."""
        return False

    @property
    def taps(self) -> int:
        """Kernel positions."""
        return prod(self.kernel)

    @property
    def layout(self) -> tuple[str, tuple[int, ...], int]:
        """The kind of layer, its kernel and blocks; strides, paddings and dilations are no matter of the weight."""
        return type(self).__name__, self.kernel, self.conv_groups

    def owners(self, reads: Labels) -> Labels:
        """Tap-major: all channels of the first tap, then of the second."""
        return np.tile(reads, self.taps)

    def grid(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Sizes of the output's spatial axes."""
        return self._out(x_shape[2:])

    def positions(self, x_shape: tuple[int, ...]) -> int:
        """Output positions per sample."""
        return prod(self._out(x_shape[2:]))

    def positions_of(self, y_shape: tuple[int, ...]) -> int:
        """Output positions per sample."""
        return prod(y_shape[2:])

    def places(self, x_shape: tuple[int, ...], at: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Flat input position that each tap reads at the output positions `at`, (P, taps); -1 where it reads none."""
        size = tuple(int(s) for s in x_shape[2:])
        out, pads = self._out(size), self._pads(size)
        corners = np.unravel_index(np.arange(prod(out)) if at is None else at, out)
        taps = np.unravel_index(np.arange(self.taps), self.kernel)
        where, inside = [], np.ones((), dtype=np.bool_)
        for axis, (corner, tap) in enumerate(zip(corners, taps, strict=True)):
            place = corner[:, None] * self.strides[axis] + tap * self.dilations[axis] - pads[axis]
            inside = inside & (place >= 0) & (place < size[axis])
            where.append(np.clip(place, 0, size[axis] - 1))
        return np.where(inside, np.ravel_multi_index(where, size), -1).astype(np.int64)

    def inputs(self, x: Any, at: NDArray[np.int64] | None) -> Any:
        """What the taps read (R, taps*C) of x (N, C, *size) at flat output positions, the same for all samples.

        Channels are moved last first, so that a patch is gathered as `taps` contiguous runs.
        """
        xp = namespace_of(x)
        x = self._own(x, 1)
        n, c = int(x.shape[0]), int(x.shape[1])
        rows = xp.reshape(xp.moveaxis(x, 1, -1), (n, -1, c))
        rows = xp.concat([rows, xp.zeros((n, 1, c), dtype=x.dtype)], axis=1)
        places = self.places(tuple(x.shape), at).reshape(-1)
        index = xp.asarray(np.where(places < 0, int(rows.shape[1]) - 1, places))
        return xp.reshape(xp.take(rows, index, axis=1), (-1, self.taps * c))

    def outputs(self, y: Any, at: NDArray[np.int64] | None) -> Any:
        """(R, K) of y (N, K, *out)."""
        xp, y = namespace_of(y), self._own(y, 1)
        n, k = int(y.shape[0]), int(y.shape[1])
        y = xp.reshape(y, (n, k, -1))
        if at is not None:
            y = xp.take(y, xp.asarray(at), axis=2)
        return xp.reshape(xp.permute_dims(y, (0, 2, 1)), (-1, k))

    def _own(self, array: Any, axis: int) -> Any:
        """The block's share of an axis."""
        if self.block is None:
            return array
        step = int(array.shape[axis]) // self.conv_groups
        share = slice(self.block * step, (self.block + 1) * step)
        return array[share, ...] if axis == 0 else array[:, share, ...]

    def _spans(self) -> tuple[int, ...]:
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def _out(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial sizes of the output for an input of `size`."""
        pads, half = self._pads(size), len(self.kernel)
        return tuple(
            (s + pads[i] + pads[i + half] - span) // stride + 1
            for i, (s, span, stride) in enumerate(zip(size, self._spans(), self.strides, strict=True))
        )

    def _pads(self, size: Sequence[int]) -> tuple[int, ...]:
        """Explicit (begin..., end...) padding; resolves auto_pad for an input of `size`."""
        if not self.auto_pad.startswith("SAME"):
            return self.pads or (0,) * (2 * len(self.kernel))
        total = [
            max((-(-s // stride) - 1) * stride + span - s, 0)
            for s, span, stride in zip(size, self._spans(), self.strides, strict=True)
        ]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        upper = self.auto_pad == "SAME_UPPER"
        return (*small, *large) if upper else (*large, *small)


def reads_of(context: OpContext, *, axis: int, rank: int, width: int, source: int = 0) -> Labels | None:
    """Labels of the `width` channels of an input, all -1 where it carries none; None if they lie elsewhere."""
    labels = context.labels[source]
    if labels is None:
        return np.full(width, -1, dtype=np.int64)
    vector = along(labels, axis, rank)
    return None if vector is None else np.broadcast_to(vector, (width,)).copy()


def unsolvable(context: OpContext) -> str:
    """Why the weight (input 1) or the bias (input 2) of a layer cannot be solved for; '' if they can."""
    if context.constant(1) is None or not context.writable(context.node.inputs[1]):
        return form_of(context, 1) or "has a weight that is computed, not stored"
    if len(context.node.inputs) > 2 and context.node.inputs[2] and context.constant(2) is None:
        return "has a bias that is computed, not stored"
    return ""


def form_of(context: OpContext, position: int) -> str:
    """What is special about how a weight is stored; '' if nothing is."""
    name = context.node.inputs[position]
    if context.sparse(name):
        return "has a sparse weight"
    maker = context.producer(name)
    if maker is not None and maker.op == "DequantizeLinear" and context.value(name) is None:
        return "has a quantised weight, and quantising comes after shrinking"
    if not context.writable(name):
        return (
            f"has a weight that {describe(maker)} makes of integers: as floats it would take more room" if maker else ""
        )
    return ""


def alike(labels: Labels, blocks: int, context: OpContext) -> tuple[Tie, ...]:
    """The same places of all blocks come and go together."""
    if blocks == 1:
        return ()
    rows = labels.reshape(blocks, -1)
    why = f"{describe(context.node)} has blocks that must stay equal"
    return (Tie(np.broadcast_to(rows[:1], rows.shape), rows, why),)


def whole_blocks(context: OpContext, reads: Labels, width: int, macs: int) -> OpFacts:
    """A grouped layer that loses whole blocks: `reads` (blocks, channels), `width` outputs of each."""
    if context.labels[0] is None:
        is_input = context.producer(context.node.inputs[0]) is None
        what = (
            "filters the model's own channels one by one" if is_input else f"filters, one by one, channels {MUST_STAY}"
        )
        return freeze(context, f"{describe(context.node)} {what}", macs=macs)
    why = f"{describe(context.node)} takes these channels as one block"
    first, rank = reads[:, :1], len(context.shapes[1] or ())
    outputs = np.repeat(first[:, 0], width)
    rows = np.broadcast_to(first, reads.shape).reshape(-1) if context.node.op == "ConvTranspose" else outputs
    per_channel = [PerChannelConstant(1, spread(rows, 0, rank))]
    if len(context.node.inputs) > 2 and context.node.inputs[2]:
        per_channel.append(PerChannelConstant(2, outputs))
    return OpFacts(
        (spread(outputs, 1, rank),),
        "channelwise",
        per_channel=tuple(per_channel),
        sizes=(ChannelCount(context.node.key, "group", 0, first[:, 0]),),
        ties=(Tie(np.broadcast_to(first, reads.shape), reads, why),) if reads.shape[1] > 1 else (),
        scales=first[:, 0],
        macs=macs,
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
