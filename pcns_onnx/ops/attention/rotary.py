"""Rotary embedding: channels i and i + r/2 of every head (or 2i and 2i + 1) are rotated by an angle per position.

A pair is one element: where the angles are stored, pairs go with their columns of the tables, the same in all heads.
Whole heads pass in any case. Of a head only the first r channels are rotated, all where r is not given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.ops.attention.kernels import ONNXRUNTIMES, angles_of, has_stored_angles, takes_whole_heads
from pcns_onnx.ops.facts import ChannelCount, Labels, OpContext, OpFacts, PerChannelConstant, Tie, describe, freeze
from pcns_onnx.ops.registry import rule


@rule("RotaryEmbedding")
@rule("RotaryEmbedding", domain=ONNXRUNTIMES)
def rotary_embedding(context: OpContext) -> OpFacts:
    """Of three axes with the heads side by side, or of four with the heads on the second."""
    labels, form = context.labels[0], _Form.of(context)
    if labels is None:
        return OpFacts((None,))
    if form is None:
        return freeze(context, f"{describe(context.node)} turns heads of a size that is not known")
    by_head = form.by_head(labels)
    counts = []
    if context.attr("num_heads", 0):
        counts.append(ChannelCount(context.node.key, "num_heads", 0, by_head[:, 0]))
    if takes_whole_heads(context):
        return OpFacts((labels,), "channelwise", sizes=tuple(counts) if form.rank == 3 else ())
    if form.rank == 4 and labels.shape[-1] == 1:  # they are whole heads already
        return OpFacts((labels,), "channelwise")
    if not has_stored_angles(context, context.node):
        why = "turns its channels in pairs, by angles that are computed: --heads whole takes whole heads"
        return freeze(context, f"{describe(context.node)} {why}")
    pairs = form.pairs
    first, tied = by_head[0].copy(), by_head
    first[pairs[1]] = first[pairs[0]]
    why = f"{describe(context.node)} turns its channels in pairs"
    ties = (Tie(np.broadcast_to(first, tied.shape), tied, why),)
    tables = [_table(context, place, by_head[0, pairs[0]]) for place in angles_of(context.node)]
    if any(table is None for table in tables):
        return freeze(context, f"{describe(context.node)} has tables of angles that are not as wide as its heads")
    sizes = tuple[ChannelCount, ...]()
    if context.attr("rotary_embedding_dim", 0):
        sizes = (ChannelCount(context.node.key, "rotary_embedding_dim", 0, by_head[0, : form.rotary_width]),)
    return OpFacts(
        (labels,),
        "channelwise",
        per_channel=tuple(table for table in tables if table is not None),
        ties=ties,
        sizes=sizes,
    )


def _table(context: OpContext, place: int, labels: Labels) -> PerChannelConstant | None:
    """A table of angles whose last axis has an entry per pair."""
    value = context.constant(place)
    if value is None or value.shape[-1] != len(labels):
        return None
    return PerChannelConstant(place, labels.reshape((1,) * (value.ndim - 1) + (-1,)))


@dataclass(frozen=True)
class _Form:
    """How heads lie in the input: `rank` axes, `heads` of `width`, of which the first `rotary_width` are rotated."""

    rank: int
    heads: int
    width: int
    rotary_width: int
    interleaved: bool

    @classmethod
    def of(cls, context: OpContext) -> _Form | None:
        """From shapes and attributes; None where they do not say."""
        shape, node = context.shapes[0], context.node
        if shape is None or len(shape) not in (3, 4) or shape[-1] is None:
            return None
        rotary_width, heads = int(context.attr("rotary_embedding_dim", 0)), int(context.attr("num_heads", 0))
        if len(shape) == 4:
            heads, width = shape[1] or 0, shape[3]
        else:
            table = context.size(node.inputs[angles_of(node)[0]])
            half = None if table is None else table[-1]
            heads = heads or (0 if half is None or rotary_width else shape[-1] // (2 * half))
            width = shape[-1] // heads if heads else 0
        if not heads or not width or (len(shape) == 3 and heads * width != shape[-1]):
            return None
        return cls(len(shape), heads, width, rotary_width or width, bool(context.attr("interleaved", 0)))

    def by_head(self, labels: Labels) -> Labels:
        """Labels (heads, width)."""
        if self.rank == 4:
            return np.broadcast_to(labels, (1, self.heads, 1, self.width))[0, :, 0]
        return np.broadcast_to(labels, (1, 1, self.heads * self.width)).reshape(self.heads, self.width)

    @property
    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The places of the first and of the second channel of every pair."""
        half = np.arange(self.rotary_width // 2)
        return (2 * half, 2 * half + 1) if self.interleaved else (half, half + self.rotary_width // 2)
