"""A layer of a kind that is not solved for, between two layers that may be narrowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from builders.chains import C, K, ints, node, random, scalar
from builders.models import Array
from pcns_onnx.ops.normalization import SEVERAL
from pcns_onnx.ops.unsupported import FUSED, MIXES, QUANTISED

WIDE = 12
"""Channels of the two layers that may be narrowed: one in front of what is tested, one behind."""
FRONT = [
    node("MatMul", "x A", "a0"), node("Add", "a0 a1", "a"), node("Relu", "a", "a2"),
    node("MatMul", "a2 B", "b0"), node("Add", "b0 b1", "h"),
]  # fmt: skip
BACK = [node("MatMul", "m D", "d"), node("Relu", "d", "d2"), node("MatMul", "d2 E", "y")]
WEIGHTS = {"A": random(5, WIDE), "a1": random(WIDE), "B": random(WIDE, C), "b1": random(C), "E": random(WIDE, K)}


@dataclass
class Case:
    """h (N, 4, C) -> `middle` -> m (N, 4, any); `name` is what must be listed, with `reason`."""

    middle: list[onnx.NodeProto]
    weights: dict[str, Array]
    name: str
    reason: str
    width: int = C
    domains: tuple[str, ...] = ()
    opset: int = 17
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    sparse: list[onnx.SparseTensorProto] = field(default_factory=list)
    macs: int | None = None

    def build(self, checked: bool = True) -> onnx.ModelProto:
        weights = {**WEIGHTS, "D": random(self.width, WIDE), **self.weights}
        for tensor in self.sparse:
            weights.pop(tensor.values.name, None)
        graph = helper.make_graph(
            [*FRONT, *self.middle, *BACK],
            "test",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 5])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, K])],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
            sparse_initializer=self.sparse,
        )
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(domain, 1) for domain in self.domains)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=self.functions)
        if checked:
            onnx.checker.check_model(model)
        return model


def recurrent(op: str, gates: int, directions: int = 1, initial: bool = False) -> Case:
    """Time first, as onnxruntime wants it; R is computed, so that the layer stays."""
    weights = {"W": random(directions, gates * 3, C), "R": random(directions, gates * 3, 3)}
    inputs = "t W Rs"
    middle = [node("Transpose", "h", "t", perm=[1, 0, 2]), node("ReduceMax", "x", "top", keepdims=0)]
    middle.append(node("Mul", "R top", "Rs"))
    if initial:  # the state begins with what a layer makes of the input
        middle += [
            node("ReduceMean", "x", "xm", axes=[1], keepdims=0),
            node("MatMul", "xm S", "s0"),
            node("Unsqueeze", "s0 zero", "s1"),
        ]
        weights |= {"S": random(5, 3), "zero": ints(0)}
        inputs += " - - s1"
    kinds = {"direction": "bidirectional"} if directions == 2 else {}
    middle += [
        node(op, inputs, "r", hidden_size=3, **kinds),
        node("Transpose", "r", "u", perm=[2, 0, 1, 3]),
        node("Reshape", "u shape", "m"),
    ]
    weights |= {"shape": ints(0, 4, directions * 3)}
    macs = 4 * directions * gates * 3 * (C + 3)
    reason = f"{op} 'r' has weights that are computed, not stored ('R')"
    return Case(middle, weights, "r", reason, directions * 3, macs=macs)


def typed(name: str, kind: int = TensorProto.FLOAT, shape: Sequence[str | int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def control(op: str, shared: bool = False) -> Case:
    """Control flow that reads h from outside or as an input; a `shared` body reads a layer's bias too."""
    weights: dict[str, Array] = {}
    if op == "If":
        branches = [
            helper.make_graph([node(inner, "h", out)], out, [], [typed(out)])
            for inner, out in (("Relu", "then"), ("Neg", "other"))
        ]
        weights["zero"] = scalar(0)
        makes = [node("ReduceMax", "h", "top", keepdims=0), node("Greater", "top zero", "cond")]
        item = helper.make_node("If", ["cond"], ["m"], then_branch=branches[0], else_branch=branches[1])
        return Case([*makes, item], weights, "m", "If 'm' is control flow")
    elif op == "Loop":
        body = helper.make_graph(
            [
                node("Identity", "go", "again"),
                node("MatMul", "state L", "p"),
                node("ReduceMax", "a1" if shared else "L", "top"),
                node("Mul", "h top", "q"),
                node("Add", "p q", "next"),
            ],
            "body",
            [typed("i", TensorProto.INT64, []), typed("go", TensorProto.BOOL, []), typed("state")],
            [typed("again", TensorProto.BOOL, []), typed("next")],
        )
        weights |= {"trips": np.array(2), "cond": np.array(True), "L": random(C, C) * np.float32(0.2)}
        weights |= {"a1": WEIGHTS["a1"]} if shared else {}
        item = helper.make_node("Loop", ["trips", "cond", "h"], ["m"], body=body)
    else:
        body = helper.make_graph(
            [node("Add", "state each", "p"), node("Tanh", "p", "next"), node("Add", "next L", "out")],
            "body",
            [typed("state"), typed("each")],
            [typed("next", shape=["N", C]), typed("out", shape=["N", C])],
        )
        weights |= {"L": random(C)}
        item = helper.make_node(
            "Scan", ["h0", "h"], ["last", "m"], body=body, num_scan_inputs=1,
            scan_input_axes=[1], scan_output_axes=[1],
        )  # fmt: skip
        start = node("ReduceMean", "h", "h0", axes=[1], keepdims=0)
        return Case([start, item], weights, "last", "Scan 'last' is control flow")
    return Case([item], weights, "m", "Loop 'm' is control flow")


