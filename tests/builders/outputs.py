"""Models whose outputs are more than one tensor of one shape: found, listed, decided, or finished early."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from builders.chains import node, random
from builders.control_flow import doubled
from builders.models import Array

FLOAT, INT64, BOOL, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING
WIDE, SCORES = 16, 6
"""Neurons of every hidden layer, half of them copies; columns of `s`."""


def tensor(name: str, kind: int = FLOAT, shape: Sequence[int | str | None] = ("N", SCORES)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def with_trunk(
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, Array] | None = None,
    *,
    batch: int | str = "N",
) -> onnx.ModelProto:
    """x -> a -> a residual block -> s (N, 6), and `nodes` behind; float16 and integers are for them to make."""
    trunk = [
        node("Gemm", "x wa", "a", name="a"), node("Relu", "a", "ra"),
        node("Gemm", "ra wb", "b", name="b"), node("Relu", "b", "rb"), node("Gemm", "rb wc", "c", name="c"),
        node("Add", "c ra", "r"), node("Relu", "r", "rr"), node("Gemm", "rr ws", "s", name="s"),
    ]  # fmt: skip
    into = doubled(WIDE, WIDE)
    stored = {"wa": doubled(5, WIDE), "wb": into, "wc": into + 0, "ws": random(WIDE, SCORES), **(weights or {})}
    graph = helper.make_graph(
        [*trunk, *nodes], "g", [tensor("x", FLOAT, [batch, 5])], list(outputs),
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


HALF, ZERO, ONE = np.array(0.5, np.float32), np.array(0), np.array([1])


def boxes() -> onnx.ModelProto:
    """One picture at a time: 16 boxes, and those of them that are left."""
    weights = {"wx": random(WIDE, 64), "wy": random(WIDE, 16), "s4": np.array([1, 16, 4]), "s1": np.array([1, 1, 16])}
    weights |= {"most": np.array([8]), "overlap": HALF, "least": HALF, "two": np.array([2]), "one": ONE}
    nodes = [
        node("Gemm", "rr wx", "p"), node("Reshape", "p s4", "boxes"),
        node("Gemm", "rr wy", "q"), node("Sigmoid", "q", "q1"), node("Reshape", "q1 s1", "scores"),
        node("NonMaxSuppression", "boxes scores most overlap least", "chosen"),
        node("Gather", "chosen two", "index", axis=1), node("Squeeze", "index one", "flat"),
        node("Gather", "boxes flat", "found", axis=1),
    ]  # fmt: skip
    return with_trunk(nodes, [tensor("found", FLOAT, [1, "M", 4]), tensor("chosen", INT64, ["M", 3])], weights, batch=1)


MASK = [node("Greater", "s half", "mask")]


def non_zero() -> onnx.ModelProto:
    return with_trunk([*MASK, node("NonZero", "mask", "at")], [tensor("at", INT64, [2, "M"])], {"half": HALF})


def compress() -> onnx.ModelProto:
    nodes = [
        *MASK,
        node("Flatten", "mask", "m2", axis=0),
        node("Squeeze", "m2", "m1"),
        node("Compress", "s m1", "kept"),
    ]
    return with_trunk(nodes, [tensor("kept", FLOAT, ["M"])], {"half": HALF})


def unique() -> onnx.ModelProto:
    nodes = [node("Floor", "s", "f"), node("Unique", "f", "u")]
    return with_trunk(nodes, [tensor("u", FLOAT, ["M"])])


COUNT = [*MASK, node("Cast", "mask", "ones", to=INT64), node("ReduceSum", "ones", "count", keepdims=0)]


def ranged() -> onnx.ModelProto:
    weights = {"half": HALF, "zero": ZERO, "one": np.array(1)}
    return with_trunk([*COUNT, node("Range", "zero count one", "r1")], [tensor("r1", INT64, ["M"])], weights)


def sliced() -> onnx.ModelProto:
    nodes = [*COUNT, node("Unsqueeze", "count axis", "end"), node("Slice", "s start end", "part")]
    weights = {"half": HALF, "axis": np.array([0]), "start": np.array([0])}
    return with_trunk(nodes, [tensor("part", FLOAT, ["M", SCORES])], weights)


def second_stage() -> onnx.ModelProto:
    """Layers behind what was found: their rows differ from one form of the model to another."""
    nodes = [
        node("ReduceMax", "s", "m0", axes=[1], keepdims=0), node("Greater", "m0 half", "m1"),
        node("Compress", "rr m1", "rows", axis=0),
        node("Gemm", "rows w1", "h1", name="h1"), node("Relu", "h1", "h2"), node("Gemm", "h2 w2", "late", name="late"),
    ]  # fmt: skip
    weights = {"half": HALF, "w1": doubled(WIDE, WIDE), "w2": random(WIDE, 3)}
    return with_trunk(nodes, [tensor("s"), tensor("late", FLOAT, ["M", 3])], weights)


def until() -> onnx.ModelProto:
    """A Loop that ends when a value is small enough, and puts out one row per round."""
    body = helper.make_graph(
        [
            node("Mul", "state less", "next"), node("ReduceMax", "next", "top", keepdims=0),
            node("Greater", "top half", "again"), node("Identity", "top", "row"),
        ],
        "body",
        [tensor("i", INT64, []), tensor("go", BOOL, []), tensor("state", FLOAT, ["N", SCORES])],
        [tensor("again", BOOL, []), tensor("next", FLOAT, ["N", SCORES]), tensor("row", FLOAT, [])],
    )  # fmt: skip
    item = helper.make_node("Loop", ["rounds", "yes", "s"], ["last", "rows"], body=body)
    weights = {"half": HALF, "less": np.array(0.8, np.float32), "rounds": np.array(20), "yes": np.array(True)}
    return with_trunk([item], [tensor("last"), tensor("rows", FLOAT, ["R"])], weights)


def fixed_loop() -> onnx.ModelProto:
    """A Loop of three rounds, and a layer that is narrowed behind it."""
    body = helper.make_graph(
        [node("Mul", "state less", "next"), node("Identity", "go", "again")],
        "body",
        [tensor("i", INT64, []), tensor("go", BOOL, []), tensor("state", FLOAT, ["N", SCORES])],
        [tensor("again", BOOL, []), tensor("next", FLOAT, ["N", SCORES])],
    )
    nodes = [
        helper.make_node("Loop", ["rounds", "yes", "s"], ["last"], body=body),
        node("Gemm", "last w1", "h1", name="h1"), node("Relu", "h1", "h2"), node("Gemm", "h2 w2", "late", name="late"),
    ]  # fmt: skip
    weights = {"less": np.array(0.8, np.float32), "rounds": np.array(3), "yes": np.array(True)}
    weights |= {"w1": doubled(SCORES, WIDE), "w2": random(WIDE, 3)}
    return with_trunk(nodes, [tensor("late", FLOAT, ["N", 3])], weights)


def sequence() -> onnx.ModelProto:
    """All columns one by one, and what two make together, of other shapes."""
    nodes = [node("SplitToSequence", "s", "parts", axis=1), node("SequenceConstruct", "s rr", "both")]
    outputs = [helper.make_tensor_sequence_value_info(name, FLOAT, None) for name in ("parts", "both")]
    return with_trunk(nodes, outputs)


def through_a_sequence() -> onnx.ModelProto:
    """A sequence is alive where the graph is cut: layers stand behind its elements."""
    nodes = [
        node("SplitToSequence", "s halves", "parts", axis=1),
        node("Gemm", "rr w0", "g0", name="g0"), node("Relu", "g0", "g1"), node("Gemm", "g1 v0", "first", name="first"),
        node("SequenceAt", "parts zero", "p0"),
        node("Gemm", "p0 w1", "h1", name="h1"), node("Relu", "h1", "h2"), node("Gemm", "h2 w2", "late", name="late"),
    ]  # fmt: skip
    weights = {"halves": np.array([3, 3]), "zero": ZERO, "w0": doubled(WIDE, WIDE), "v0": random(WIDE, 2)}
    weights |= {"w1": doubled(3, WIDE), "w2": random(WIDE, 3)}
    return with_trunk(nodes, [tensor("first", FLOAT, ["N", 2]), tensor("late", FLOAT, ["N", 3])], weights)


def zip_map() -> onnx.ModelProto:
    """Probabilities by name, as scikit-learn's converter writes them, and the names themselves."""
    names = [f"class {i}" for i in range(SCORES)]
    nodes = [
        node("Softmax", "s", "p", axis=1),
        helper.make_node("ZipMap", ["p"], ["maps"], domain="ai.onnx.ml", classlabels_strings=names),
        node("ArgMax", "s", "best", axis=1, keepdims=0),
        helper.make_node(
            "LabelEncoder", ["best"], ["name"], domain="ai.onnx.ml", keys_int64s=range(SCORES), values_strings=names
        ),
    ]
    kind = helper.make_sequence_type_proto(helper.make_map_type_proto(STRING, helper.make_tensor_type_proto(FLOAT, ())))
    return with_trunk(nodes, [helper.make_value_info("maps", kind), tensor("name", STRING, ["N"])])


