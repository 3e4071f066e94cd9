"""Attention in one operator, of ONNX and of onnxruntime: x (N, S, E) -> y (N, S, 5)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from builders.attention import Attention, D, E, H, S
from builders.chains import ints
from builders.models import Array

ONNXRUNTIMES = "com.microsoft"


class Fused(Attention):
    """Projections of Q, K and V by heads, an operator that does the rest, and the layer behind it."""

    opset = 17

    def __init__(self, planted: bool = True) -> None:
        super().__init__(planted)
        self.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", S, E])]
        self.outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", S, 5])]

    def model(self, opset: int = 17) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "test",
            self.inputs,
            self.outputs,
            [numpy_helper.from_array(np.asarray(value), name) for name, value in self.weights.items()],
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(ONNXRUNTIMES, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        onnx.checker.check_model(model)
        return model

    def feed(self, name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> str:
        """One more input of the model."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def expose(self, name: str, *shape: int | str | None) -> None:
        """One more output of the model."""
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def contrib(self, op: str, inputs: str, outputs: str, **attributes: object) -> str:
        return self.op(op, inputs, outputs, domain=ONNXRUNTIMES, **attributes)

    def angles(self, width: int = D) -> str:
        """Tables of cosines and sines, and positions."""
        angle = np.arange(S)[:, None] * 3.0 ** -np.arange(width // 2)[None, :]
        self.keep("cos", np.cos(angle).astype(np.float32))
        self.keep("sin", np.sin(angle).astype(np.float32))
        return self.keep("places", np.zeros(1, np.int64))

    def vector(self, name: str, size: int) -> str:
        return self.keep(name, (0.1 * self.rng.standard_normal(size)).astype(np.float32))


def standard(kv: int = H, planted: bool = True, q: int = H) -> onnx.ModelProto:
    """ai.onnx Attention-23, heads side by side."""
    s = Fused(planted)
    s.opset = 23
    for name, heads in (("q", q), ("k", kv), ("v", kv)):
        s.project("x", name, heads)
    s.op("Attention", "q k v", "joined", q_num_heads=q, kv_num_heads=kv)
    return s.done("joined", q * D)


def standard_4d(kv: int = H, planted: bool = True, q: int = H) -> onnx.ModelProto:
    """ai.onnx Attention-23, heads on an axis of their own."""
    s = Fused(planted)
    s.opset = 23
    for name, heads in (("q", q), ("k", kv), ("v", kv)):
        s.split(s.project("x", name, heads), f"{name}h", [0, 2, 1, 3], (0, 0, heads, D))
    s.op("Attention", "qh kh vh", "context")
    s.op("Transpose", "context", "back", perm=[0, 2, 1, 3])
    s.keep("merged", ints(0, 0, -1))
    return s.done(s.op("Reshape", "back merged", "joined"), q * D)


def standard_rotary(kv: int = H, planted: bool = True, interleaved: int = 0) -> onnx.ModelProto:
    """RotaryEmbedding-23 in front of it."""
    s = Fused(planted)
    s.opset = 23
    s.angles()
    s.keep("where", np.tile(np.arange(S)[None], (1, 1)))
    for name, heads in (("q", H), ("k", kv), ("v", kv)):
        s.project("x", name, heads)
    for name, heads in (("q", H), ("k", kv)):
        s.op("Shape", name, f"{name}.size", end=1)
        s.keep("length", ints(S))
        s.op("Concat", f"{name}.size length", f"{name}.to", axis=0)
        s.op("Expand", f"where {name}.to", f"{name}.where")
        s.op("RotaryEmbedding", f"{name} cos sin {name}.where", f"{name}r", num_heads=heads, interleaved=interleaved)
    s.op("Attention", "qr kr v", "joined", q_num_heads=H, kv_num_heads=kv)
    return s.done("joined")


def multi_head(planted: bool = True, bias: bool = True) -> onnx.ModelProto:
    """com.microsoft MultiHeadAttention, with a bias for all three."""
    s = Fused(planted)
    for name in "qkv":
        s.project("x", name)
    inputs = f"q k v {s.vector('b', 3 * H * D)}" if bias else "q k v"
    s.contrib("MultiHeadAttention", inputs, "joined", num_heads=H)
    return s.done("joined")


def multi_head_rotary(planted: bool = True, interleaved: int = 0) -> onnx.ModelProto:
    """com.microsoft RotaryEmbedding in front of MultiHeadAttention."""
    s = Fused(planted)
    s.angles()
    for name in "qkv":
        s.project("x", name)
    for name in "qk":
        s.contrib("RotaryEmbedding", f"{name} places cos sin", f"{name}r", interleaved=interleaved)
    s.contrib("MultiHeadAttention", "qr kr v", "joined", num_heads=H)
    return s.done("joined")


def packed_weights(planted: bool = True, mask: bool = False) -> onnx.ModelProto:
    """com.microsoft Attention, which has the projections inside."""
    s = Fused(planted)
    parts = [s.rng.standard_normal((E, H * D)) / E**0.5 for _ in range(3)]
    s.keep("qkv", np.concatenate(parts, axis=1).astype(np.float32))
    s.contrib("Attention", f"x qkv {s.vector('b', 3 * H * D)}", "joined", num_heads=H)
    s.nodes[-1].name = "attention"
    return s.done("joined")


def grouped_query(kv: int = 1, planted: bool = True, packed: bool = False) -> onnx.ModelProto:
    """com.microsoft GroupQueryAttention with its lengths stored, causal; heads of 8, as it demands."""
    s = Fused(planted)
    q, width = 2 * kv, 8
    names = {"q": q, "k": kv, "v": kv}
    for name, heads in names.items():
        weight = (s.rng.standard_normal((E, heads * width)) / E**0.5).astype(np.float32)
        s.keep(f"{name}.w", weight)
    if packed:
        s.keep("qkv.w", np.concatenate([s.weights.pop(f"{name}.w") for name in names], axis=1))
        s.op("MatMul", "x qkv.w", "qkv", name="qkv")
    else:
        for name in names:
            s.op("MatMul", f"x {name}.w", name, name=name)
    s.op("Shape", "x", "rows", end=1)
    s.keep("last", np.array([S - 1], np.int32))
    s.op("Expand", "last rows", "lengths")
    s.keep("total", np.array(S, np.int32))
    inputs = "qkv - - - - lengths total" if packed else "q k v - - lengths total"
    s.contrib("GroupQueryAttention", inputs, "joined", num_heads=q, kv_num_heads=kv)
    return s.done("joined", q * width)


def cached(op: str, kv: int, q: int, past: bool) -> onnx.ModelProto:
    """A decoder's step with its cache, and an FFN behind it."""
    s = Fused(False)
    s.opset = 23
    for name, heads in (("q", q), ("k", kv), ("v", kv)):
        s.project("x", name, heads)
    inputs = ["q", "k", "v"]
    if past:
        gap = ["-"] if op == "Attention" else ["-"] * 3
        inputs += [*gap, s.feed("past_k", "N", kv, "P", D), s.feed("past_v", "N", kv, "P", D)]
    for name in "kv":
        s.expose(f"present_{name}", "N", kv, None, D)
    if op == "Attention":
        s.op(op, " ".join(inputs), "joined present_k present_v", q_num_heads=q, kv_num_heads=kv)
    else:
        s.contrib(op, " ".join(inputs), "joined present_k present_v", num_heads=q)
    s.keep("up", np.tile(s.rng.standard_normal((q * D, 8)) / 4, 2).astype(np.float32))
    s.op("Relu", s.op("MatMul", "joined up", "h", name="up"), "r")
    return s.done("r", 16)


FORMS: dict[str, Callable[[], onnx.ModelProto]] = {
    "Attention-23": standard,
    "Attention-23, shared heads": lambda: standard(2, q=4),
    "Attention-23, four axes": standard_4d,
    "Attention-23, four axes, shared heads": lambda: standard_4d(2, q=4),
    "RotaryEmbedding-23": standard_rotary,
    "RotaryEmbedding-23, interleaved, one head for all": lambda: standard_rotary(1, interleaved=1),
    "MultiHeadAttention": multi_head,
    "MultiHeadAttention without bias": lambda: multi_head(bias=False),
    "RotaryEmbedding": multi_head_rotary,
    "RotaryEmbedding, interleaved": lambda: multi_head_rotary(interleaved=1),
}
"""Whose heads lose dimensions."""


def samples(count: int = 300) -> Array:
    return np.random.default_rng(7).standard_normal((count, S, E)).astype(np.float32)
