"""Norms between two layers, whole and in pieces: those that treat every channel by itself, and those that mix them."""

from __future__ import annotations

import numpy as np
import onnx

from builders.chains import NORM, C, Chain, ints, node, random, scalar
from pcns_onnx.ops.normalization import SEVERAL

SCALE = {"g": random(C) + 1, "be": random(C)}
NHWC = node("Transpose", "h", "t", perm=[0, 2, 3, 1])
NCHW = node("Transpose", "n", perm=[0, 3, 1, 2])


def layer_norm(source: str = "h", axes: list[int] | None = None) -> list[onnx.NodeProto]:
    """As PyTorch's first exporter writes it below opset 17."""
    axes = axes or [-1]
    return [
        node("ReduceMean", source, "mean", axes=axes),
        node("Sub", f"{source} mean", "d"),
        node("Pow", "d two", "sq"),
        node("ReduceMean", "sq", "var", axes=axes),
        node("Add", "var eps", "ve"),
        node("Sqrt", "ve", "std"),
        node("Div", "d std", "q"),
    ]


PIECES = {"two": scalar(2), "eps": scalar(1e-5)}
PASSED: dict[str, Chain] = {
    "instance norm": Chain([node("InstanceNormalization", "h g be")], SCALE),
    "instance norm 1d": Chain([node("InstanceNormalization", "h g be", epsilon=1e-3)], SCALE, "conv1d", "conv1d"),
    "instance norm and relu": Chain([node("InstanceNormalization", "h g be", "a"), node("Relu", "a")], SCALE),
    "mean variance norm": Chain([node("MeanVarianceNormalization", "h", axes=[0, 2, 3])]),
    "mean variance norm of images": Chain([node("MeanVarianceNormalization", "h", axes=[2, 3])]),
    "mean variance norm negative axes": Chain([node("MeanVarianceNormalization", "h", axes=[-1, -2])]),
    "lp norm of positions": Chain([node("LpNormalization", "h", axis=3, p=2)]),
    "lp norm of rows": Chain([node("LpNormalization", "h", axis=-2, p=1)], {}, "rows", "rows"),
    "layer norm of positions": Chain([node("LayerNormalization", "h w")], {"w": random(6)}),
    "layer norm of all positions": Chain(
        [node("LayerNormalization", "h w v", axis=2)], {"w": random(6, 6), "v": random(6, 6)}
    ),
    "layer norm of columns": Chain(
        [node("Transpose", "h", "t", perm=[0, 2, 1]), node("LayerNormalization", "t w", "n"),
         node("Transpose", "n", perm=[0, 2, 1])], {"w": random(4)}, "rows", "rows"
    ),
    "layer norm in pieces, of positions": Chain([*layer_norm(axes=[2, 3]), node("Mul", "q g3")],
                                                {**PIECES, "g3": random(C, 1, 1)}),
    "rms norm of positions": Chain([node("RMSNormalization", "h w")], {"w": random(6)}, opset=23),
    "lrn of rows": Chain(
        [NHWC, node("LRN", "t", "n", size=3), NCHW]
    ),
    "batch norm in the way": Chain([node("Relu", "h", "a"), node("BatchNormalization", "a g be mu va")], NORM),
    "cumulative sum": Chain([node("CumSum", "h axis")], {"axis": np.array(2)}),
    "cumulative sum of rows": Chain([node("CumSum", "h axis", reverse=1)], {"axis": ints(-2)[0]}, "rows", "rows"),
    "triangle": Chain([node("Trilu", "h k", upper=0)], {"k": np.array(1)}),
}  # fmt: skip
"""What treats every channel by itself."""


def group_norm(groups: int, *rest: int) -> Chain:
    """As both of PyTorch's exporters write it below opset 18: a Reshape to groups and the `rest` in front of a norm."""
    return Chain(
        [
            node("Reshape", "h there", "r"),
            node("InstanceNormalization", "r one zero", "n"),
            node("Reshape", "n back", "b"),
            node("Mul", "b g3", "s"),
            node("Add", "s be3"),
        ],
        {
            "there": ints(0, groups, *(rest or (-1,))), "back": ints(-1, C, 6, 6), "one": np.ones(groups, np.float32),
            "zero": np.zeros(groups, np.float32), "g3": random(C, 1, 1), "be3": random(C, 1, 1),
        },
    )  # fmt: skip


