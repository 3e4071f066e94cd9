"""Small chains around every operator: x -> a layer -> h -> the operator -> m -> a layer -> y."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from builders.models import Array, build
from pcns_onnx.ops.elementwise import UNARY

C, K = 8, 4
"""Channels of the hidden layer, outputs of the model."""
CHW = C * 36
"""Columns of the hidden layer behind a Conv, flattened."""
BATCH = 6
"""Samples that are run: not the 2 that shapes are inferred with."""


def random(*shape: int) -> Array:
    """Reproducible weights, different for every shape."""
    return np.random.default_rng([7, *shape]).standard_normal(shape).astype(np.float32) * np.float32(0.5)


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def node(op: str, inputs: str, output: str = "m", **attributes: Any) -> onnx.NodeProto:
    """A node whose inputs and outputs are given as words; '-' is an absent one."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, names, output.split(), **attributes)


@dataclass(frozen=True)
class Chain:
    """x -> front -> h -> `middle` -> m -> back -> y; an empty middle makes the back read h."""

    middle: Sequence[onnx.NodeProto] = ()
    weights: Mapping[str, Array] = field(default_factory=dict)
    front: str = "conv"
    back: str = "conv"
    opset: int = 17
    batch: int | str = "N"

    def build(self) -> onnx.ModelProto:
        shape, front, front_weights = FRONTS[self.front]
        source = "m" if self.middle else "h"
        back, back_weights = BACKS[self.back]
        nodes = [*front, *self.middle, *(_renamed(item, "m", source) for item in back)]
        weights = {**front_weights, **back_weights, **self.weights}
        return build(nodes, weights, (self.batch, *shape), opset=self.opset)


def _renamed(item: onnx.NodeProto, old: str, new: str) -> onnx.NodeProto:
    twin = onnx.NodeProto()
    twin.CopyFrom(item)
    for position, name in enumerate(item.input):
        twin.input[position] = new if name == old else name
    return twin


Part = tuple[list[onnx.NodeProto], dict[str, Array]]
FRONTS: dict[str, tuple[tuple[int, ...], list[onnx.NodeProto], dict[str, Array]]] = {
    "conv": ((3, 6, 6), [node("Conv", "x W0 b0", "h", pads=[1] * 4)], {"W0": random(C, 3, 3, 3), "b0": random(C)}),
    "conv1d": ((3, 9), [node("Conv", "x W0 b0", "h", pads=[1] * 2)], {"W0": random(C, 3, 3), "b0": random(C)}),
    "gemm": ((5,), [node("Gemm", "x W0 b0", "h")], {"W0": random(5, C), "b0": random(C)}),
    "rows": (
        (4, 5),
        [node("MatMul", "x W0", "h0"), node("Add", "h0 b0", "h")],
        {"W0": random(5, C), "b0": random(C)},
    ),
}
BACKS: dict[str, Part] = {
    "conv": ([node("Conv", "m W1 b1", "y")], {"W1": random(K, C, 3, 3), "b1": random(K)}),
    "conv1d": ([node("Conv", "m W1", "y")], {"W1": random(K, C, 3)}),
    "gemm": ([node("Gemm", "m W1 b1", "y")], {"W1": random(C, K), "b1": random(K)}),
    "wide": ([node("Gemm", "m W1 b1", "y", transB=1)], {"W1": random(K, CHW), "b1": random(K)}),
    "pooled": ([node("Gemm", "m W1 b1", "y", transB=1)], {"W1": random(K, C * 9), "b1": random(K)}),
    "rows": ([node("MatMul", "m W1", "y")], {"W1": random(C, K)}),
}


def conv_pair(spatial: int, bias: bool = True, **attributes: Any) -> onnx.ModelProto:
    """Two Convs of the same kind with a Relu between: the kind is tested as writer and as reader."""
    kernel = (3, 2)[:spatial]
    tail = " b{}" if bias else ""
    nodes = [
        node("Conv", "x W0" + tail.format(0), "h", **attributes),
        node("Relu", "h"),
        node("Conv", "m W1" + tail.format(1), "y", **attributes),
    ]
    weights = {"W0": random(C, 3, *kernel), "W1": random(K, C, *kernel)}
    if bias:
        weights |= {"b0": random(C), "b1": random(K)}
    return build(nodes, weights, ("N", 3, *(19, 17)[:spatial]))


