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
    "DequantizeLinear", "MatMulBnb4", "MatMulFpQ4", "MatMulNBits", "QLinearAdd", "QLinearAveragePool", "QLinearConcat",
    "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean", "QLinearSigmoid",
    "QLinearSoftmax", "QLinearWhere", "QuantizeLinear",
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


QUANTISED_LAYERS: dict[str, Callable[[OpContext], int]] = {
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulInteger16", "MatMulIntegerToFloat", "QGemm"), _product),
    **dict.fromkeys(("QLinearConv", "ConvInteger"), _window),
    **dict.fromkeys(("QAttention", "QEmbedLayerNormalization", "QMoE"), _none),
    "DynamicQuantizeLSTM": _recurrent,
}
"""Layers of onnxruntime in integers, and what they cost."""

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


@rule(*QUANTISED_LAYERS, domain="com.microsoft", operands="all")
def quantised_layer(context: OpContext) -> OpFacts:
    """Known to onnxruntime only, in integers; listed as a layer."""
    macs = QUANTISED_LAYERS[context.node.op](context)
    return freeze(context, f"{describe(context.node)} {QUANTISED}", macs=macs)


@rule(*_QUANTISED, domain="com.microsoft", operands="all")
def quantised(context: OpContext) -> OpFacts:
    """Known to onnxruntime only, in integers."""
    return freeze(context, f"{describe(context.node)} {QUANTISED}")


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
