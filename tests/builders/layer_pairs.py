"""Models of two layers, the second of which alone reads the first."""

from __future__ import annotations

import onnx

from builders.chains import CHAINS, LAYERS, Chain, node
from builders.topologies import Sketch

POOLED = ("max pool", "max pool padded", "max pool 1d")


def transposed(**attributes: object) -> onnx.ModelProto:
    """A ConvTranspose behind a Conv."""
    s = Sketch()
    s.op("ConvTranspose", f"{s.relu(s.conv('x', 'h', (3, 8)))} {s.store('up', 8, 4, 3, 3, spread=0.2)}", "y",
         name="up", **attributes)  # fmt: skip
    return s.model()


MODELS: dict[str, onnx.ModelProto] = {
    **{name: model for name, model in LAYERS.items() if name != "gemm transA"},
    **{name: CHAINS[name].build() for name in (*POOLED, "gelu erf", "prelu per channel", "prelu rows", "clip inputs")},
    "pool between activation and reader": Chain(
        [node("Tanh", "h", "a"), node("MaxPool", "a", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)]
    ).build(),
    "dilated pool": Chain(
        [node("Relu", "h", "a"), node("MaxPool", "a", kernel_shape=[2, 2], dilations=[2, 1])]
    ).build(),
    "transposed": transposed(strides=[2, 2]),
    "transposed, padded and dilated": transposed(strides=[2, 1], dilations=[1, 2], pads=[1, 0, 0, 2]),
    "transposed with an output padding": transposed(strides=[3, 2], output_padding=[1, 0], pads=[1, 1, 1, 1]),
}
"""Models of two layers, the second of which alone reads the first."""
