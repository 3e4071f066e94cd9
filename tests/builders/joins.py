"""Small models in which tensors are joined, parted, padded, resized and repeated; x of 3 x 6 x 6 gives y."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from builders.chains import K, ints, node
from builders.models import Array
from builders.topologies import Sketch

OPEN = np.iinfo(np.int64).max
FLOATS = np.float32
W = 12
"""Channels in front of the operator."""


def stem(*shape: int | str) -> tuple[Sketch, str]:
    """A model that begins with a Conv of W channels."""
    s = Sketch(*shape)
    return s, s.relu(s.conv("x", "h", (3, W)))


def after(s: Sketch, source: str, width: int, opset: int = 17) -> onnx.ModelProto:
    """A Conv and the mean over all positions end it."""
    s.conv(source, "z", (width, K), 1)
    s.op("GlobalAveragePool", "z", "y")
    return s.model(opset)


def one(
    nodes: Sequence[onnx.NodeProto], width: int, stored: Mapping[str, Array] | None = None, opset: int = 17
) -> onnx.ModelProto:
    """stem -> h.r -> `nodes` -> m -> Conv of `width` channels."""
    s, _ = stem()
    s.nodes += nodes
    for name, value in (stored or {}).items():
        s.keep(name, value)
    return after(s, "m", width, opset)


# -- Concat ----------------------------------------------------------------------------------


def branches(*widths: int, axis: int = 1) -> onnx.ModelProto:
    """Layers of different widths side by side, as in an Inception module."""
    s, h = stem()
    made = [s.relu(s.conv(h, f"b{i}", (W, width), 1 + 2 * (i % 2))) for i, width in enumerate(widths)]
    return after(s, s.op("Concat", " ".join(made), "m", axis=axis), sum(widths))


def with_input() -> onnx.ModelProto:
    """The model's own channels stand in front of and behind those of a layer."""
    s, h = stem()
    return after(s, s.op("Concat", f"x {h} x", "m", axis=1), W + 6)


def with_constant(axis: int) -> onnx.ModelProto:
    """A stored tensor stands beside a layer's: more channels, or more positions of the same."""
    s, h = stem(6, 3, 6, 6)
    s.store("c", *((6, 5, 6, 6) if axis == 1 else (6, W, 2, 6)))
    return after(s, s.op("Concat", f"c {h}", "m", axis=axis), W + 5 * (axis == 1))


def stacked() -> onnx.ModelProto:
    """Joined along positions: the channels of both layers are the same ones."""
    s, h = stem()
    both = s.op("Concat", f"{h} {s.relu(s.conv(h, 'g', (W, W)))}", "m", axis=2)
    return after(s, both, W)


def rows() -> onnx.ModelProto:
    s = Sketch("N", 4, 5)
    joined = s.op("Concat", f"{s.relu(s.rows('x', 'a', (5, W)))} {s.relu(s.rows('x', 'b', (5, 6)))}", "m", axis=-1)
    s.rows(joined, "y", (W + 6, K))
    return s.model()


def dense() -> onnx.ModelProto:
    """DenseNet: each layer reads all before it, behind a norm of its own."""
    s, stream = stem()
    width = W
    for i in range(3):
        inner = s.conv(s.relu(s.norm(stream, f"n{i}", width)), f"a{i}", (width, 8), 1, bias=False)
        grown = s.conv(s.relu(s.norm(inner, f"m{i}", 8)), f"g{i}", (8, 6), bias=False)
        stream, width = s.op("Concat", f"{stream} {grown}", f"c{i}", axis=1), width + 6
    return after(s, s.relu(s.norm(stream, "last", width)), width)


def fire() -> onnx.ModelProto:
    """SqueezeNet: squeeze, then two expansions side by side; twice."""
    s, stream = stem()
    for i in range(2):
        squeeze = s.relu(s.conv(stream, f"s{i}", (W if not i else 16, 6), 1))
        wide = [s.relu(s.conv(squeeze, f"e{i}{kernel}", (6, 8), kernel)) for kernel in (1, 3)]
        stream = s.op("Concat", " ".join(wide), f"f{i}", axis=1)
    return after(s, stream, 16)