MIXED: dict[str, tuple[Chain, str]] = {
    "layer norm": (
        Chain([node("LayerNormalization", "h g be")], SCALE, "rows", "rows"), f"LayerNormalization 'm' {SEVERAL}"),
    "layer norm of images": (
        Chain([node("LayerNormalization", "h w", axis=1)], {"w": random(C, 6, 6)}),
        f"LayerNormalization 'm' {SEVERAL}"),
    "rms norm": (
        Chain([node("RMSNormalization", "h g")], SCALE, "rows", "rows", opset=23), f"RMSNormalization 'm' {SEVERAL}"),
    "lrn": (Chain([node("LRN", "h", size=3)]), f"LRN 'm' {SEVERAL}"),
    "lp norm": (Chain([node("LpNormalization", "h", axis=1)]), f"LpNormalization 'm' {SEVERAL}"),
    "mean variance norm": (
        Chain([node("MeanVarianceNormalization", "h", axes=[1, 2, 3])]), f"MeanVarianceNormalization 'm' {SEVERAL}"),
    "group norm of one": (group_norm(1), f"InstanceNormalization 'n' {SEVERAL}"),
    "group norm of one, whole": (
        Chain([node("GroupNormalization", "h g be", num_groups=1)], SCALE, opset=21),
        f"GroupNormalization 'm' {SEVERAL}"),
    "layer norm in pieces": (
        Chain([*layer_norm(), node("Mul", "q g", "s"), node("Add", "s be")], {**PIECES, **SCALE}, "rows", "rows"),
        f"ReduceMean 'mean' {SEVERAL}"),
    "layer norm in pieces, of images": (
        Chain([*layer_norm(axes=[1]), node("Mul", "q g3")], {**PIECES, "g3": random(C, 1, 1)}),
        f"ReduceMean 'mean' {SEVERAL}"),
    "rms norm in pieces": (
        Chain([node("Pow", "h two", "sq"), node("ReduceMean", "sq", "ms", axes=[-1]), node("Add", "ms eps", "me"),
               node("Sqrt", "me", "rms"), node("Reciprocal", "rms", "inv"), node("Mul", "h inv")],
              PIECES, "rows", "rows"),
        f"ReduceMean 'ms' {SEVERAL}"),
    "rms norm in other pieces": (
        Chain([node("Mul", "h h", "sq"), node("ReduceMean", "sq", "ms", axes=[1]), node("Add", "ms eps", "me"),
               node("Sqrt", "me", "rms"), node("Div", "one rms", "inv"), node("Mul", "h inv")],
              {**PIECES, "one": scalar(1)}),
        f"ReduceMean 'ms' {SEVERAL}"),
    "l2 norm in pieces": (
        Chain([node("ReduceL2", "h", "l", axes=[1]), node("Clip", "l eps", "c"), node("Shape", "h", "s"),
               node("Expand", "c s", "e"), node("Div", "h e")], PIECES),
        f"ReduceL2 'l' {SEVERAL}"),
    "mean of channels": (
        Chain([node("ReduceMean", "h", "a", axes=[1]), node("Sigmoid", "a", "b"), node("Conv", "b W2", "c"),
               node("Add", "h c")], {"W2": random(1, 1, 1, 1)}),
        "ReduceMean 'a' mixes channels: it reduces over their axis"),
    "computed scale": (
        Chain([node("Relu", "g", "g2"), node("InstanceNormalization", "h g2 be")], SCALE),
        "InstanceNormalization 'm' scales its channels by computed values"),
    "sum over channels": (
        Chain([node("CumSum", "h axis")], {"axis": np.array(1)}), "CumSum 'm' adds up channels"),
    "triangle of channels": (
        Chain([node("Trilu", "h")], {}, "rows", "rows"), "Trilu 'm' keeps other positions of every channel"),
}  # fmt: skip
"""What mixes channels, and what is said of it."""
