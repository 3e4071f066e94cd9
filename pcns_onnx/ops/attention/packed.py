"""Attention with the projections inside (com.microsoft Attention), where it is not taken apart.

Before anything is asked, `rewrite.fused.attention` has put the projections outside wherever it can: what is left has
a cache, a mask of a form of its own or computed weights.
"""

from __future__ import annotations

from math import prod

from pcns_onnx.ops.attention.kernels import ONNXRUNTIMES
from pcns_onnx.ops.facts import OpContext, OpFacts, describe, freeze
from pcns_onnx.ops.registry import rule

_PAST, _PRESENT = 4, 1


@rule("Attention", domain=ONNXRUNTIMES, operands="all")
def attention_with_weights(context: OpContext) -> OpFacts:
    """Projections and products are counted; what enters stays."""
    node = context.node
    caches = [*node.inputs[_PAST : _PAST + 1], *node.outputs[_PRESENT : _PRESENT + 1]]
    cache = next((name for name in caches if name), None)
    why = "has its weights inside, beside a mask of a form of its own"
    if cache is not None:
        why = f"has the cache '{cache}', whose shape is the model's contract"
    return freeze(context, f"{describe(node)} {why}", macs=_macs(context))


def _macs(context: OpContext) -> int:
    """(batch, positions) times the weight, and both products."""
    x, weight = context.known_shape(0), context.known_shape(1)
    if not x or not weight:
        return 0
    widths = context.attr("qkv_hidden_sizes", None) or [weight[1] // 3] * 3
    past = context.shapes[_PAST] if len(context.shapes) > _PAST else None
    before = (past[3] or 0) if past is not None and len(past) == 5 else 0
    rows = prod(x[:2])
    return int(rows * prod(weight) + rows * (x[1] + before) * (widths[0] + widths[2]))