def gemm_pair(bias: tuple[int, ...] | None = (0,), **attributes: Any) -> onnx.ModelProto:
    """Two Gemms with a Relu between; a 0 in the bias' shape stands for the layer's width."""
    weights: dict[str, Array] = {}
    for index, (rows, columns) in enumerate(((5, C), (C, K))):
        weights[f"W{index}"] = random(*((columns, rows) if attributes.get("transB") else (rows, columns)))
        if bias is not None:
            weights[f"b{index}"] = random(*(d or columns for d in bias)) * np.float32(0.3)
    tail = "" if bias is None else " b{}"
    nodes = [
        node("Gemm", "x W0" + tail.format(0), "h", **attributes),
        node("Relu", "h"),
        node("Gemm", "m W1" + tail.format(1), "y", **attributes),
    ]
    return build(nodes, weights, ("N", 5))


def gemm_trans_a() -> onnx.ModelProto:
    nodes = [
        node("Gemm", "x W0 b0", "h", transA=1, alpha=0.5),
        node("Relu", "h", "r"),
        node("Transpose", "r", "m", perm=[1, 0]),
        node("Gemm", "m W1 b1", "y", transA=1, transB=1, beta=2.0),
    ]
    return build(nodes, {"W0": random(5, C), "b0": random(1, C), "W1": random(K, C), "b1": random(K)}, (5, 7))


def matmul_pair(shape: tuple[int, ...], order: str = "sum bias", bias: tuple[int, ...] = (0,)) -> onnx.ModelProto:
    """MatMul and Add twice; `order` names the Add's operands."""
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, Array] = {"W0": random(5, C), "W1": random(C, K)}
    for index, (source, output, width) in enumerate((("x", "h", C), ("m", "y", K))):
        operands = order.replace("sum", f"s{index}").replace("bias", f"b{index}")
        nodes += [node("MatMul", f"{source} W{index}", f"s{index}"), node("Add", operands, output)]
        weights[f"b{index}"] = random(*(d or width for d in bias))
        if not index:
            nodes.append(node("Relu", "h"))
    return build(nodes, weights, ("N", *shape, 5))


LAYERS: dict[str, onnx.ModelProto] = {
    "conv1d": conv_pair(1),
    "conv1d stride dilation": conv_pair(1, strides=[2], dilations=[2], pads=[1, 3]),
    "conv1d same": conv_pair(1, auto_pad="SAME_UPPER", strides=[2]),
    "conv2d": conv_pair(2),
    "conv2d no bias": conv_pair(2, bias=False, pads=[1, 1, 1, 1]),
    "conv2d stride": conv_pair(2, strides=[2, 3]),
    "conv2d dilation": conv_pair(2, dilations=[2, 3], pads=[2, 1, 2, 1]),
    "conv2d asymmetric": conv_pair(2, pads=[0, 1, 2, 3], strides=[2, 1]),
    "conv2d same upper": conv_pair(2, auto_pad="SAME_UPPER"),
    "conv2d same upper stride": conv_pair(2, auto_pad="SAME_UPPER", strides=[2, 3]),
    "conv2d same lower": conv_pair(2, auto_pad="SAME_LOWER"),
    "conv2d same lower stride": conv_pair(2, auto_pad="SAME_LOWER", strides=[3, 2]),
    "conv2d valid": conv_pair(2, auto_pad="VALID"),
    "conv2d kernel_shape": conv_pair(2, kernel_shape=[3, 2], group=1),
    "gemm": gemm_pair(),
    "gemm transB": gemm_pair(transB=1),
    "gemm alpha beta": gemm_pair(alpha=0.3, beta=1.7),
    "gemm all attributes": gemm_pair((1, 0), transB=1, alpha=-2.0, beta=0.5),
    "gemm row bias": gemm_pair((1, 0)),
    "gemm scalar bias": gemm_pair((), beta=0.5),
    "gemm one-element bias": gemm_pair((1,)),
    "gemm one-by-one bias": gemm_pair((1, 1)),
    "gemm no bias": gemm_pair(None, alpha=0.5),
    "gemm transA": gemm_trans_a(),
    "matmul add": matmul_pair(()),
    "matmul add swapped": matmul_pair((), order="bias sum"),
    "matmul add row bias": matmul_pair((), bias=(1, 0)),
    "matmul 3d": matmul_pair((4,)),
    "matmul 3d swapped": matmul_pair((4,), order="bias sum"),
    "matmul 4d": matmul_pair((2, 3)),
    "matmul 3d long bias": matmul_pair((4,), bias=(1, 1, 0)),
    "einsum": build(
        [
            node("Einsum", "x W0", "s0", equation="nlc,co->nlo"),
            node("Add", "s0 b0", "h"),
            node("Relu", "h"),
            node("Einsum", "m W1", "y", equation="...c,oc->...o"),
        ],
        {"W0": random(5, C), "b0": random(C), "W1": random(K, C)},
        ("N", 4, 5),
    ),
    "matmul no add": build(
        [node("MatMul", "x W0", "h"), node("Relu", "h"), node("MatMul", "m W1", "y")],
        {"W0": random(5, C), "W1": random(C, K)},
        ("N", 4, 5),
    ),
}
"""Layer types: each stands twice in its model, as writer and as reader."""