def neck() -> onnx.ModelProto:
    """YOLO: half of the channels take a longer way, all are joined, upsampled and joined with a shallower stage."""
    s, h = stem()
    deep = s.op("MaxPool", s.relu(s.conv(h, "d", (W, 16))), "p", kernel_shape=[2, 2], strides=[2, 2])
    s.op("Split", f"{deep} {s.keep('half', ints(8, 8))}", "left right", axis=1)
    longer = s.add("right", s.relu(s.conv(s.relu(s.conv("right", "b1", (8, 6))), "b2", (6, 8))), "b")
    csp = s.relu(s.conv(s.op("Concat", f"left right {longer}", "c", axis=1), "e", (24, 10), 1))
    s.keep("scales", np.array([1, 1, 2, 2], FLOATS))
    up = s.op("Resize", f"{csp} - scales", "up", mode="nearest")
    return after(s, s.op("Concat", f"{up} {h}", "m", axis=1), 10 + W)


def unet() -> onnx.ModelProto:
    """Down, up by a Resize to the size of the skip, and joined with it."""
    s, h = stem()
    down = s.relu(s.conv(h, "down", (W, 16), strides=[2, 2]))
    s.keep("zero", ints(0)), s.keep("two", ints(2)), s.keep("four", ints(4))
    s.op("Shape", down, "mine"), s.op("Shape", h, "theirs")
    s.op("Slice", "mine zero two zero", "lead"), s.op("Slice", "theirs two four zero", "size")
    up = s.op("Resize", f"{down} - - {s.op('Concat', 'lead size', 'target', axis=0)}", "up", mode="linear")
    joined = s.op("Concat", f"{h} {up}", "m", axis=1)
    return after(s, s.relu(s.conv(joined, "out", (W + 16, 8))), 8)


def shuffle() -> onnx.ModelProto:
    """ShuffleNetV2: one half goes through, the other is worked on, and both are shuffled."""
    s, stream = stem()
    for i in range(2):
        s.op("Split", stream, f"l{i} r{i}", axis=1)
        inner = s.relu(s.conv(f"r{i}", f"a{i}", (6, 6), 1))
        worked = s.relu(s.conv(s.conv(inner, f"d{i}", (6, 6), group=6), f"b{i}", (6, 6), 1))
        s.keep(f"s{i}", ints(0, 2, 6, 6, 6)), s.keep(f"t{i}", ints(0, W, 6, 6))
        s.op("Reshape", f"{s.op('Concat', f'l{i} {worked}', f'c{i}', axis=1)} s{i}", f"u{i}")
        stream = s.op("Reshape", f"{s.op('Transpose', f'u{i}', f'v{i}', perm=[0, 2, 1, 3, 4])} t{i}", f"w{i}")
    return after(s, stream, W)


def option_a(opset: int = 17, axes: bool = False) -> onnx.ModelProto:
    """A ResNet whose wider stages add zeros to the channels of the ones before."""
    s, stream = stem()
    s.keep("zero", ints(0, 0)), s.keep("open", ints(OPEN, OPEN)), s.keep("hw", ints(2, 3)), s.keep("two", ints(2, 2))
    for i, width in enumerate((W, W + 4, W + 12)):
        before = (W, W, W + 4)[i]
        inner = s.relu(s.conv(stream, f"a{i}", (before, width), strides=[1 + (i > 0)] * 2))
        if i:
            stream = s.op("Slice", f"{stream} zero open hw two", f"s{i}")
            add = (width - before) // 2
            if opset < 11:
                stream = s.op("Pad", stream, f"p{i}", pads=[0, add, 0, 0, 0, add, 0, 0])
            elif axes:
                s.keep("one", ints(-3)), s.keep(f"both{i}", ints(add, add))
                stream = s.op("Pad", f"{stream} both{i} - one", f"p{i}")
            else:
                stream = s.op("Pad", f"{stream} {s.keep(f'both{i}', ints(0, add, 0, 0, 0, add, 0, 0))}", f"p{i}")
        stream = s.relu(s.add(s.conv(inner, f"b{i}", (width, width)), stream, f"r{i}"))
    return after(s, stream, W + 12, opset)


