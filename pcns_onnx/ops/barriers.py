"""Operators that are recognised and left alone: what ties their channels, in words.

A row here turns "is not understood" into a reason that a reader can act on. An operator leaves
the table when it gets a rule of its own.
"""

from __future__ import annotations

from pcns_onnx.ops.facts import Flow, Site, describe, freeze, rule

BARRIERS = {
    "joins the channels of several layers": ("Concat",),
    "takes some of the channels": ("Split", "Slice", "Gather", "GatherElements", "GatherND", "TopK"),
    "rearranges channels": ("DepthToSpace", "SpaceToDepth"),
    "normalises over several channels": (
        "Softmax", "LogSoftmax", "Hardmax", "LayerNormalization", "RMSNormalization", "GroupNormalization",
        "InstanceNormalization", "LpNormalization", "MeanVarianceNormalization", "LRN",
    ),
    "looks for the largest or smallest channel": ("ArgMax", "ArgMin"),
    "is a recurrent layer": ("LSTM", "GRU", "RNN"),
    "mixes channels in a way that is not supported yet": ("Einsum", "Attention", "CumSum"),
    "is control flow": ("If", "Loop", "Scan"),
    "is part of a quantised model, and quantising comes after shrinking": (
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
        "MatMulInteger",
    ),
}  # fmt: skip
"""What an operator does to channels -> the operators that do it."""

_WHY = {op: why for why, ops in BARRIERS.items() for op in ops}


@rule(*_WHY, operands="all")
def barrier(site: Site) -> Flow:
    """Channels that enter must stay."""
    return freeze(site, f"{describe(site.node)} {_WHY[site.node.op]}")