POSITIVE = ("Log", "Sqrt", "Reciprocal", "Acos", "Asin", "Atanh")
"""Operators that want values in (0, 1)."""
TO_BOOL = ("IsInf", "IsNaN", "Not")
UNKNOWN_TO_ONNXRUNTIME = ("Swish",)
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "Celu": {"alpha": 0.7},
    "Elu": {"alpha": 1.3},
    "Gelu": {"approximate": "tanh"},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.4},
    "LeakyRelu": {"alpha": 0.1},
    "Shrink": {"lambd": 0.2, "bias": 0.1},
    "ThresholdedRelu": {"alpha": 0.4},
}


def unary_chain(op: str) -> Chain:
    before = {"Acosh": "Cosh"} | dict.fromkeys(POSITIVE, "Sigmoid")
    nodes = [node(before[op], "h", "p")] if op in before else []
    nodes.append(node(op, "p" if nodes else "h", **ATTRIBUTES.get(op, {})))
    return Chain(nodes, opset=20)


def scalar(value: float) -> Array:
    return np.array(value, dtype=np.float32)


PER_CHANNEL = {
    "C11": Chain([node("{}", "h c")], {"c": random(C, 1, 1)}),
    "1C11": Chain([node("{}", "h c")], {"c": random(1, C, 1, 1)}),
    "C11 first": Chain([node("{}", "c h")], {"c": random(C, 1, 1)}),
    "CHW": Chain([node("{}", "h c")], {"c": random(C, 6, 6)}),
    "last axis": Chain([node("{}", "h c")], {"c": random(C)}, "rows", "rows"),
    "last axis long": Chain([node("{}", "h c")], {"c": random(1, 1, C)}, "rows", "rows"),
    "per position": Chain([node("{}", "h c")], {"c": random(4, 1)}, "rows", "rows"),
    "row": Chain([node("{}", "h c")], {"c": random(1, C)}, "gemm", "gemm"),
    "scalar": Chain([node("{}", "h c")], {"c": scalar(1.5)}),
    "one element": Chain([node("{}", "h c")], {"c": random(1)}),
}
"""Constants beside a binary operator, by shape."""


def with_op(chain: Chain, op: str) -> Chain:
    twin = onnx.NodeProto()
    twin.CopyFrom(chain.middle[0])
    twin.op_type = op
    return replace(chain, middle=[twin])


NORM = {"g": random(C), "be": random(C), "mu": random(C), "va": random(C) ** 2 + 1}
SHAPE_PIECES = [
    node("Shape", "h", "s"),
    node("Gather", "s zero", "n"),
    node("Unsqueeze", "n axes", "n1"),
    node("Concat", "n1 rest", "shape", axis=0),
    node("Reshape", "h shape"),
]
"""How PyTorch's first exporter writes x.view(x.size(0), ...)."""
AXIS = {"zero": np.array(0, dtype=np.int64), "axes": ints(0)}
HALF, ONE, ROOT2 = scalar(0.5), scalar(1.0), scalar(2**0.5)
NHWC = [node("Transpose", "h", "t", perm=[0, 2, 3, 1])]