def sized(how: str) -> onnx.ModelProto:
    """A Reshape and a Resize whose target shapes are taken from tensors with the same channels."""
    s, h = stem()
    for name, value in {"one": ints(1), "hw": ints(12, 12), "lead": ints(0, 1), "flat": ints(36)}.items():
        s.keep(name, value)
    s.op("Shape", h, "shape")
    if how == "resize":
        s.op("Gather", "shape lead", "nc")
        s.op("Cast", "nc", "nc64", to=7)
        s.op("Resize", f"{h} - - {s.op('Concat', 'nc64 hw', 'size', axis=0)}", "m")
    elif how == "expand":
        s.op("GlobalAveragePool", h, "p"), s.op("Expand", "p shape", "m")
    elif how == "reshape":
        s.keep("scalar", np.array(1)), s.keep("axes", ints(0)), s.keep("all", ints(-1))
        s.op("Gather", "shape scalar", "c"), s.op("Unsqueeze", "c axes", "c1")
        s.op("Reshape", f"{h} {s.op('Concat', 'all c1 flat', 'size', axis=0)}", "t")
        s.op("Reshape", "t shape", "m")
    return after(s, "m", W)


def parts(spelled: str, opset: int) -> onnx.ModelProto:
    """A Split in three, each read by a layer of its own."""
    s, h = stem()
    if spelled == "uneven":
        h = s.relu(s.conv(h, "wider", (W, 14)))
    sizes = {"equal": (4, 4, 4), "uneven": (5, 5, 4)}.get(spelled, (3, 5, 4))
    how: dict[str, Any] = {"input": {}, "attribute": {"split": [*sizes]}, "equal": {}, "uneven": {"num_outputs": 3}}
    if spelled == "input":
        s.keep("sizes", ints(*sizes))
    s.op("Split", f"{h} sizes" if spelled == "input" else h, "p0 p1 p2", axis=1, **how[spelled])
    made = [s.conv(f"p{i}", f"q{i}", (size, 6)) for i, size in enumerate(sizes)]
    return after(s, s.op("Sum", " ".join(made), "m"), 6, opset)


def qkv() -> onnx.ModelProto:
    """One of three stacked sets of channels, each picked by a number: x -> (3, N, T, W) -> sum."""
    s = Sketch("N", 4, 5)
    s.rows("x", "h", (5, 3 * W)), s.keep("s", ints(0, 4, 3, W))
    s.op("Transpose", s.op("Reshape", "h s", "h3"), "h4", perm=[2, 0, 1, 3])
    for i in range(3):
        s.keep(f"i{i}", np.array(i)), s.op("Gather", f"h4 i{i}", f"g{i}", axis=0)
    s.rows(s.op("Relu", s.op("Sum", "g0 g1 g2", "g"), "m"), "y", (W, K))
    return s.model()


def chunked() -> onnx.ModelProto:
    """PyTorch's first exporter computes where the halves of x.chunk(2, 1) end, and C // 2 of the result."""
    s, h = stem()
    for name, value in {"zero": ints(0), "one": ints(1), "two": ints(2), "rest": ints(6, 6), "lead": ints(-1)}.items():
        s.keep(name, value)
    s.op("Gather", f"{s.op('Shape', h, 'shape')} one", "c"), s.op("Add", "c one", "c1")
    s.op("Mul", f"{s.op('Div', 'c1 two', 'half')} one", "end"), s.op("Mul", "half two", "last")
    s.op("Slice", f"{h} zero end one", "left"), s.op("Slice", f"{h} end last one", "right")
    s.op("Concat", f"{s.relu(s.conv('right', 'a', (6, 6), 1))} left", "both", axis=1)
    s.op("Gather", f"{s.op('Shape', 'both', 'shape2')} one", "d"), s.op("Div", "d two", "d2")
    s.op("Reshape", f"both {s.op('Concat', 'lead two d2 rest', 'to', axis=0)}", "u")
    s.op("Transpose", "u", "v", perm=[0, 2, 1, 3, 4])
    s.op("Reshape", f"v {s.op('Concat', 'lead d rest', 'back', axis=0)}", "m")
    return after(s, "m", W)


