"""Small models with more than one way through them: sums, gates, choices, grouped and depthwise Convs, shuffles.

All take x of 3 x 6 x 6 (or rows of 5) and give y; every group has an even number of classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from builders.chains import C, K, ints, node, scalar
from builders.models import Array, build

IMAGE = ("N", 3, 6, 6)
SAME: dict[str, Any] = {"pads": [1] * 4}


class Sketch:
    """A model in the making, from input to output; every layer has weights of its own."""

    def __init__(self, *shape: int | str) -> None:
        self.shape = shape or IMAGE
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self._random = np.random.default_rng(11)

    def model(self, opset: int = 17) -> onnx.ModelProto:
        return build(self.nodes, self.weights, self.shape, opset=opset)

    def store(self, name: str, *shape: int, spread: float = 1.0, mean: float = 0.0) -> str:
        """A constant of random numbers."""
        self.weights[name] = (mean + spread * self._random.standard_normal(shape)).astype(np.float32)
        return name

    def keep(self, name: str, value: Array) -> str:
        """A given constant."""
        self.weights[name] = value
        return name

    def op(self, op: str, inputs: str, output: str, **attributes: Any) -> str:
        self.nodes.append(node(op, inputs, output, **attributes))
        return output

    def conv(
        self, source: str, output: str, sizes: tuple[int, int], kernel: int = 3, *, group: int = 1, bias: bool = True,
        **attributes: Any,
    ) -> str:  # fmt: skip
        """A Conv from and to so many channels, padded so that sizes stay."""
        into, out = sizes[0] // group, sizes[1]
        weight = self.store(f"{output}.w", out, into, kernel, kernel, spread=(into * kernel * kernel) ** -0.5)
        tail = " " + self.store(f"{output}.b", out, spread=0.3) if bias else ""
        attributes = {"pads": [kernel // 2] * 4, "group": group, **attributes}
        return self.op("Conv", f"{source} {weight}{tail}", output, name=output, **attributes)

    def gemm(self, source: str, output: str, sizes: tuple[int, int], **attributes: Any) -> str:
        weight = self.store(f"{output}.w", *sizes, spread=sizes[0] ** -0.5)
        bias = self.store(f"{output}.b", sizes[1], spread=0.3)
        return self.op("Gemm", f"{source} {weight} {bias}", output, name=output, **attributes)

    def rows(self, source: str, output: str, sizes: tuple[int, int], *, bias: bool = True) -> str:
        """MatMul and its bias."""
        weight = self.store(f"{output}.w", *sizes, spread=sizes[0] ** -0.5)
        if not bias:
            return self.op("MatMul", f"{source} {weight}", output, name=output)
        self.op("MatMul", f"{source} {weight}", f"{output}.m", name=output)
        return self.op("Add", f"{output}.m {self.store(f'{output}.b', sizes[1], spread=0.3)}", output)

    def norm(self, source: str, output: str, width: int) -> str:
        for name in ("scale", "var"):
            self.store(f"{output}.{name}", width, spread=0.1, mean=1.0)
        for name in ("shift", "mean"):
            self.store(f"{output}.{name}", width, spread=0.2)
        parts = (f"{output}.{name}" for name in ("scale", "shift", "mean", "var"))
        return self.op("BatchNormalization", " ".join((source, *parts)), output)

    def relu(self, source: str) -> str:
        return self.op("Relu", source, f"{source}.r")

    def add(self, a: str, b: str, output: str) -> str:
        return self.op("Add", f"{a} {b}", output)

    def pooled_head(self, source: str, width: int = C) -> onnx.ModelProto:
        """The last layer: a Gemm on the mean over all positions."""
        self.op("GlobalAveragePool", source, "pooled")
        self.op("Flatten", "pooled", "flat")
        self.gemm("flat", "y", (width, K))
        return self.model()

    def head(self, source: str, width: int = C, **attributes: Any) -> onnx.ModelProto:
        """The last layer: a Conv."""
        self.conv(source, "y", (width, K), **attributes)
        return self.model()


# -- sums ------------------------------------------------------------------------------------


def block(s: Sketch, source: str, name: str, width: int = C) -> str:
    """Conv - Relu - Conv and what went in."""
    inner = s.relu(s.conv(source, f"{name}1", (width, 2 * width)))
    return s.add(source, s.conv(inner, f"{name}2", (2 * width, width)), name)


def residual() -> onnx.ModelProto:
    s = Sketch()
    return s.head(s.relu(block(s, s.relu(s.conv("x", "stem", (3, C))), "a")))


def residual_of_one() -> onnx.ModelProto:
    """A layer that reads and writes the same channels."""
    s = Sketch()
    stem = s.relu(s.conv("x", "stem", (3, C)))
    return s.head(s.add(s.conv(stem, "a", (C, C)), stem, "sum"))


def two_blocks() -> onnx.ModelProto:
    s = Sketch()
    stream = s.relu(block(s, s.relu(s.conv("x", "stem", (3, C))), "a"))
    return s.pooled_head(s.relu(block(s, stream, "b")))


def projection() -> onnx.ModelProto:
    """A block with a stride and twice the channels, whose shortcut is a layer too."""
    s = Sketch()
    stem = s.relu(s.conv("x", "stem", (3, C)))
    inner = s.relu(s.conv(stem, "a1", (C, C), strides=[2, 2]))
    short = s.conv(stem, "short", (C, 2 * C), 1, strides=[2, 2])
    stream = s.relu(s.add(s.conv(inner, "a2", (C, 2 * C)), short, "a"))
    return s.pooled_head(s.relu(block(s, stream, "b", 2 * C)), 2 * C)


def pre_activation() -> onnx.ModelProto:
    """Norms and activations stand in front of the layers: the stream itself is never activated."""
    s = Sketch()
    stream = s.conv("x", "stem", (3, C))
    for name in "ab":
        first = s.conv(s.relu(s.norm(stream, f"{name}n1", C)), f"{name}1", (C, C), bias=False)
        second = s.conv(s.relu(s.norm(first, f"{name}n2", C)), f"{name}2", (C, C), bias=False)
        stream = s.add(stream, second, name)
    return s.pooled_head(s.relu(s.norm(stream, "n", C)))


def residual_rows() -> onnx.ModelProto:
    """Two layers on every token, a factor per channel, and the stream is read twice."""
    s = Sketch("N", 4, 5)
    stream = s.rows("x", "embed", (5, C))
    inner = s.op("Erf", s.rows(stream, "up", (C, 2 * C)), "act")
    s.op("Mul", f"{s.rows(inner, 'down', (2 * C, C))} {s.store('scale', C)}", "scaled")
    s.add("scaled", stream, "a")
    s.op("Tanh", s.rows("a", "gate", (C, C), bias=False), "t")
    s.add("a", "t", "b")
    s.op("Mul", "b half", "m")
    s.keep("half", scalar(0.5))
    s.rows("m", "y", (C, K))
    return s.model()


def residual_flattened() -> onnx.ModelProto:
    s = Sketch()
    stream = block(s, s.conv("x", "stem", (3, C), strides=[2, 2]), "a")
    s.op("Flatten", stream, "flat")
    s.gemm("flat", "y", (9 * C, K))
    return s.model()


def nested() -> onnx.ModelProto:
    """A sum of sums: one stream through both."""
    s = Sketch()
    stem = s.conv("x", "stem", (3, C))
    inner = s.add(s.conv(s.relu(stem), "a", (C, C)), s.conv(stem, "b", (C, C), 1), "ab")
    return s.head(s.add(stem, s.relu(inner), "all"))


def late_sum() -> onnx.ModelProto:
    """A sum that stands behind layers that it has nothing to do with."""
    s = Sketch()
    stem = s.conv("x", "stem", (3, C))
    inner = s.relu(s.conv(s.relu(stem), "a1", (C, C), 1))
    s.conv(inner, "a2", (C, C))
    s.conv(inner, "b", (C, 4))
    s.conv("b", "c", (4, C))
    return s.head(s.op("Mul", f"{s.add('a2', stem, 'sum')} {s.op('Tanh', 'c', 't')}", "m"))


# -- gates -----------------------------------------------------------------------------------


def squeeze_excite(how: str) -> onnx.ModelProto:
    """The channels' means decide how much of each goes on."""
    s = Sketch()
    stem = s.relu(s.conv("x", "stem", (3, C)))
    s.op("GlobalAveragePool", stem, "mean")
    if how == "conv":
        squeezed = s.relu(s.conv("mean", "squeeze", (C, C // 2), 1))
        excited = s.conv(squeezed, "excite", (C // 2, C), 1)
    else:
        s.op("Flatten", "mean", "row")
        squeezed = s.relu(s.gemm("row", "squeeze", (C, C // 2)))
        flat = s.gemm(squeezed, "excite", (C // 2, C))
        shape, axes = ints(-1, C, 1, 1), ints(2, 3)
        excited = {
            "reshape": lambda: s.op("Reshape", f"{flat} {s.keep('shape', shape)}", "wide"),
            "unsqueeze": lambda: s.op("Unsqueeze", f"{flat} {s.keep('axes', axes)}", "wide"),
        }[how]()
    s.op("HardSigmoid", excited, "gate", alpha=0.3)
    return s.head(s.op("Mul", f"{stem} gate", "m"))


def inverted_residual() -> onnx.ModelProto:
    """MobileNetV3: a 1x1 Conv, a depthwise one, a gate, a 1x1 Conv, and what went in."""
    s = Sketch()
    stem = s.conv("x", "stem", (3, C))
    wide = s.op("HardSwish", s.conv(stem, "expand", (C, 2 * C), 1), "e")
    deep = s.op("HardSwish", s.conv(wide, "deep", (2 * C, 2 * C), group=2 * C), "d")
    s.op("GlobalAveragePool", deep, "mean")
    squeezed = s.relu(s.conv("mean", "squeeze", (2 * C, C // 2), 1))
    s.op("HardSigmoid", s.conv(squeezed, "excite", (C // 2, 2 * C), 1), "gate")
    thin = s.conv(s.op("Mul", f"gate {deep}", "m"), "project", (2 * C, C), 1)
    return s.pooled_head(s.relu(s.add(thin, stem, "sum")))


def glu() -> onnx.ModelProto:
    s = Sketch("N", 5)
    s.op("Sigmoid", s.gemm("x", "gate", (5, C)), "s")
    s.gemm(s.op("Mul", f"{s.gemm('x', 'value', (5, C))} s", "m"), "y", (C, K))
    return s.model()


def swiglu() -> onnx.ModelProto:
    """A gated block on a stream."""
    s = Sketch("N", 4, 5)
    stream = s.rows("x", "embed", (5, C), bias=False)
    gate = s.rows(stream, "gate", (C, 2 * C), bias=False)
    s.op("Mul", f"{gate} {s.op('Sigmoid', gate, 's')}", "silu")
    s.op("Mul", f"silu {s.rows(stream, 'value', (C, 2 * C), bias=False)}", "m")
    s.rows(s.add(stream, s.rows("m", "down", (2 * C, C), bias=False), "sum"), "y", (C, K), bias=False)
    return s.model()


# -- several into one ------------------------------------------------------------------------


def several(op: str, inputs: str = "a b c", *, then: str = "Relu") -> onnx.ModelProto:
    """Layers on the input that one operator joins."""
    s = Sketch()
    for name in dict.fromkeys(inputs.split()):
        s.conv("x", name, (3, C))
    s.op(then, s.op(op, inputs, "joined"), "m")
    return s.head("m")


def choice() -> onnx.ModelProto:
    """Where: two layers are compared, two others are chosen from."""
    s = Sketch()
    for name in "abcd":
        s.conv("x", name, (3, C))
    s.op("Greater", "a b", "over")
    return s.head(s.op("Where", "over c d", "m"))


def slopes() -> onnx.ModelProto:
    """A PRelu whose slopes are the outputs of a layer."""
    s = Sketch()
    s.conv("x", "a", (3, C))
    s.conv("x", "b", (3, C))
    return s.head(s.op("PRelu", "a b", "m"))


def two_pools() -> onnx.ModelProto:
    """Both operands are the same channels."""
    s = Sketch()
    stem = s.relu(s.conv("x", "stem", (3, C)))
    s.op("GlobalMaxPool", stem, "most")
    s.op("GlobalAveragePool", stem, "mean")
    s.op("Flatten", s.add("most", "mean", "both"), "flat")
    s.gemm("flat", "y", (C, K))
    return s.model()


# -- blocks ----------------------------------------------------------------------------------


def depthwise(multiplier: int, *, bias: bool = True) -> onnx.ModelProto:
    s = Sketch()
    stem = s.relu(s.conv("x", "stem", (3, C)))
    deep = s.relu(s.conv(stem, "deep", (C, multiplier * C), group=C, bias=bias))
    return s.head(deep, multiplier * C, kernel=1)


def deep_stream() -> onnx.ModelProto:
    """ConvNeXt: a depthwise Conv of the stream in every block."""
    s = Sketch()
    stream = s.conv("x", "stem", (3, C))
    for name in "ab":
        deep = s.conv(stream, f"{name}0", (C, C), group=C)
        wide = s.op("Gelu", s.conv(deep, f"{name}1", (C, 2 * C), 1), f"{name}g")
        stream = s.add(s.conv(wide, f"{name}2", (2 * C, C), 1), stream, name)
    s.conv(stream, "y", (C, K))
    return s.model(opset=20)


def grouped(blocks: int, width: int = 2 * C) -> onnx.ModelProto:
    """A grouped Conv between two others; with more blocks than channels in each, blocks go as a whole."""
    s = Sketch()
    stem = s.relu(s.conv("x", "stem", (3, width)))
    return s.head(s.relu(s.conv(stem, "blocks", (width, width), group=blocks)), width)


def grouped_input() -> onnx.ModelProto:
    """The model's own channels in two blocks."""
    s = Sketch("N", 4, 6, 6)
    return s.head(s.relu(s.conv("x", "blocks", (4, C), group=2)))


def grouped_residual() -> onnx.ModelProto:
    """ResNeXt: a grouped Conv within a block, of more blocks than channels in each."""
    s = Sketch()
    stem = s.relu(s.conv("x", "stem", (3, C)))
    inner = s.relu(s.conv(stem, "a1", (C, 2 * C), 1))
    deep = s.relu(s.conv(inner, "a2", (2 * C, 2 * C), group=8))
    return s.pooled_head(s.relu(s.add(s.conv(deep, "a3", (2 * C, C), 1), stem, "a")))


def shuffle(blocks: int = 2, width: int = 2 * C) -> onnx.ModelProto:
    """ShuffleNet: grouped Convs whose channels change places in between."""
    s = Sketch()
    stem = s.relu(s.conv("x", "stem", (3, width)))
    first = s.relu(s.conv(stem, "first", (width, width), 1, group=blocks))
    s.op("Reshape", f"{first} {s.keep('split', ints(0, blocks, width // blocks, 6, 6))}", "cut")
    s.op("Transpose", "cut", "dealt", perm=[0, 2, 1, 3, 4])
    s.op("Reshape", f"dealt {s.keep('whole', ints(0, width, 6, 6))}", "shuffled")
    deep = s.conv("shuffled", "deep", (width, width), group=width)
    second = s.conv(deep, "second", (width, width), 1, group=blocks)
    return s.pooled_head(s.relu(s.add(second, stem, "sum")), width)


def split_axis() -> onnx.ModelProto:
    """Channels lie on two axes for a while."""
    s = Sketch()
    stem = s.conv("x", "stem", (3, C))
    s.op("Reshape", f"{stem} {s.keep('split', ints(0, 2, C // 2, 6, 6))}", "cut")
    s.op("Reshape", f"{s.relu('cut')} {s.keep('whole', ints(0, C, 6, 6))}", "m")
    return s.head("m")


# -- side by side ----------------------------------------------------------------------------


def dense() -> onnx.ModelProto:
    """DenseNet: every layer reads all that came before it."""
    s = Sketch()
    stream, width = s.relu(s.conv("x", "stem", (3, C))), C
    for name in "ab":
        inner = s.relu(s.norm(s.conv(stream, f"{name}1", (width, C), 1), f"{name}n", C))
        stream, width = s.op("Concat", f"{stream} {s.conv(inner, f'{name}2', (C, 4))}", name, axis=1), width + 4
    return s.pooled_head(s.relu(s.norm(stream, "n", width)), width)


def skipped() -> onnx.ModelProto:
    """U-Net: down and up again, beside what was there before; a depthwise Conv of both."""
    s = Sketch()
    stem = s.relu(s.conv("x", "stem", (3, C)))
    low = s.relu(s.conv(stem, "low", (C, 2 * C), strides=[2, 2]))
    weight = s.store("up.w", 2 * C, C, 2, 2, spread=(2 * C) ** -0.5)
    s.op("ConvTranspose", f"{low} {weight}", "up", name="up", strides=[2, 2])
    s.op("Concat", f"up {stem}", "both", axis=1)
    return s.head(s.relu(s.conv("both", "deep", (2 * C, 2 * C), group=2 * C)), 2 * C)


def parted_sum() -> onnx.ModelProto:
    """One layer's channels are the sum of two others' side by side."""
    s = Sketch("N", 5)
    for name, width in (("a", C), ("b", 4), ("c", C + 4)):
        s.gemm("x", name, (5, width))
    s.op("Concat", "a b", "ab", axis=1)
    s.gemm(s.op("Tanh", s.add("ab", "c", "sum"), "t"), "y", (C + 4, K))
    return s.model()


def partly_held() -> onnx.ModelProto:
    """A sum whose first channels come from the model's input and must stay, the others need not."""
    s = Sketch("N", 4)
    s.op("Concat", f"x {s.gemm('x', 'a', (4, C))}", "xa", axis=1)
    stream = s.add("xa", s.gemm("x", "b", (4, C + 4)), "sum")
    s.gemm(s.relu(stream), "y", (C + 4, K))
    return s.model()


def half_read() -> onnx.ModelProto:
    """One layer reads all channels of another, one the first half; nothing lies between."""
    s = Sketch("N", 5)
    h = s.gemm("x", "h", (5, C))
    ends = (s.keep(name, ints(value)) for name, value in (("start", 0), ("end", C // 2), ("axis", 1)))
    s.op("Slice", " ".join((h, *ends)), "half")
    s.add(s.gemm(h, "a", (C, K)), s.gemm("half", "b", (C // 2, K)), "y")
    return s.model()


TOPOLOGIES: dict[str, Callable[[], onnx.ModelProto]] = {
    "residual": residual,
    "residual of one layer": residual_of_one,
    "two blocks": two_blocks,
    "projection": projection,
    "pre-activation": pre_activation,
    "residual rows": residual_rows,
    "residual flattened": residual_flattened,
    "nested sums": nested,
    "late sum": late_sum,
    "gate of convs": lambda: squeeze_excite("conv"),
    "gate of gemms, reshape": lambda: squeeze_excite("reshape"),
    "gate of gemms, unsqueeze": lambda: squeeze_excite("unsqueeze"),
    "inverted residual": inverted_residual,
    "glu": glu,
    "swiglu": swiglu,
    "max of three": lambda: several("Max"),
    "min of three": lambda: several("Min"),
    "sum of three": lambda: several("Sum"),
    "mean of three": lambda: several("Mean"),
    "difference": lambda: several("Sub", "a b"),
    "product": lambda: several("Mul", "a b", then="Tanh"),
    "maximum of a layer with itself": lambda: several("Max", "a b a"),
    "choice": choice,
    "slopes of a layer": slopes,
    "two pools": two_pools,
    "depthwise": lambda: depthwise(1),
    "depthwise no bias": lambda: depthwise(1, bias=False),
    "depthwise multiplier": lambda: depthwise(2),
    "depthwise stream": deep_stream,
    "grouped in two": lambda: grouped(2),
    "grouped in four": lambda: grouped(4, 4 * C),
    "grouped in whole blocks": lambda: grouped(8),
    "grouped input": grouped_input,
    "grouped residual": grouped_residual,
    "shuffle": shuffle,
    "shuffle of four": lambda: shuffle(4, 4 * C),
    "channels on two axes": split_axis,
    "dense": dense,
    "skipped": skipped,
    "parted sum": parted_sum,
    "partly held": partly_held,
    "half read": half_read,
}
