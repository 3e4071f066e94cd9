"""Attention with a free batch and sequence, its target shapes computed from the shape of the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from builders.chains import node, random
from builders.models import Array

D, HEADS, WORDS = 16, 4, 40


def ids(rows: int, length: int = 7, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, WORDS, (rows, length))


def _together() -> list[onnx.NodeProto]:
    """Both sizes cut out of one Shape, by a Slice; a Size that divides out the batch again."""
    return [
        node("Shape", "ids", "both"), node("Slice", "both zero one zero", "b"), node("Size", "ids", "all"),
        node("Div", "all b", "s"),
    ]  # fmt: skip


SPELLINGS: Mapping[str, Sequence[onnx.NodeProto]] = {
    "Shape from start to end": [node("Shape", "ids", "b", start=0, end=1), node("Shape", "ids", "s", start=1, end=2)],
    "Gather and Unsqueeze": [
        node("Shape", "ids", "both"), node("Gather", "both i0", "b0"), node("Gather", "both i1", "s0"),
        node("Unsqueeze", "b0 zero", "b"), node("Unsqueeze", "s0 zero", "s"),
    ],
    "Slice, Size and Div": _together(),
    "Cast there and back": [
        node("Shape", "ids", "b1", start=0, end=1), node("Cast", "b1", "b2", to=TensorProto.FLOAT),
        node("Cast", "b2", "b", to=TensorProto.INT64), node("Shape", "ids", "s2", start=1),
        node("Max", "s2 one", "s"),
    ],
    "of a computed tensor": [node("Shape", "x0", "b", start=0, end=1), node("Shape", "x0", "s", start=1, end=2)],
    "Split": [node("Shape", "ids", "both"), node("Split", "both", "b s", num_outputs=2)],
}  # fmt: skip
"""How exporters write where the batch `b` and the length `s` come from."""


def encoder(spelling: str = "Shape from start to end", *, mask: bool = False, layers: int = 2) -> onnx.ModelProto:
    """`layers` of attention without norms; all share the target shapes. With `mask` nothing looks ahead."""
    stored: dict[str, Array] = {
        "words": random(WORDS, D), "heads": np.array([HEADS]), "inner": np.array([D // HEADS]), "whole": np.array([-1]),
        "zero": np.array([0]), "one": np.array([1]), "i0": np.array(0), "i1": np.array(1),
        "scale": np.array(0.5, np.float32), "low": np.array(-1e4, np.float32),
    }  # fmt: skip
    nodes = [node("Gather", "words ids", "x0"), *SPELLINGS[spelling]]
    nodes += [node("Concat", "b s heads inner", "split", axis=0), node("Concat", "b s whole", "merge", axis=0)]
    if mask:
        ones = numpy_helper.from_array(np.ones(1, np.float32))
        nodes += [
            node("Concat", "s s", "square", axis=0), node("ConstantOfShape", "square", "ones", value=ones),
            node("Trilu", "ones", "above", upper=1), node("Mul", "above low", "look"),
        ]  # fmt: skip
    for n in range(layers):
        for part in "qkv":
            stored[f"{part}{n}.w"] = random(D, D) * np.float32(0.5)
            perm = [0, 2, 3, 1] if part == "k" else [0, 2, 1, 3]
            nodes += [
                node("MatMul", f"x{n} {part}{n}.w", f"{part}{n}", name=f"{part}{n}"),
                node("Reshape", f"{part}{n} split", f"{part}{n}r"),
                node("Transpose", f"{part}{n}r", f"{part}{n}h", perm=perm),
            ]
        stored[f"o{n}.w"] = random(D, D) * np.float32(0.5)
        nodes += [
            node("MatMul", f"q{n}h k{n}h", f"l{n}"), node("Mul", f"l{n} scale", f"m{n}"),
            *([node("Add", f"m{n} look", f"a{n}")] if mask else []),
            node("Softmax", f"{'a' if mask else 'm'}{n}", f"p{n}", axis=-1), node("MatMul", f"p{n} v{n}h", f"c{n}"),
            node("Transpose", f"c{n}", f"c{n}t", perm=[0, 2, 1, 3]), node("Reshape", f"c{n}t merge", f"c{n}r"),
            node("MatMul", f"c{n}r o{n}.w", f"o{n}", name=f"o{n}"), node("Add", f"x{n} o{n}", f"x{n + 1}"),
        ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, ["batch", "length", D])],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model
