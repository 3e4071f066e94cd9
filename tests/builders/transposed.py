"""Models with a ConvTranspose."""

from __future__ import annotations

from typing import Any

import onnx

from builders.chains import BACKS, FRONTS, NORM, C, Chain, K, node, random
from builders.models import build


def pair(spatial: int, bias: bool = True, blocks: int = 1, **attributes: Any) -> onnx.ModelProto:
    """Two of the same kind with a Relu between: as writer and as reader."""
    kernel, tail = (3, 2, 2)[:spatial], " b{}" if bias else ""
    first, last = 3 * blocks, K - K % blocks
    nodes = [
        node("ConvTranspose", "x W0" + tail.format(0), "h", group=blocks, **attributes),
        node("Relu", "h"),
        node("ConvTranspose", "m W1" + tail.format(1), "y", group=blocks, **attributes),
    ]
    weights = {"W0": random(first, C // blocks, *kernel), "W1": random(C, last // blocks, *kernel)}
    if bias:
        weights |= {"b0": random(C), "b1": random(last)}
    return build(nodes, weights, ("N", first, *(5, 4, 3)[:spatial]))


UP = node("ConvTranspose", "h U u", "m", strides=[2, 2], pads=[1] * 4, output_padding=[1, 1], group=1)
"""As a decoder has it: twice the size."""


def grouped(blocks: int, outside: int, **attributes: Any) -> Chain:
    """Between two Convs, in blocks."""
    weights = {"U": random(C, outside, 3, 3), "u": random(blocks * outside)}
    if blocks * outside != C:
        weights["W1"] = random(K, blocks * outside, 3, 3)
    return Chain([node("ConvTranspose", "h U u", group=blocks, strides=[2, 1], **attributes)], weights)


def decoder() -> onnx.ModelProto:
    """Down, and up again beside the skip connection."""
    nodes = [
        node("Conv", "x W0 b0", "e", pads=[1] * 4),
        node("Relu", "e", "h"),
        node("Conv", "h W2 b2", "d", pads=[1] * 4, strides=[2, 2]),
        node("Relu", "d", "r"),
        node("ConvTranspose", "r U u", "t", strides=[2, 2]),
        node("Add", "t h", "s"),
        node("PRelu", "s slope", "m"),
        node("Conv", "m W1 b1", "y"),
    ]
    weights = {"W2": random(2 * C, C, 3, 3), "b2": random(2 * C), "U": random(2 * C, C, 2, 2), "u": random(C) * 2}
    return build(nodes, {**FRONTS["conv"][2], **BACKS["conv"][1], **weights, "slope": random(C, 1, 1)}, ("N", 3, 6, 6))


LAYERS: dict[str, tuple[onnx.ModelProto, int]] = {
    "1d": (pair(1), C),
    "1d stride dilation": (pair(1, strides=[2], dilations=[2], pads=[1, 2]), C),
    "2d": (pair(2), C),
    "2d no bias": (pair(2, bias=False, strides=[2, 3], pads=[1, 0, 2, 1]), C),
    "2d output padding": (pair(2, strides=[2, 2], output_padding=[1, 0]), C),
    "2d output shape": (pair(2, strides=[1, 1], output_shape=[6, 4]), C),
    "2d same upper": (pair(2, strides=[2, 2], auto_pad="SAME_UPPER"), C),
    "2d same lower": (pair(2, strides=[2, 2], auto_pad="SAME_LOWER"), C),
    "2d valid": (pair(2, strides=[3, 2], auto_pad="VALID"), C),
    "3d": (pair(3, strides=[1, 2, 2]), C),
    "in blocks": (pair(2, blocks=2, strides=[2, 2]), C // 2),
    "in blocks no bias": (pair(2, bias=False, blocks=2), C // 2),
    "between convs": (Chain([UP], {"U": random(C, C, 3, 3), "u": random(C)}).build(), C),
    "in blocks, between convs": (grouped(2, 3).build(), C // 2),
    "whole blocks": (grouped(4, 3).build(), 4),
    "whole blocks no bias": (
        Chain([node("ConvTranspose", "h U", group=4)], {"U": random(C, 2, 2, 2)}).build(), 4),
    "depthwise": (grouped(C, 1).build(), C),
    "depthwise, more out": (grouped(C, 2).build(), C),
    "norm that stays": (
        Chain([node("ConvTranspose", "h U u", "t"), node("Relu", "t", "r"),
               node("BatchNormalization", "r g be mu va")], {**NORM, "U": random(C, C, 3, 3), "u": random(C)}).build(),
        C),
    "decoder": (decoder(), C),
}  # fmt: skip
"""Models with a ConvTranspose, and the width of their first group."""
