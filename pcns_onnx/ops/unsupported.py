"""Operators that are recognised and left alone: what ties their channels, or that they have weights of their own.

A row here turns "is not understood" into a reason that a reader can act on; operators with weights are named and,
where that is easy, counted. What enters them stays; the rest of the model shrinks around them. An operator leaves
this module when it gets a rule of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod

from pcns_onnx.ops.facts import OpContext, OpFacts, describe, freeze
from pcns_onnx.ops.registry import rule

MIXES = "mixes channels in a way that is not supported yet"
QUANTISED = "is part of a quantised model, and quantising comes after shrinking"
FUSED = "was fused for onnxruntime: shrink the model before it is optimised"
_FUSED = (
    "BiasAdd", "BiasDropout", "BiasSoftmax", "BiasSplitGelu", "DecoderMaskedMultiHeadAttention",
    "FusedConv", "FusedGemm", "FusedMatMul", "FusedMatMulActivation", "GatedRelativePositionBias", "GemmFastGelu",
    "NhwcConv", "NhwcFusedConv", "NhwcMaxPool", "PackedAttention", "PackedMultiHeadAttention", "TransposeMatMul",
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


_CLOSE = 16
"""Tensors between an input and a condition, at most, where it is a setting and no result of the model."""

QUANTISED_LAYERS: dict[str, Callable[[OpContext], int]] = {
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulInteger16", "MatMulIntegerToFloat", "QGemm"), _product),
    **dict.fromkeys(("QLinearConv", "ConvInteger"), _window),
    **dict.fromkeys(("QAttention", "QEmbedLayerNormalization", "QMoE"), _none),
    "DynamicQuantizeLSTM": _recurrent,
}
"""Layers of onnxruntime in integers, and what they cost."""

INTACT: dict[str, tuple[str, Callable[[OpContext], int | None]]] = {
    **dict.fromkeys(("If", "Loop", "Scan"), ("is control flow", _none)),
    **dict.fromkeys(("QLinearConv", "ConvInteger"), (QUANTISED, _window)),
    **dict.fromkeys(("QLinearMatMul", "MatMulInteger"), (QUANTISED, _product)),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"), (QUANTISED, lambda context: None)),
    "DeformConv": ("deforms its windows, which is not supported yet", _window),
}
"""Operator -> what to say of it, and what it costs (None: it is not listed as a layer)."""


@rule(*INTACT, operands="all")
def intact(context: OpContext) -> OpFacts:
    """Channels that enter must stay."""
    why, macs = INTACT[context.node.op]
    why = _choice(context) or why if context.node.op == "If" else why
    return freeze(context, f"{describe(context.node)} {why}", macs=macs(context))


def _choice(context: OpContext) -> str | None:
    """What the condition of an If follows from where it is a setting: inputs of one number each, or shapes."""
    inputs, shaped, numbers = dict[str, None](), dict[str, None](), list[str]()
    visited, pending = set[str](), [context.node.inputs[0]]
    while pending:
        name = pending.pop(0)
        if not name or name in visited:
            continue
        visited.add(name)
        value, maker = context.value(name), context.producer(name)
        if value is not None and value.size == 1:
            numbers.append(str(value.reshape(-1)[0]))
        elif value is not None or (maker is not None and (maker.domain or maker.inner or len(visited) > _CLOSE)):
            return None
        elif maker is None:
            inputs[name] = None
        elif maker.op in ("Shape", "Size"):
            shaped[maker.inputs[0]] = None
        else:
            pending += maker.inputs
    shapes = [context.size(name) for name in inputs]
    if any(shape is None or prod(size or 0 for size in shape) != 1 for shape in shapes):
        return None
    if inputs:
        number = numbers[0] if numbers and len(inputs) == 1 else "VALUE"
        names, options = _listed(inputs), " ".join(f"--constant {name}={number}" for name in inputs)
        return f"chooses by input{'s' if len(inputs) > 1 else ''} {names}: fix it with {options}"
    return f"chooses by the shape of {_listed(shaped)}: fixed sizes there would settle it" if shaped else None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


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
}  # fmt: skip
"""What an operator does to channels -> the operators that do it."""

_WHY = {op: why for why, ops in BARRIERS.items() for op in ops}


@rule(*_WHY, operands="all")
def barrier(context: OpContext) -> OpFacts:
    """Channels that enter must stay."""
    return freeze(context, f"{describe(context.node)} {_WHY[context.node.op]}")