def padded() -> onnx.ModelProto:
    """PyTorch's first exporter turns the sizes of F.pad round in the graph."""
    s, h = stem()
    for name, value in {"six": ints(0, 0, 0, 0, 2, 2), "two": ints(2), "rows": ints(-1, 2), "zero": ints(0)}.items():
        s.keep(name, value)
    s.keep("last", ints(-1)), s.keep("first", ints(-OPEN))
    s.op(
        "Concat",
        f"six {s.op('ConstantOfShape', 'two', 'none', value=numpy_helper.from_array(ints(0)))}",
        "eight",
        axis=0,
    )
    s.op("Slice", f"{s.op('Reshape', 'eight rows', 'pairs')} last first zero last", "turned")
    s.op("Reshape", f"{s.op('Transpose', 'turned', 't', perm=[1, 0])} last", "flat")
    s.op("Pad", f"{h} {s.op('Cast', 'flat', 'sizes', to=7)}", "p")
    both = s.add("p", s.conv(s.relu(s.conv(h, "a", (W, 8))), "b", (8, W + 4)), "m")
    return after(s, both, W + 4)


def take(name: str, spelled: str) -> list[onnx.NodeProto]:
    return [node(name, f"h.r {spelled}")]


def cut(starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None) -> Any:
    """A Slice's inputs, and how many channels it takes."""
    stored = {"s": starts, "e": ends, "a": axes, "t": steps}
    given = {name: value for name, value in stored.items() if value is not None}
    spelled = " ".join(name if name in given else "-" for name in stored).rstrip(" -")
    where = int(np.flatnonzero(axes % 4 == 1)[0]) if axes is not None else 1
    step = 1 if steps is None else int(steps[where])
    width = len(range(W)[slice(int(starts[where]), int(ends[where]), step)])
    return take("Slice", spelled), width, given


def pieces() -> dict[str, Callable[[], onnx.ModelProto]]:
    """Slice, in every spelling."""
    spelled = {
        "middle": cut(ints(3), ints(9), ints(1)),
        "from": cut(ints(4), ints(OPEN), ints(1)),
        "from to its end": cut(ints(4), ints(W), ints(1)),
        "from to beyond": cut(ints(4), ints(50), ints(-3)),
        "to": cut(ints(0), ints(7), ints(1)),
        "from the end": cut(ints(-8), ints(OPEN), ints(1)),
        "to before the end": cut(ints(0), ints(-3), ints(1)),
        "between ends": cut(ints(-9), ints(-2), ints(1)),
        "from far away": cut(ints(-50), ints(-4), ints(1)),
        "no axes": cut(ints(0, 2), ints(50, 10)),
        "several axes": cut(ints(1, 2), ints(5, 10), ints(2, 1), ints(2, 1)),
        "int32": cut(*(np.array([v], np.int32) for v in (2, 9, 1))),
        "reversed": cut(ints(-1), ints(-OPEN), ints(1), ints(-1)),
        "every second": cut(ints(0), ints(OPEN), ints(1), ints(2)),
        "every third between": cut(ints(2), ints(9), ints(1), ints(3)),
        "positions": (take("Slice", "s e a"), W, {"s": ints(1, 0), "e": ints(5, -1), "a": ints(2, 3)}),
    }
    made: dict[str, Callable[[], onnx.ModelProto]] = {
        f"slice {name}": lambda found=found: one(*found)  # type: ignore[misc]
        for name, found in spelled.items()
    }
    old = [node("Slice", "h.r", starts=[3, 0], ends=[10, OPEN], axes=[1, 2])]
    return made | {
        "slice attributes": lambda: one(old, 7, opset=9),
        "slice attributes, no axes": lambda: one([node("Slice", "h.r", starts=[0, 3], ends=[9, 8])], 5, opset=9),
    }


