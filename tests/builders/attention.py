"""Attention in each of the ways in which exporters spell it: x (N, S, E) -> y (N, S, 5)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from builders.chains import ints
from builders.models import Array
from builders.topologies import Sketch

S, E, H, D = 6, 12, 3, 4
"""Positions, width of the stream, heads, dimensions of a head."""
RANK = 2
"""Dimensions that a planted head really uses."""


def low_rank(rng: np.random.Generator, rows: int, heads: int) -> Array:
    """(rows, heads * D) whose heads have rank `RANK` each."""
    parts = [rng.standard_normal((rows, RANK)) @ rng.standard_normal((RANK, D)) for _ in range(heads)]
    return np.asarray(np.concatenate(parts, axis=1) / rows**0.5, dtype=np.float32)


class Attention(Sketch):
    """x (N, S, E) -> attention -> y (N, S, 5), spelled in one of several ways."""

    def __init__(self, planted: bool = True) -> None:
        super().__init__("N", S, E)
        self.rng = np.random.default_rng(3)
        self.planted = planted

    def project(self, source: str, name: str, heads: int = H) -> str:
        """A layer to all heads, without bias so that a planted rank is the rank of what comes out."""
        width = heads * D
        weight = low_rank(self.rng, E, heads) if self.planted else self.rng.standard_normal((E, width)) / E**0.5
        self.keep(f"{name}.w", np.asarray(weight, dtype=np.float32))
        return self.op("MatMul", f"{source} {name}.w", name, name=name)

    def split(self, source: str, name: str, perm: list[int], shape: tuple[int, ...] = (0, 0, H, D)) -> str:
        self.keep(f"{name}.shape", ints(*shape))
        self.op("Reshape", f"{source} {name}.shape", f"{name}.heads")
        return self.op("Transpose", f"{name}.heads", name, perm=perm)

    def attend(self, q: str, k: str, v: str, *, scale: str = "scale") -> str:
        """softmax(q kᵀ scale) v and the output layer; k is transposed already."""
        if scale == "scale":
            self.keep("scale", np.asarray(D**-0.5, dtype=np.float32))
        self.op("MatMul", f"{q} {k}", "scores")
        self.op("Mul", f"scores {scale}", "scaled")
        self.op("Softmax", "scaled", "weights", axis=-1)
        self.op("MatMul", f"weights {v}", "context")
        self.op("Transpose", "context", "back", perm=[0, 2, 1, 3])
        self.keep("merged", ints(0, 0, -1))
        return self.op("Reshape", "back merged", "joined")

    def done(self, source: str, width: int = H * D) -> onnx.ModelProto:
        self.keep("o.w", (self.rng.standard_normal((width, 5)) / width**0.5).astype(np.float32))
        self.op("MatMul", f"{source} o.w", "y", name="o")
        return self.model()


def separate(planted: bool = True) -> onnx.ModelProto:
    s = Attention(planted)
    q, k, v = (s.project("x", name) for name in ("q", "k", "v"))
    q, k, v = s.split(q, "qh", [0, 2, 1, 3]), s.split(k, "kh", [0, 2, 3, 1]), s.split(v, "vh", [0, 2, 1, 3])
    return s.done(s.attend(q, k, v))


def scaled_by_shape(planted: bool = True) -> onnx.ModelProto:
    """As F.scaled_dot_product_attention is exported: the scale is computed from the width of q."""
    s = Attention(planted)
    q, k, v = (s.project("x", name) for name in ("q", "k", "v"))
    q, k, v = s.split(q, "qh", [0, 2, 1, 3]), s.split(k, "kh", [0, 2, 3, 1]), s.split(v, "vh", [0, 2, 1, 3])
    s.op("Shape", q, "size")
    s.op("Gather", f"size {s.keep('last', np.asarray(-1))}", "width")
    s.op("Cast", "width", "number", to=onnx.TensorProto.FLOAT)
    s.op("Sqrt", "number", "root")
    s.op("Reciprocal", "root", "one_by_root")
    return s.done(s.attend(q, k, v, scale="one_by_root"))


def fused_split(planted: bool = True) -> onnx.ModelProto:
    s = Attention(planted)
    s.project("x", "qkv", 3 * H)
    s.keep("thirds", ints(H * D, H * D, H * D))
    s.op("Split", "qkv thirds", "q k v", axis=2)
    q, k, v = s.split("q", "qh", [0, 2, 1, 3]), s.split("k", "kh", [0, 2, 3, 1]), s.split("v", "vh", [0, 2, 1, 3])
    return s.done(s.attend(q, k, v))


def fused_gather(planted: bool = True) -> onnx.ModelProto:
    """As timm writes it: (N, S, 3, H, D), permuted, q = qkv[0]."""
    s = Attention(planted)
    s.project("x", "qkv", 3 * H)
    s.split("qkv", "all", [2, 0, 3, 1, 4], (0, 0, 3, H, D))
    q, k, v = (s.op("Gather", f"all {s.keep(f'at{i}', np.asarray(i))}", n, axis=0) for i, n in enumerate("qkv"))
    s.op("Transpose", k, "kt", perm=[0, 1, 3, 2])
    return s.done(s.attend(q, "kt", v))


def einsum(planted: bool = True, *, key_first: bool = False) -> onnx.ModelProto:
    """As `torch.einsum` is exported; `separate` with its products spelled so."""
    s = Attention(planted)
    q, k, v = (s.project("x", name) for name in ("q", "k", "v"))
    q, k, v = (s.split(t, f"{t}h", [0, 2, 1, 3]) for t in (q, k, v))
    s.keep("scale", np.asarray(D**-0.5, dtype=np.float32))
    if key_first:
        s.op("Einsum", f"{k} {q}", "scores", equation="bhjd, bhid -> bhij")
    else:
        s.op("Einsum", f"{q} {k}", "scores", equation="b h i d, b h j d -> b h i j")
    s.op("Mul", "scores scale", "scaled")
    s.op("Softmax", "scaled", "weights", axis=-1)
    s.op("Einsum", f"weights {v}", "context", equation="...ij,...jd->...id")
    s.op("Transpose", "context", "back", perm=[0, 2, 1, 3])
    s.keep("merged", ints(0, 0, -1))
    return s.done(s.op("Reshape", "back merged", "joined"))


def einsum_to_heads(planted: bool = True, bias: bool = False) -> onnx.ModelProto:
    """As Keras and Flax write it: weights (E, H, D) and (H, D, 5), the heads behind the positions all along."""
    s = Attention(planted)
    for name in "qkv":
        weight = low_rank(s.rng, E, H) if planted else s.rng.standard_normal((E, H * D)).astype(np.float32) / E**0.5
        s.keep(f"{name}.w", weight.reshape(E, H, D).astype(np.float32))
        s.op("Einsum", f"x {name}.w", f"{name}0" if bias else name, name=name, equation="abc,cde->abde")
        if bias:
            s.op("Add", f"{name}0 {s.keep(f'{name}.b', s.rng.standard_normal((H, D)).astype(np.float32))}", name)
    s.keep("scale", np.asarray(D**-0.5, dtype=np.float32))
    s.op("Mul", "q scale", "scaled")
    s.op("Einsum", "k scaled", "scores", equation="aecd,abcd->acbe")
    s.op("Softmax", "scores", "weights", axis=-1)
    s.op("Einsum", "weights v", "context", equation="acbe,aecd->abcd")
    s.keep("o.w", (s.rng.standard_normal((H, D, 5)) / (H * D) ** 0.5).astype(np.float32))
    s.op("Einsum", "context o.w", "y", name="o", equation="abcd,cde->abe")
    return s.model()


SPELLED: dict[str, Callable[..., onnx.ModelProto]] = {
    "separate": separate,
    "scaled by shape": scaled_by_shape,
    "fused, split": fused_split,
    "fused, gathered": fused_gather,
    "einsum": einsum,
}


def rotary(kv: int = H) -> onnx.ModelProto:
    """Rotary embedding by stored angles; with one head of K and V (`kv` 1) that all of Q share."""
    s = Attention()
    q, k, v = (s.project("x", name, heads) for name, heads in (("q", H), ("k", kv), ("v", kv)))
    shape = (0, 0, kv, D)
    q = s.split(q, "qh", [0, 2, 1, 3])
    k, v = s.split(k, "kh", [0, 2, 1, 3], shape), s.split(v, "vh", [0, 2, 1, 3], shape)
    half = s.keep("halves", ints(D // 2, D // 2))
    s.keep("cos", np.cos(np.arange(S * D, dtype=np.float32)).reshape(S, D))
    s.keep("sin", np.sin(np.arange(S * D, dtype=np.float32)).reshape(S, D))
    for t in (q, k):
        s.op("Split", f"{t} {half}", f"{t}.a {t}.b", axis=3)
        s.op("Neg", f"{t}.b", f"{t}.minus")
        s.op("Concat", f"{t}.minus {t}.a", f"{t}.turned", axis=3)
        s.op("Mul", f"{t} cos", f"{t}.c")
        s.op("Mul", f"{t}.turned sin", f"{t}.s")
        s.op("Add", f"{t}.c {t}.s", f"{t}.rotary")
    s.op("Transpose", "kh.rotary", "kt", perm=[0, 1, 3, 2])
    return s.done(s.attend("qh.rotary", "kt", v))


def normalised() -> onnx.ModelProto:
    s = Attention()
    q, k, v = (s.project("x", name) for name in ("q", "k", "v"))
    q, k, v = s.split(q, "qh", [0, 2, 1, 3]), s.split(k, "kh", [0, 2, 1, 3]), s.split(v, "vh", [0, 2, 1, 3])
    s.keep("gain", np.ones(D, np.float32))
    s.op("LayerNormalization", f"{q} gain", "qn", axis=-1)
    s.op("LayerNormalization", f"{k} gain", "kn", axis=-1)
    s.op("Transpose", "kn", "kt", perm=[0, 1, 3, 2])
    return s.done(s.attend("qn", "kt", v))