def sparsely(name: str, *shape: int) -> onnx.SparseTensorProto:
    """Every third value of a random weight, the others zero."""
    value = random(*shape)
    places = np.arange(0, value.size, 3)
    stored = numpy_helper.from_array(value.reshape(-1)[places], name)
    return helper.make_sparse_tensor(stored, numpy_helper.from_array(places.astype(np.int64)), list(shape))


SCALES = {"s": scalar(0.05), "z": np.array(0, np.int8)}
WQ = np.clip(np.round(random(C, C) * 40), -127, 127).astype(np.int8)
WEIGHT_ONLY = Case([node("DequantizeLinear", "Wq s z", "W"), node("MatMul", "h W", "m")], {**SCALES, "Wq": WQ}, "m", "")
"""Not kept intact: it is here for what it is not."""

SHRUNK = {
    "lstm": recurrent("LSTM", 4),
    "lstm both ways": recurrent("LSTM", 4, 2),
    "gru": recurrent("GRU", 3),
    "rnn": recurrent("RNN", 1, 2),
    "gru with a computed state": recurrent("GRU", 3, initial=True),
    "if": control("If"),
    "loop": control("Loop"),
    "scan": control("Scan"),
    "einsum": Case(
        [node("Einsum", "h W", "m", equation="btc,tcd -> btd")], {"W": random(4, C, 6)}, "m",
        f"Einsum 'm' {MIXES}", 6, macs=4 * C * 6),
    "einsum of an ellipsis": Case(
        [node("Einsum", "h W", "m", equation="...c,c->...c")], {"W": random(C)}, "m", f"Einsum 'm' {MIXES}",
        macs=4 * C),
    "einsum of three": Case(
        [node("Einsum", "h W V", "m", equation="btc,cd,de->bte")], {"W": random(C, 5), "V": random(5, 6)}, "m",
        f"Einsum 'm' {MIXES}", 6, macs=4 * C * 5 * 6),
    "einsum with a quantised weight": Case(
        [node("QuantizeLinear", "h s z", "q"), node("DequantizeLinear", "q s z", "p"),
         node("DequantizeLinear", "Wq s z", "W"), node("Einsum", "p W", "m", equation="btc,cd->btd")],
        {**SCALES, "Wq": WQ}, "m",
        "Einsum 'm' has a quantised weight, and quantising comes after shrinking", macs=4 * C * C),
    "cumulative sum": Case(
        [node("CumSum", "h axis", "m")], {"axis": np.array(-1)}, "h", "CumSum 'm' adds up channels"),
    "triangle": Case([node("Trilu", "h", "m")], {}, "h", "Trilu 'm' keeps other positions of every channel"),
    "layer norm": Case(
        [node("LayerNormalization", "h g", "m")], {"g": random(C)}, "h",
        f"LayerNormalization 'm' {SEVERAL}"),
    "quantised and back": Case(
        [node("QuantizeLinear", "h s z", "q"), node("DequantizeLinear", "q s z", "m")], SCALES, "h",
        f"QuantizeLinear 'q' {QUANTISED}"),
    "quantised weight": Case(
        [node("QuantizeLinear", "h s z", "q"), node("DequantizeLinear", "q s z", "p"),
         node("DequantizeLinear", "Wq s z", "W"), node("MatMul", "p W", "m")], {**SCALES, "Wq": WQ}, "m",
        "MatMul 'm' has a quantised weight, and quantising comes after shrinking", macs=4 * C * C),
    "integer product": Case(
        [node("DynamicQuantizeLinear", "h", "q qs qz"), node("MatMulInteger", "q Wq qz", "i"),
         node("Cast", "i", "f", to=1), node("Mul", "f qs", "m")], {"Wq": WQ}, "i",
        f"MatMulInteger 'i' {QUANTISED}", macs=4 * C * C),
    "quantised conv": Case(
        [node("Transpose", "h", "t", perm=[0, 2, 1]), node("QuantizeLinear", "t s u", "q"),
         node("QLinearConv", "q s u Wc s z s u", "i"), node("DequantizeLinear", "i s u", "j"),
         node("Transpose", "j", "m", perm=[0, 2, 1])],
        {**SCALES, "u": np.array(128, np.uint8), "Wc": WQ[:6, :, None]}, "i",
        f"QLinearConv 'i' {QUANTISED}", 6, macs=4 * C * 6),
    "fused product": Case(
        [node("FusedMatMul", "h W", "m", domain="com.microsoft", alpha=0.5)], {"W": random(C, C)}, "m",
        f"com.microsoft.FusedMatMul 'm' {FUSED}", domains=("com.microsoft",), macs=4 * C * C),
    "not known, without weights": Case(
        [node("Trilu", "h", "m", domain="com.microsoft")], {}, "h",
        "com.microsoft.Trilu 'm' is not understood", domains=("com.microsoft",)),
    "sparse weight": Case(
        [node("MatMul", "h W", "m")], {}, "m", "MatMul 'm' has a sparse weight", 6, sparse=[sparsely("W", C, 6)]),
    "sparse constant": Case(
        [helper.make_node("Constant", [], ["W"], sparse_value=sparsely("", C, 6)), node("MatMul", "h W", "m")], {},
        "m", "MatMul 'm' has a sparse weight", 6),
    "a bias shared with control flow": control("Loop", shared=True),
}  # fmt: skip
"""What runs in onnxruntime."""