WRITTEN = {"chunk": chunked, "pad": padded}
"""Models whose sizes are computed in the graph although they are known."""
JOINS: dict[str, Callable[[], onnx.ModelProto]] = {
    "concat": lambda: branches(8, 6, 10),
    "concat of two, axis from the end": lambda: branches(6, 8, axis=-3),
    "concat with the input": with_input,
    "concat with a constant": lambda: with_constant(1),
    "concat along positions": stacked,
    "concat along positions with a constant": lambda: with_constant(2),
    "concat with itself": lambda: one([node("Concat", "h.r h.r", axis=1)], 2 * W),
    "concat of rows": rows,
    "dense block": dense,
    "fire": fire,
    "neck": neck,
    "unet": unet,
    "shuffle": shuffle,
    "split sizes": lambda: parts("input", 17),
    "split attribute": lambda: parts("attribute", 11),
    "split equally, 11": lambda: parts("equal", 11),
    "split equally, 13": lambda: parts("equal", 13),
    "split in a number": lambda: parts("uneven", 18),
    "split positions": lambda: one([node("Split", "h.r", "m n", axis=2)], W),
    **pieces(),
    "gather": lambda: one([node("Gather", "h.r i", axis=1)], 5, {"i": ints(1, 4, 5, -2, 0)}),
    "gather twice": lambda: one([node("Gather", "h.r i", axis=-3)], 8, {"i": ints(0, 1, 2, 3, 3, 2, 1, 0)}),
    "gather positions": lambda: one([node("Gather", "h.r i", axis=3)], W, {"i": ints(4, 0)}),
    "gather one position": lambda: one(
        [node("Gather", "h.r i", "a", axis=2), node("Unsqueeze", "a o")], W, {"i": np.array(-2), "o": ints(3)}
    ),
    "gather one of three": qkv,
    "pad positions": lambda: one([node("Pad", "h.r", pads=[0, 0, 1, 1, 0, 0, 1, 1])], W, opset=9),
    "pad": lambda: one([node("Pad", "h.r p")], W + 3, {"p": ints(0, 2, 1, 0, 0, 1, 0, 0)}),
    "pad attribute": lambda: one([node("Pad", "h.r", pads=[0, 2, 1, 0, 0, 1, 0, 0])], W + 3, opset=9),
    "option a": option_a,
    "option a, pad with axes": lambda: option_a(18, axes=True),
    "resize": lambda: one([node("Resize", "h.r - k")], W, {"k": np.array([1, 1, 2, 1.5], FLOATS)}),
    "resize, 10": lambda: one([node("Resize", "h.r k")], W, {"k": np.array([1, 1, 2, 2], FLOATS)}, 10),
    "resize cubic": lambda: one([node("Resize", "h.r - k", mode="cubic")], W, {"k": np.array([1, 1, 2, 2], FLOATS)}),
    "resize axes": lambda: one([node("Resize", "h.r - k", axes=[2, 3])], W, {"k": np.array([2, 2], FLOATS)}, 18),
    "resize to sizes of axes": lambda: one([node("Resize", "h.r - - k", axes=[3, 2])], W, {"k": ints(7, 9)}, 18),
    "upsample, 7": lambda: one([node("Upsample", "h.r", scales=[1.0, 1.0, 2.0, 2.0])], W, opset=7),
    "upsample, 9": lambda: one([node("Upsample", "h.r k")], W, {"k": np.array([1, 1, 2, 2], FLOATS)}, 9),
    **{f"size of another tensor: {how}": lambda how=how: sized(how) for how in ("resize", "reshape", "expand")},  # type: ignore[misc]
    "tile": lambda: one([node("Tile", "h.r r")], W, {"r": ints(1, 1, 2, 1)}),
    "tile channels": lambda: one([node("Tile", "h.r r")], 2 * W, {"r": ints(1, 2, 1, 1)}),
    "expand": lambda: one([node("GlobalAveragePool", "h.r", "a"), node("Expand", "a s")], W, {"s": ints(1, W, 4, 4)}),
    "expand with ones": lambda: one(
        [node("GlobalAveragePool", "h.r", "a"), node("Expand", "a s")], W, {"s": ints(1, 4, 1)}
    ),
    "depth to space": lambda: one([node("DepthToSpace", "h.r", blocksize=2)], W // 4),
    "depth to space, columns last": lambda: one([node("DepthToSpace", "h.r", blocksize=2, mode="CRD")], W // 4),
    "space to depth": lambda: one([node("SpaceToDepth", "h.r", blocksize=2)], 4 * W),
}
"""Models whose groups can all be narrowed, save the last."""
