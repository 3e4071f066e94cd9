"""Small transformers as exporters write them and as runtimes fuse them, with redundancy planted in them.

Every architecture is a `Recipe`; every recipe can be written in up to three forms: `plain` (MatMul, Softmax, Mul: what
torch's exporters write), `onnx` (Attention, RotaryEmbedding, RMSNormalization of opset 23) and `ort` (com.microsoft's
MultiHeadAttention, GroupQueryAttention, Skip norms, fused activations: what onnxruntime's optimizer makes of it).

What is planted: half of the neurons of every FFN are copies of the others, and half of the dimensions of every head
(or half of the heads, where these are the unit) as well. So half of every width can go without a trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

Array = NDArray[Any]
ORT = "com.microsoft"
D, HEADS, WIDTH, VOCABULARY, LENGTH = 64, 4, 16, 40, 6
"""Stream, heads, dimensions of a head, tokens, positions in the samples."""


@dataclass(frozen=True)
class Recipe:
    """What an architecture is made of."""

    norm: str = "layer"
    post_norm: bool = False
    activation: str = "gelu"
    gated: bool = False
    positions: str = "learned"
    kv: int = HEADS
    bias: bool = True
    qk_norm: bool = False
    causal: bool = False
    cache: bool = False
    cross: bool = False
    head: str = ""
    stem: str = "tokens"
    scaled: bool = True
    mask: bool = False
    layers: int = 1
    unit: str = ""
    hidden: int = 4 * D


RECIPES: dict[str, Recipe] = {
    "BERT": Recipe(post_norm=True, mask=True),
    "GPT-2": Recipe(activation="gelu tanh", causal=True, head="lm"),
    "GPT-2 with a cache": Recipe(activation="gelu tanh", causal=True, head="lm", cache=True),
    "Llama": Recipe("rms", False, "silu", True, "rotary", 2, False, causal=True, head="lm"),
    "Llama with a cache": Recipe("rms", False, "silu", True, "rotary", 2, False, causal=True, head="lm", cache=True),
    "Qwen2": Recipe("rms", False, "silu", True, "rotary", 2, True, causal=True, head="lm"),
    "Qwen3": Recipe("rms", False, "silu", True, "rotary", 2, False, qk_norm=True, causal=True, head="lm"),
    "Gemma": Recipe("rms", False, "gelu tanh", True, "rotary", 1, False, causal=True, head="lm"),
    "T5 encoder": Recipe("rms", False, "relu", False, "relative", bias=False, scaled=False),
    "T5 decoder": Recipe("rms", False, "relu", False, "relative", bias=False, scaled=False, cross=True, causal=True,
                         head="lm"),
    "CLIP text": Recipe(activation="quick gelu", causal=True),
    "ViT": Recipe(stem="patches"),
    "DeiT": Recipe(stem="patches with two tokens"),
    "Swin": Recipe(stem="windows", positions="relative"),
    "Whisper encoder": Recipe(stem="signal"),
    "Whisper decoder": Recipe(causal=True, cross=True, head="lm"),
}  # fmt: skip
FORMS = ("plain", "onnx", "ort")


class Net:
    """A model in the making."""

    def __init__(self, recipe: Recipe, form: str, seed: int = 0) -> None:
        self.recipe, self.form, self.rng = recipe, form, np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.fed: dict[str, Array] = {}
        self.padding = ""
        self._count = 0

    # -- pieces ------------------------------------------------------------------------------------------------

    def op(self, op: str, *inputs: str, outputs: int = 1, name: str = "", domain: str = "", **attributes: Any) -> str:
        """A node; gives the name of its first output (others get `.1`, `.2`, ...)."""
        self._count += 1
        label = name or f"{op.lower()}_{self._count}"
        names = [f"{label}.out"] + [f"{label}.out.{place}" for place in range(1, outputs)]
        node = helper.make_node(op, list(inputs), names, name=label, domain=domain, **attributes)
        self.nodes.append(node)
        return names[0]

    def keep(self, value: Any, name: str = "") -> str:
        """A constant."""
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        self._count += not name
        key = name or f"constant_{self._count}"
        self.weights[key] = array
        return key

    def matrix(self, rows: int, columns: int, gain: float = 1.0) -> Array:
        return np.asarray(gain * self.rng.standard_normal((rows, columns)) / rows**0.5)

    def linear(self, x: str, weight: Array, name: str, bias: Array | None = None) -> str:
        y = self.op("MatMul", x, self.keep(weight, f"{name}.weight"), name=name)
        return y if bias is None else self.op("Add", y, self.keep(bias, f"{name}.bias"), name=f"{name}.add")

    def norm(self, x: str, name: str, width: int = D) -> str:
        """A norm over the last axis."""
        gain = self.keep(1 + 0.1 * self.rng.standard_normal(width), f"{name}.weight")
        if self.recipe.norm == "layer":
            shift = self.keep(0.1 * self.rng.standard_normal(width), f"{name}.bias")
            return self.op("LayerNormalization", x, gain, shift, name=name, axis=-1, epsilon=1e-5)
        if self.form == "onnx":
            return self.op("RMSNormalization", x, gain, name=name, axis=-1, epsilon=1e-6)
        if self.form == "ort":
            return self.op("SimplifiedLayerNormalization", x, gain, name=name, axis=-1, epsilon=1e-6)
        squares = self.op("ReduceMean", self.op("Mul", x, x), axes=[-1], keepdims=1)
        root = self.op("Sqrt", self.op("Add", squares, self.keep(np.float32(1e-6))))
        return self.op("Mul", self.op("Div", x, root), gain)

    def add_norm(self, x: str, skip: str, name: str) -> tuple[str, str]:
        """(norm of the sum, the sum), in one operator where the form has one."""
        if self.form != "ort":
            total = self.op("Add", x, skip)
            return self.norm(total, name), total
        op = "SkipLayerNormalization" if self.recipe.norm == "layer" else "SkipSimplifiedLayerNormalization"
        gain = self.keep(1 + 0.1 * self.rng.standard_normal(D), f"{name}.weight")
        inputs = [skip, x, gain]
        if self.recipe.norm == "layer":
            inputs.append(self.keep(0.1 * self.rng.standard_normal(D), f"{name}.bias"))
        normed = self.op(op, *inputs, outputs=4, name=name, domain=ORT, epsilon=1e-5)
        node = self.nodes[-1]
        node.output[1] = node.output[2] = ""
        return normed, f"{normed}.3"

    # -- blocks ------------------------------------------------------------------------------------------------

    def activate(self, x: str, kind: str, bias: str = "") -> str:
        """The activation, as the form spells it; `bias` is added in front."""
        if self.form == "ort" and bias and kind in ("gelu", "gelu tanh"):
            return self.op("BiasGelu" if kind == "gelu" else "FastGelu", x, bias, domain=ORT)
        x = self.op("Add", x, bias) if bias else x
        if kind == "relu":
            return self.op("Relu", x)
        if kind == "silu":
            if self.form == "ort":
                return self.op("QuickGelu", x, domain=ORT, alpha=1.0)
            return self.op("Mul", x, self.op("Sigmoid", x))
        if kind == "quick gelu":
            if self.form == "ort":
                return self.op("QuickGelu", x, domain=ORT, alpha=1.702)
            return self.op("Mul", x, self.op("Sigmoid", self.op("Mul", x, self.keep(np.float32(1.702)))))
        if self.form == "ort":
            return self.op("FastGelu" if kind == "gelu tanh" else "Gelu", x, domain=ORT)
        if self.form == "onnx":
            return self.op("Gelu", x, approximate="tanh" if kind == "gelu tanh" else "none")
        if kind == "gelu tanh":
            cube = self.op("Mul", self.op("Pow", x, self.keep(np.float32(3))), self.keep(np.float32(0.044715)))
            inner = self.op("Mul", self.op("Add", x, cube), self.keep(np.float32((2 / np.pi) ** 0.5)))
            one = self.op("Add", self.op("Tanh", inner), self.keep(np.float32(1)))
        else:
            one = self.op("Add", self.op("Erf", self.op("Div", x, self.keep(np.float32(2**0.5)))),
                          self.keep(np.float32(1)))  # fmt: skip
        return self.op("Mul", self.op("Mul", x, one), self.keep(np.float32(0.5)))

    def ffn(self, x: str, name: str) -> str:
        """Two or three layers; the second half of the neurons are copies of the first."""
        r, half = self.recipe, self.recipe.hidden // 2
        up, shift = (
            np.concatenate([a, a], axis=-1) for a in (self.matrix(D, half), 0.1 * self.rng.standard_normal(half))
        )
        inner = self.linear(x, up, f"{name}.up")
        bias = self.keep(shift, f"{name}.up.bias") if r.bias and not r.gated else ""
        if r.gated:
            gate = self.linear(x, np.tile(self.matrix(D, half), 2), f"{name}.gate")
            inner = self.op("Mul", self.activate(gate, r.activation), inner)
        else:
            inner = self.activate(inner, r.activation, bias)
        down = self.matrix(r.hidden, D, 0.5)
        return self.linear(inner, down, f"{name}.down", 0.1 * self.rng.standard_normal(D) if r.bias else None)

    @property
    def unit(self) -> str:
        """What goes from attention: `dims`, `heads` of K and V, `queries` alone, or `pairs` beside V's dimensions."""
        r = self.recipe
        if r.unit:
            return r.unit
        if self.form == "plain":
            return "pairs" if r.positions == "rotary" or r.qk_norm or r.cache else "dims"
        if r.cache:
            return "queries" if r.kv < HEADS else "none"
        if r.positions == "rotary" or r.qk_norm:
            grouped = self.form == "ort" and r.kv < HEADS
            return ("queries" if r.kv == 1 else "heads") if grouped or r.qk_norm else "angles"
        return "dims"

    def heads(self, count: int, unit: str, part: str) -> Array:
        """(D, count * WIDTH): heads of which half is superfluous."""
        parts = [self.matrix(D, WIDTH) for _ in range(count)]
        if unit == "dims" or (unit in ("pairs", "angles") and part == "v"):
            parts = [np.concatenate([p[:, : WIDTH // 2]] * 2, axis=1) for p in parts]
        if unit == "angles" and part != "v":  # every second pair of channels i, i + WIDTH / 2 is dead
            alive = np.tile(np.arange(WIDTH // 2) % 2 == 0, 2)
            parts = [p * alive for p in parts]
        if unit == "heads":
            times = count // self.recipe.kv
            parts = [parts[(head // (2 * times)) * 2 * times + head % times] for head in range(count)]
        if unit == "queries" and part == "q":
            times = count // self.recipe.kv
            parts = [parts[head - head % times + head % times % max(times // 2, 1)] for head in range(count)]
        return np.concatenate(parts, axis=1)

    def attention(self, x: str, name: str, states: str = "") -> str:
        """Q, K, V, what is between, and O."""
        r, unit = self.recipe, self.unit
        source = states or x
        is_self = not states
        kv = r.kv if is_self else HEADS
        unit = unit if is_self else "dims"
        layers = {}
        for part, count, origin in (("q", HEADS, x), ("k", kv, source), ("v", kv, source)):
            weight = self.heads(count, unit, part)
            bias = None
            if r.bias:  # in the space of the weight's columns, so that copies stay copies
                bias = (0.3 * self.rng.standard_normal(D)) @ weight
            layers[part] = self.linear(origin, weight, f"{name}.{part}", bias)
        if r.qk_norm and is_self:
            for part, count in (("q", HEADS), ("k", kv)):
                split = self.op("Reshape", layers[part], self.keep(np.array([0, 0, count, WIDTH])))
                normed = self.norm(split, f"{name}.{part}_norm", WIDTH)
                layers[part] = self.op("Reshape", normed, self.keep(np.array([0, 0, count * WIDTH])))
        write = {"plain": self._plain, "onnx": self._standard, "ort": self._onnxruntime}[self.form]
        joined = write(layers, name, kv, is_self)
        out = self.matrix(HEADS * WIDTH, D, 0.7)
        return self.linear(joined, out, f"{name}.o", 0.1 * self.rng.standard_normal(D) if r.bias else None)

    def past(self, name: str, part: str, kv: int) -> str:
        """A cache as an input."""
        key = f"past.{name}.{part}"
        if key not in self.fed:
            shape: list[Any] = ["N", kv, "P", WIDTH]
            self.inputs.append(helper.make_tensor_value_info(key, TensorProto.FLOAT, shape))
            self.fed[key] = np.zeros((1, kv, 2, WIDTH), np.float32)
        return key

    def present(self, tensor: str, name: str, part: str, kv: int) -> None:
        key = f"present.{name}.{part}"
        self.nodes.append(helper.make_node("Identity", [tensor], [key]))
        self.outputs.append(helper.make_tensor_value_info(key, TensorProto.FLOAT, ["N", kv, None, WIDTH]))

    def causal(self, q: str, k: str) -> str:
        """(1, 1, S, T) of 0 and -1e4: tensor q (N, h, S, d) sees k (N, h, T, d) as far as itself."""

        def length(t: str) -> str:
            return self.op("Squeeze", self.op("Shape", t, start=2, end=3), self.keep(np.array([0])))

        s, t = length(q), length(k)
        zero, one = self.keep(np.array(0)), self.keep(np.array(1))
        rows = self.op("Unsqueeze", self.op("Range", zero, s, one), self.keep(np.array([1])))
        shifted = self.op("Add", rows, self.op("Sub", t, s))
        columns = self.op("Unsqueeze", self.op("Range", zero, t, one), self.keep(np.array([0])))
        hidden = self.op("Cast", self.op("Greater", columns, shifted), to=TensorProto.FLOAT)
        mask = self.op("Mul", hidden, self.keep(np.float32(-1e4)))
        return self.op("Unsqueeze", mask, self.keep(np.array([0, 1])))

    def angles(self, x: str) -> tuple[str, str]:
        """cos and sin (1, S, WIDTH / 2), computed from the positions as exporters do."""
        if self.form != "plain":
            angle = np.arange(32)[:, None] * 10.0 ** -np.arange(WIDTH // 2)[None, :]
            return self.keep(np.cos(angle), "cos"), self.keep(np.sin(angle), "sin")
        size = self.op("Squeeze", self.op("Shape", x, start=1, end=2), self.keep(np.array([0])))
        places = self.op("Cast", self.op("Range", self.keep(np.array(0)), size, self.keep(np.array(1))),
                         to=TensorProto.FLOAT)  # fmt: skip
        column = self.op("Unsqueeze", places, self.keep(np.array([0, 2])))
        angle_of = self.op("Mul", column, self.keep(10.0 ** -np.arange(WIDTH // 2)[None, None, :]))
        return self.op("Cos", angle_of), self.op("Sin", angle_of)

    def _plain(self, layers: dict[str, str], name: str, kv: int, is_self: bool) -> str:
        r = self.recipe
        split = {}
        for part, count in (("q", HEADS), ("k", kv), ("v", kv)):
            heads = self.op("Reshape", layers[part], self.keep(np.array([0, 0, count, WIDTH])))
            split[part] = self.op("Transpose", heads, perm=[0, 2, 1, 3])
        if r.positions == "rotary" and is_self:
            cos, sin = self.angles(layers["q"])
            cos, sin = (self.op("Unsqueeze", t, self.keep(np.array([1]))) for t in (cos, sin))
            for part in "qk":
                a = self.op("Slice", split[part], *(self.keep(np.array([n])) for n in (0, WIDTH // 2, 3)))
                b = self.op("Slice", split[part], *(self.keep(np.array([n])) for n in (WIDTH // 2, WIDTH, 3)))
                left = self.op("Sub", self.op("Mul", a, cos), self.op("Mul", b, sin))
                right = self.op("Add", self.op("Mul", b, cos), self.op("Mul", a, sin))
                split[part] = self.op("Concat", left, right, axis=3)
        if r.cache and is_self:
            for part in "kv":
                split[part] = self.op("Concat", self.past(name, part, kv), split[part], axis=2)
                self.present(split[part], name, part, kv)
        keys, values = split["k"], split["v"]
        if kv < HEADS:
            for part in "kv":
                wide = self.op("Unsqueeze", split[part], self.keep(np.array([2])))
                wide = self.op("Expand", wide, self.keep(np.array([1, 1, HEADS // kv, 1, 1])))
                split[part] = self.op("Reshape", wide, self.keep(np.array([0, HEADS, -1, WIDTH])))
            keys, values = split["k"], split["v"]
        scores = self.op("MatMul", split["q"], self.op("Transpose", keys, perm=[0, 1, 3, 2]))
        if r.scaled:
            scores = self.op("Mul", scores, self.keep(np.float32(WIDTH**-0.5)))
        for mask in self.masks(split["q"], keys, is_self):
            scores = self.op("Add", scores, mask)
        context = self.op("MatMul", self.op("Softmax", scores, axis=-1), values)
        back = self.op("Transpose", context, perm=[0, 2, 1, 3])
        return self.op("Reshape", back, self.keep(np.array([0, 0, -1])))

    def masks(self, q: str, k: str, is_self: bool) -> list[str]:
        r, masks = self.recipe, list[str]()
        if not is_self:
            return masks
        if r.causal:
            masks.append(self.causal(q, k))
        if r.positions == "relative":
            masks.append(self.relative())
        if r.mask:
            masks.append(self.padding)
        return masks

    def relative(self) -> str:
        """A bias per head and distance, for fixed lengths."""
        if "relative" not in self.weights:
            size = 4 if self.recipe.stem == "windows" else LENGTH
            self.keep(0.3 * self.rng.standard_normal((1, HEADS, size, size)), "relative")
        return "relative"

    def _standard(self, layers: dict[str, str], name: str, kv: int, is_self: bool) -> str:
        r = self.recipe
        if r.positions == "rotary" and is_self:
            where = self.places(layers["q"])
            cos, sin = self.angles(layers["q"])
            for part, count in (("q", HEADS), ("k", kv)):
                layers[part] = self.op("RotaryEmbedding", layers[part], cos, sin, where, num_heads=count)
        inputs = [layers["q"], layers["k"], layers["v"]]
        mask = ""
        if is_self and (r.mask or r.positions == "relative"):
            mask = self.padding if r.mask else self.relative()
        has_cache = r.cache and is_self
        inputs += [mask, *((self.past(name, part, kv) for part in "kv") if has_cache else ())]
        while not inputs[-1]:
            inputs.pop()
        attributes: dict[str, Any] = {} if r.scaled else {"scale": 1.0}
        if r.causal and is_self:
            attributes["is_causal"] = 1
        joined = self.op("Attention", *inputs, outputs=3 if has_cache else 1, name=f"{name}.attention",
                         q_num_heads=HEADS, kv_num_heads=kv, **attributes)  # fmt: skip
        if has_cache:
            for place, part in enumerate("kv", start=1):
                self.present(f"{joined}.{place}", name, part, kv)
        return joined

    def places(self, x: str) -> str:
        """Positions (N, S) of a tensor."""
        sizes = self.op("Shape", x, start=0, end=2)
        ones = self.op("Expand", self.keep(np.array(1)), sizes)
        running = self.op("CumSum", ones, self.keep(np.array(1)))
        return self.op("Sub", running, self.keep(np.array(1)))

    def _onnxruntime(self, layers: dict[str, str], name: str, kv: int, is_self: bool) -> str:
        r = self.recipe
        if kv < HEADS:
            return self._grouped(layers, name, kv)
        inputs = [layers["q"], layers["k"], layers["v"], "", "", ""]
        attributes: dict[str, Any] = {"num_heads": HEADS} | ({} if r.scaled else {"scale": 1.0})
        if r.causal and is_self:
            attributes["unidirectional"] = 1
        if is_self and r.positions == "relative":
            inputs[5] = self.relative()
        if is_self and r.mask:
            inputs[4] = "attention_mask"
        has_cache = r.cache and is_self
        inputs += [self.past(name, part, kv) for part in "kv"] if has_cache else []
        while not inputs[-1]:
            inputs.pop()
        joined = self.op("MultiHeadAttention", *inputs, outputs=3 if has_cache else 1, name=f"{name}.attention",
                         domain=ORT, **attributes)  # fmt: skip
        if has_cache:
            for place, part in enumerate("kv", start=1):
                self.present(f"{joined}.{place}", name, part, kv)
        return joined

    def _grouped(self, layers: dict[str, str], name: str, kv: int) -> str:
        """GroupQueryAttention, its lengths computed from the shapes, rotary angles inside."""
        r = self.recipe
        cos, sin = self.angles(layers["q"])
        size = self.op("Shape", layers["q"], start=0, end=1)
        length = self.op("Cast", self.op("Shape", layers["q"], start=1, end=2), to=TensorProto.INT32)
        past = ["", ""]
        if r.cache:
            past = [self.past(name, part, kv) for part in "kv"]
            before = self.op("Cast", self.op("Shape", past[0], start=2, end=3), to=TensorProto.INT32)
            length = self.op("Add", length, before)
        last = self.op("Sub", length, self.keep(np.array([1], np.int32)))
        lengths = self.op("Expand", last, size)
        total = self.op("Squeeze", length, self.keep(np.array([0])))
        joined = self.op("GroupQueryAttention", layers["q"], layers["k"], layers["v"], *past, lengths, total, cos, sin,
                         outputs=3, name=f"{name}.attention", domain=ORT, num_heads=HEADS, kv_num_heads=kv,
                         do_rotary=1)  # fmt: skip
        if r.cache:
            for place, part in enumerate("kv", start=1):
                self.present(f"{joined}.{place}", name, part, kv)
        return joined
