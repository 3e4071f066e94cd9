"""Operators that are recognised and left alone: what ties their channels, or that they have weights of their own.

A row here turns "is not understood" into a reason that a reader can act on; operators with weights are named and,
where that is easy, counted. What enters them stays; the rest of the model shrinks around them. An operator leaves
this module when it gets a rule of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from pcns_onnx.ops.facts import OpContext, OpFacts, describe, freeze
from pcns_onnx.ops.registry import rule

MIXES = "mixes channels in a way that is not supported yet"
QUANTISED = "is part of a quantised model, and quantising comes after shrinking"
FUSED = "was fused for onnxruntime: shrink the model before it is optimised"
_FUSED = (
    "Attention", "BiasAdd", "BiasDropout", "BiasSoftmax", "BiasSplitGelu", "DecoderMaskedMultiHeadAttention",
    "FusedConv", "FusedGemm", "FusedMatMul", "FusedMatMulActivation", "GatedRelativePositionBias", "GemmFastGelu",
    "GroupQueryAttention", "MultiHeadAttention", "NhwcConv", "NhwcFusedConv", "NhwcMaxPool", "PackedAttention",
    "PackedMultiHeadAttention", "RotaryEmbedding", "TransposeMatMul",
)  # fmt: skip
_QUANTISED = (
    "DequantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulBnb4", "MatMulFpQ4",
    "MatMulInteger16", "MatMulIntegerToFloat", "MatMulNBits", "QAttention", "QGemm", "QLinearAdd", "QLinearAveragePool",
    "QLinearConcat", "QLinearConv", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean",
    "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere", "QuantizeLinear",
)  # fmt: skip


def _recurrent(context: OpContext) -> int:
    """All gates at every step, in every direction."""
    x, weight, again = (context.known_shape(position) for position in range(3))
    return prod(x[:2]) * (prod(weight) + prod(again)) if x and weight and again else 0


def _window(context: OpContext) -> int:
    out = context.known_output()
    weight = context.known_shape(3 if context.node.op == "QLinearConv" else 1)
    return prod(out) * prod(weight[1:]) if out and weight else 0


def _product(context: OpContext) -> int:
    out, x = context.known_output(), context.known_shape(0)
    return prod(out) * x[-1] if out and x else 0


def _none(context: OpContext) -> int:
    return 0


INTACT: dict[str, tuple[str, Callable[[OpContext], int | None]]] = {
    **dict.fromkeys(("LSTM", "GRU", "RNN"), ("is a recurrent layer", _recurrent)),
    **dict.fromkeys(("If", "Loop", "Scan"), ("is control flow", _none)),
    **dict.fromkeys(("QLinearConv", "ConvInteger"), (QUANTISED, _window)),
    **dict.fromkeys(("QLinearMatMul", "MatMulInteger"), (QUANTISED, _product)),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"), (QUANTISED, lambda context: None)),
    "DeformConv": ("bends its windows, which is not supported yet", _window),
}
"""Operator -> what to say of it, and what it costs (None: it is not listed as a layer)."""


@rule(*INTACT, operands="all")
def intact(context: OpContext) -> OpFacts:
    """Channels that enter must stay."""
    why, macs = INTACT[context.node.op]
    return freeze(context, f"{describe(context.node)} {why}", macs=macs(context))


@rule(*_FUSED, domain="com.microsoft", operands="all")
def fused(context: OpContext) -> OpFacts:
    """Known to onnxruntime only."""
    return freeze(
        context, f"{describe(context.node)} {FUSED}", macs=_product(context) if "MatMul" in context.node.op else 0
    )


@rule(*_QUANTISED, domain="com.microsoft", operands="all")
def quantised(context: OpContext) -> OpFacts:
    """Known to onnxruntime only, in integers; those that multiply by a matrix are counted."""
    return freeze(context, f"{describe(context.node)} {QUANTISED}", macs=_integer_product(context))


def _integer_product(context: OpContext) -> int | None:
    x, weight = context.known_shape(0), context.known_shape(1)
    if context.node.op in ("MatMulNBits", "MatMulBnb4", "MatMulFpQ4"):  # its matrix is packed into bytes
        size = context.attr("K", 0) * context.attr("N", 0)
        return prod(x[:-1]) * size if x else 0
    if "MatMul" in context.node.op:
        return prod(x) * weight[-1] if x and weight else 0
    return None


BARRIERS = {
    "takes some of the channels": ("GatherElements", "GatherND", "ScatterND", "TopK"),
    "looks for the largest or smallest channel": ("ArgMax", "ArgMin"),
    MIXES: ("Attention",),
}  # fmt: skip
"""What an operator does to channels -> the operators that do it."""

_WHY = {op: why for why, ops in BARRIERS.items() for op in ops}


@rule(*_WHY, operands="all")
def barrier(context: OpContext) -> OpFacts:
    """Channels that enter must stay."""
    return freeze(context, f"{describe(context.node)} {_WHY[context.node.op]}")
