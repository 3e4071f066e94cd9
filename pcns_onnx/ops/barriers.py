"""Operators that are recognised and left alone: what ties their channels, in words.

A row here turns "is not understood" into a reason that a reader can act on. An operator leaves
the table when it gets a rule of its own.
"""

from __future__ import annotations

from pcns_onnx.ops.facts import OpContext, OpFacts, describe, freeze
from pcns_onnx.ops.registry import rule

BARRIERS = {
    "takes some of the channels": ("GatherElements", "GatherND", "ScatterND", "TopK"),
    "looks for the largest or smallest channel": ("ArgMax", "ArgMin"),
    "mixes channels in a way that is not supported yet": ("Attention",),
}  # fmt: skip
"""What an operator does to channels -> the operators that do it."""

_WHY = {op: why for why, ops in BARRIERS.items() for op in ops}


@rule(*_WHY, operands="all")
def barrier(site: OpContext) -> OpFacts:
    """Channels that enter must stay."""
    return freeze(site, f"{describe(site.node)} {_WHY[site.node.op]}")