CHAINS: dict[str, Chain] = {
    # activations ------------------------------------------------------------------------------
    **{f"unary {op}": unary_chain(op) for op in UNARY if op not in ("Cast", *TO_BOOL, *UNKNOWN_TO_ONNXRUNTIME)},
    "prelu per channel": Chain([node("PRelu", "h c")], {"c": random(C, 1, 1)}),
    "prelu shared": Chain([node("PRelu", "h c")], {"c": random(1)}),
    "prelu rows": Chain([node("PRelu", "h c")], {"c": random(C)}, "rows", "rows"),
    "clip inputs": Chain([node("Clip", "h lo hi")], {"lo": scalar(-0.2), "hi": scalar(0.6)}),
    "clip upper only": Chain([node("Clip", "h - hi")], {"hi": scalar(0.6)}),
    "clip attributes": Chain([node("Clip", "h", min=-0.2, max=0.6)], opset=10),
    "gelu op": Chain([node("Gelu", "h")], front="rows", back="rows", opset=20),
    "gelu erf": Chain(
        [
            node("Div", "h root2", "a1"),
            node("Erf", "a1", "a2"),
            node("Add", "a2 one", "a3"),
            node("Mul", "h a3", "a4"),
            node("Mul", "a4 half"),
        ],
        {"root2": ROOT2, "one": ONE, "half": HALF},
        "rows",
        "rows",
    ),
    "gelu tanh": Chain(
        [
            node("Pow", "h three", "a1"),
            node("Mul", "a1 c1", "a2"),
            node("Add", "h a2", "a3"),
            node("Mul", "a3 c2", "a4"),
            node("Tanh", "a4", "a5"),
            node("Add", "a5 one", "a6"),
            node("Mul", "h a6", "a7"),
            node("Mul", "half a7"),
        ],
        {"three": scalar(3), "c1": scalar(0.044715), "c2": scalar(0.79788456), "one": ONE, "half": HALF},
        "rows",
        "rows",
    ),
    "silu": Chain([node("Sigmoid", "h", "a"), node("Mul", "h a")]),
    "hardswish decomposed": Chain([node("HardSigmoid", "h", "a", alpha=1 / 6, beta=0.5), node("Mul", "a h")]),
    "mish decomposed": Chain([node("Softplus", "h", "a"), node("Tanh", "a", "b"), node("Mul", "h b")]),
    "softplus of torch's second exporter": Chain(
        [node("Softplus", "h", "a"), node("Greater", "h t", "over"), node("Where", "over h a")], {"t": scalar(0.3)}
    ),
    "bool mask": Chain([node("IsNaN", "h", "a"), node("Not", "a", "b"), node("Cast", "b", to=TensorProto.FLOAT)]),
    "maximum of itself": Chain([node("Neg", "h", "a"), node("Max", "h a")]),
    # identities -------------------------------------------------------------------------------
    "dropout": Chain([node("Dropout", "h ratio")], {"ratio": HALF}),
    "dropout off": Chain([node("Dropout", "h ratio off")], {"ratio": HALF, "off": np.array(False)}),
    "dropout attribute": Chain([node("Dropout", "h", ratio=0.5)], opset=10),
    "identity": Chain([node("Identity", "h")]),
    "cast round trip": Chain([node("Cast", "h", "a", to=TensorProto.DOUBLE), node("Cast", "a", to=TensorProto.FLOAT)]),
    "cast like": Chain([node("CastLike", "h like")], {"like": random(1)}),
    # constants per channel --------------------------------------------------------------------
    **{
        f"{op} {name}": with_op(chain, op)
        for op in ("Add", "Sub", "Mul", "Div")
        for name, chain in PER_CHANNEL.items()
        if not (op == "Div" and "first" in name)
    },
    "where per channel": Chain(
        [node("Greater", "h t", "over"), node("Where", "over c h")], {"t": random(C, 1, 1), "c": random(C, 1, 1)}
    ),
    "norm behind relu": Chain([node("Relu", "h", "a"), node("BatchNormalization", "a g be mu va")], NORM),
    "norm of rows": Chain([node("Relu", "h", "a"), node("BatchNormalization", "a g be mu va")], NORM, "gemm", "gemm"),
    "norm behind flatten": Chain(
        [node("Flatten", "h", "a"), node("BatchNormalization", "a g be mu va")],
        {"g": random(CHW), "be": random(CHW), "mu": random(CHW), "va": random(CHW) ** 2 + 1},
        back="wide",
    ),
    # pools ------------------------------------------------------------------------------------
    "max pool": Chain([node("MaxPool", "h", kernel_shape=[2, 2])]),
    "max pool padded": Chain([node("MaxPool", "h", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])]),
    "average pool": Chain([node("AveragePool", "h", kernel_shape=[2, 2], pads=[1, 0, 0, 1], count_include_pad=1)]),
    "lp pool": Chain([node("LpPool", "h", kernel_shape=[2, 2], p=2)]),
    "max pool 1d": Chain([node("MaxPool", "h", kernel_shape=[2])], front="conv1d", back="conv1d"),
    "pool and flatten": Chain(
        [node("MaxPool", "h", "a", kernel_shape=[2, 2], strides=[2, 2]), node("Flatten", "a")], back="pooled"
    ),
    **{
        f"{op} {how}": Chain([node(op, "h", "a"), last], weights, back="gemm")
        for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
        for how, last, weights in (
            ("flatten", node("Flatten", "a"), {}),
            ("squeeze", node("Squeeze", "a axes"), {"axes": ints(2, 3)}),
            ("reshape", node("Reshape", "a shape"), {"shape": ints(-1, C)}),
        )
    },
    "reduce mean attribute": Chain([node("ReduceMean", "h", axes=[2, 3], keepdims=0)], back="gemm"),
    "reduce mean negative axes": Chain([node("ReduceMean", "h", axes=[-1, -2], keepdims=0)], back="gemm"),
    "reduce mean keepdims": Chain([node("ReduceMean", "h", "a", axes=[2, 3]), node("Flatten", "a")], back="gemm"),
    "reduce mean input": Chain([node("ReduceMean", "h axes", keepdims=0)], {"axes": ints(2, 3)}, back="gemm", opset=18),
    "reduce mean input keepdims": Chain(
        [node("ReduceMean", "h axes", "a"), node("Flatten", "a")], {"axes": ints(-2, -1)}, back="gemm", opset=18
    ),
    "reduce mean noop": Chain([node("ReduceMean", "h", noop_with_empty_axes=1)], opset=18),
    "reduce sum rows": Chain(
        [node("ReduceSum", "h axes", keepdims=0)], {"axes": ints(1)}, "rows", "gemm"
    ),
    "reduce max": Chain([node("ReduceMax", "h", axes=[2], keepdims=0)], back="conv1d"),
    "pad": Chain([node("Pad", "h pads")], {"pads": ints(0, 0, 1, 2, 0, 0, 0, 1)}),
    "pad attribute": Chain([node("Pad", "h", pads=[0, 0, 1, 0, 0, 0, 0, 1], value=0.5)], opset=9),
    "pad axes": Chain([node("Pad", "h pads - axes", mode="reflect")], {"pads": ints(1, 2), "axes": ints(-1)}, opset=18),
    # movement ---------------------------------------------------------------------------------
    "flatten": Chain([node("Flatten", "h")], back="wide"),
    "flatten negative axis": Chain([node("Flatten", "h", axis=-3)], back="wide"),
    "reshape 0 -1": Chain([node("Reshape", "h shape")], {"shape": ints(0, -1)}, back="wide"),
    "reshape -1 CHW": Chain([node("Reshape", "h shape")], {"shape": ints(-1, CHW)}, back="wide"),
    "reshape N CHW": Chain([node("Reshape", "h shape")], {"shape": ints(BATCH, CHW)}, back="wide", batch=BATCH),
    "reshape N -1": Chain([node("Reshape", "h shape")], {"shape": ints(BATCH, -1)}, back="wide", batch=BATCH),
    "reshape 1 -1": Chain([node("Reshape", "h shape")], {"shape": ints(1, -1)}, back="wide", batch=1),
    "reshape to C HW": Chain([node("Reshape", "h shape")], {"shape": ints(0, C, 36)}, back="conv1d"),
    "reshape to -1 HW": Chain([node("Reshape", "h shape")], {"shape": ints(0, -1, 36)}, back="conv1d"),
    "reshape there and back": Chain(
        [node("Reshape", "h there", "a"), node("Relu", "a", "b"), node("Reshape", "b back")],
        {"there": ints(0, 0, 36), "back": ints(-1, C, 6, 6)},
    ),
    "reshape rows": Chain([node("Reshape", "h shape")], {"shape": ints(-1, C)}, "rows", "gemm"),
    "reshape by a constant node": Chain(
        [helper.make_node("Constant", [], ["shape"], value_ints=[-1, CHW]), node("Reshape", "h shape")], back="wide"
    ),
    "reshape of an exporter, -1": Chain(SHAPE_PIECES, {**AXIS, "rest": ints(-1)}, back="wide"),
    "reshape of an exporter, literal": Chain(SHAPE_PIECES, {**AXIS, "rest": ints(CHW)}, back="wide"),
    "reshape of an exporter, pieces": Chain(SHAPE_PIECES, {**AXIS, "rest": ints(C, 36)}, back="conv1d"),
    "reshape by a slice of the shape": Chain(
        [
            node("Shape", "h", "s"),
            node("Slice", "s zeros ones", "n1"),
            node("Concat", "n1 rest", "shape", axis=0),
            node("Reshape", "h shape"),
        ],
        {"zeros": ints(0), "ones": ints(1), "rest": ints(CHW)},
        back="wide",
    ),
    "reshape by part of the shape": Chain(
        [
            node("Shape", "h", "n1", start=0, end=1),
            node("Shape", "h", "hw", start=-2),
            node("Concat", "n1 all hw", "shape", axis=0),
            node("Reshape", "h shape"),
        ],
        {"all": ints(-1)},
    ),
    "reshape to its own shape": Chain(
        [node("Shape", "h", "s"), node("Gather", "s one", "n"), node("Reshape", "h s")], {"one": ints(1)}
    ),
    "reshape by a number of channels that is sliced": Chain(
        [
            node("Shape", "h", "s"),
            node("Slice", "s one two", "n"),
            node("Concat", "zero n hw", "shape", axis=0),
            node("Reshape", "h shape"),
        ],
        {"zero": ints(0), "one": ints(1), "two": ints(2), "hw": ints(36)},
        back="conv1d",
    ),
    "padded channels": Chain(
        [node("Pad", "h p", "a"), node("Slice", "a s e i")],
        {"p": ints(0, 1, 0, 0, 0, 0, 0, 0), "s": ints(1), "e": ints(99), "i": ints(1)},
    ),
    "unsqueeze squeeze": Chain(
        [node("Unsqueeze", "h axes", "a"), node("Relu", "a", "b"), node("Squeeze", "b axes")],
        {"axes": ints(2)},
        "conv1d",
        "conv1d",
    ),
    "squeeze attribute": Chain(
        [node("GlobalAveragePool", "h", "a"), node("Squeeze", "a", axes=[2, 3])], back="gemm", opset=12
    ),
    "transpose and flatten": Chain([*NHWC, node("Flatten", "t")], back="wide"),
    "transpose and reshape": Chain(
        [*NHWC, node("Reshape", "t shape")], {"shape": ints(-1, CHW)}, back="wide"
    ),
    "transpose and rows": Chain([*NHWC, node("Relu", "t")], back="rows"),
    "transpose and bias": Chain([*NHWC, node("Add", "t c")], {"c": random(C)}, back="rows"),
    "transpose there and back": Chain([*NHWC, node("Relu", "t", "r"), node("Transpose", "r", perm=[0, 3, 1, 2])]),
    "transpose default": Chain(
        [node("Transpose", "h", "a"), node("Relu", "a", "b"), node("Transpose", "b")], front="rows", back="rows"
    ),
    "tokens": Chain(
        [node("Reshape", "h shape", "a"), node("Transpose", "a", "m", perm=[0, 2, 1])],
        {"shape": ints(0, C, -1)},
        back="rows",
    ),
}  # fmt: skip
"""Chains through every operator that channels pass."""

MODELS = {**LAYERS, **{name: chain.build() for name, chain in CHAINS.items()}}