def decisions() -> onnx.ModelProto:
    """A mask and a class, nothing else."""
    nodes = [*MASK, node("ArgMax", "s", "best", axis=1, keepdims=0)]
    return with_trunk(nodes, [tensor("mask", BOOL), tensor("best", INT64, ["N"])], {"half": HALF})


def early() -> onnx.ModelProto:
    """What is finished before the last hidden layers begin."""
    nodes = [
        node("Gemm", "s w1", "h1", name="h1"),
        node("Relu", "h1", "h2"),
        node("Gemm", "h2 w2", "late", name="late"),
    ]
    weights = {"w1": doubled(SCORES, WIDE), "w2": random(WIDE, 3)}
    return with_trunk(nodes, [tensor("s"), tensor("late", FLOAT, ["N", 3])], weights)


def infinite() -> onnx.ModelProto:
    """Classes that are ruled out, by -Inf."""
    ruled_out = np.array([0, 0, -np.inf, 0, 0, -np.inf], np.float32)
    return with_trunk([node("Add", "s out", "y")], [tensor("y")], {"out": ruled_out.reshape(1, 1, SCORES)[0]})


FOUND: dict[str, Callable[[], onnx.ModelProto]] = {
    "boxes": boxes, "non-zero": non_zero, "compress": compress, "unique": unique, "range": ranged, "slice": sliced,
    "second stage": second_stage, "loop until": until,
}  # fmt: skip
"""Outputs that hold what is found."""
OTHERS: dict[str, Callable[[], onnx.ModelProto]] = {
    "sequence": sequence, "through a sequence": through_a_sequence, "maps and names": zip_map, "decisions": decisions,
    "early": early, "infinite": infinite, "loop of three": fixed_loop,
}  # fmt: skip
"""Outputs that are no single tensor of floats, or are there before the end."""
