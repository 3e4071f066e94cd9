"""Small text encoders with a mask: ids, mask (batch, S) -> states (batch, S, C), embedding (batch, C)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from builders.chains import ints, node
from builders.fed import FLOAT, INT64, Dims, assembled
from builders.models import Array

VOCABULARY, C, HEADS, WIDE, LONGEST = 40, 16, 2, 48, 256


@dataclass(frozen=True)
class Encoder:
    """What a text encoder is like.

    `positions`: the name of the open sequence, or its fixed size. `attends` to what is masked, too; `places` are added
    to the tokens, counted from the left; the embedding is a mean over `all` positions. `flat`: the FFN has rows of
    (batch times sequence); `kernel`: a Conv stands in front of it; `loop`: something is added for every position,
    padding or not; `table`: an input (sequence, C) is the same for all samples. `outputs` as listed.
    """

    positions: str | int = "sequence"
    dtype: int = INT64
    attends: bool = False
    places: bool = False
    all: bool = False
    flat: bool = False
    kernel: bool = False
    loop: bool = False
    table: bool = False
    outputs: tuple[str, ...] = ("states", "embedding")
    name: str = "attention_mask"

    @property
    def model(self) -> onnx.ModelProto:
        """As ONNX."""
        rng = np.random.default_rng(2)
        stored = {"table": 1.5 * rng.standard_normal((VOCABULARY, C)), "at": 0.5 * rng.standard_normal((LONGEST, C))}
        for name, rows, columns in (*((n, C, C) for n in "qkvo"), ("up", C, WIDE), ("down", WIDE, C)):
            stored[name] = rng.standard_normal((rows, columns)) / rows**0.5
        stored["up.b"] = 0.3 * rng.standard_normal(WIDE)
        stored["conv.w"], stored["conv.b"] = rng.standard_normal((C, C, 3)) / 7, rng.standard_normal(C)
        stored |= {"one": np.array(1), "low": np.array(-1e9), "scale": np.array((C // HEADS) ** -0.5)}
        stored |= {"tenth": np.array([0.1]), "zero": np.array([0])}
        constants: dict[str, Array] = {name: value.astype(np.float32) for name, value in stored.items()}
        constants |= {"heads": ints(0, 0, HEADS, C // HEADS), "joined": ints(0, 0, C), "i0": ints(0), "i1": ints(1)}
        constants |= {"inner": ints(1, 2), "rows": ints(-1, C), "last": ints(-1)}
        dims: tuple[int | str, ...] = ("batch", self.positions)
        inputs: dict[str, tuple[int, Dims]] = {"input_ids": (INT64, dims), self.name: (self.dtype, dims)}
        sizes: dict[str, tuple[int, Dims]] = {"states": (FLOAT, (*dims, C)), "embedding": (FLOAT, ("batch", C))}
        sizes["tokens"] = (FLOAT, (None, C))
        if self.table:
            inputs["table_of_places"] = (FLOAT, (self.positions, C))
        nodes = [*self._embedded(), *self._attention(), *self._ffn(), *self._pooled()]
        return assembled(nodes, inputs, {name: sizes[name] for name in self.outputs}, constants)

    def _embedded(self) -> list[onnx.NodeProto]:
        nodes = [node("Gather", "table input_ids", "e0"), node("Cast", self.name, "m", to=TensorProto.FLOAT)]
        nodes += [node("Shape", "input_ids", "size"), node("Gather", "size i1", "length")]
        added = "e0"
        if self.places:
            nodes += [node("Slice", "at i0 length i0", "here"), node("Add", f"{added} here", "e1")]
            added = "e1"
        if self.table:
            nodes += [node("Add", f"{added} table_of_places", "e2")]
            added = "e2"
        if self.loop:
            value = helper.make_tensor_value_info
            states = [value("n", INT64, []), value("go", TensorProto.BOOL, []), value("had", FLOAT, [1])]
            made = [value("on", TensorProto.BOOL, []), value("has", FLOAT, [1])]
            body = helper.make_graph([node("Identity", "go", "on"), node("Add", "had tenth", "has")], "b", states, made)
            nodes += [node("Squeeze", "length", "steps"), node("Loop", "steps - zero", "counted", body=body)]
            nodes += [node("Add", f"{added} counted", "e3")]
            added = "e3"
        return [*nodes, node("Identity", added, "e")]

    def _attention(self) -> list[onnx.NodeProto]:
        nodes = [node("MatMul", f"e {n}", f"{n}0", name=n) for n in "qkv"]
        nodes += [node("Reshape", f"{n}0 heads", f"{n}1") for n in "qkv"]
        nodes += [node("Transpose", f"{n}1", f"{n}2", perm=[0, 2, 3, 1] if n == "k" else [0, 2, 1, 3]) for n in "qkv"]
        nodes += [node("Sub", "one m", "off"), node("Mul", "off low", "bias"), node("Unsqueeze", "bias inner", "mask4")]
        nodes += [node("MatMul", "q2 k2", "s0"), node("Mul", "s0 scale", "s1")]
        nodes += [node("Identity", "s1", "s") if self.attends else node("Add", "s1 mask4", "s")]
        nodes += [node("Softmax", "s", "p", axis=-1), node("MatMul", "p v2", "c0")]
        nodes += [node("Transpose", "c0", "c1", perm=[0, 2, 1, 3]), node("Reshape", "c1 joined", "c")]
        return [*nodes, node("MatMul", "c o", "o0", name="o"), node("Add", "e o0", "h")]

    def _ffn(self) -> list[onnx.NodeProto]:
        source, nodes = "h", list[onnx.NodeProto]()
        if self.kernel:  # padding is taken out first, so that it does not leak into its neighbours
            nodes += [node("Unsqueeze", "m last", "m3c"), node("Mul", "h m3c", "hm")]
            nodes += [node("Transpose", "hm", "ht", perm=[0, 2, 1])]
            nodes += [node("Conv", "ht conv.w conv.b", "hc", name="conv", pads=[1, 1])]
            nodes += [node("Relu", "hc", "hr"), node("Transpose", "hr", "h2", perm=[0, 2, 1])]
            source = "h2"
        if self.flat:
            nodes += [node("Reshape", f"{source} rows", "hf")]
        nodes += [node("MatMul", f"{'hf' if self.flat else source} up", "u0", name="up"), node("Add", "u0 up.b", "u1")]
        nodes += [node("Relu", "u1", "u2"), node("MatMul", "u2 down", "d0", name="down")]
        if not self.flat:
            return [*nodes, node("Add", f"{source} d0", "states")]
        shape = [node("Shape", source, "h.size"), node("Reshape", "tokens h.size", "states")]
        return [*nodes, node("Add", "hf d0", "tokens"), *shape]

    def _pooled(self) -> list[onnx.NodeProto]:
        if self.all:
            return [node("ReduceMean", "states", "embedding", axes=[1], keepdims=0)]
        sums = [node("Unsqueeze", "m last", "m3"), node("Mul", "states m3", "kept")]
        sums += [node("ReduceSum", "kept i1", "sum", keepdims=0), node("ReduceSum", "m i1", "count", keepdims=1)]
        return [*sums, node("Div", "sum count", "embedding")]


def sentences(
    count: int, width: int, dtype: int = INT64, *, left: bool = False, name: str = "attention_mask", seed: int = 0
) -> dict[str, Array]:
    """Token ids of sentences of 3 to 12 tokens, padded to `width` on the right or the left; whatever the width, the
    same sentences."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 13, count)
    ids, mask = np.zeros((count, width), np.int64), np.zeros((count, width), np.int64)
    for row, length in enumerate(lengths):
        at = slice(width - length, width) if left else slice(0, length)
        ids[row, at], mask[row, at] = rng.integers(1, VOCABULARY, length), 1
    return {"input_ids": ids, name: mask.astype(onnx.helper.tensor_dtype_to_np_dtype(dtype))}
