"""Models whose inputs are not one row per sample: states, settings, tables, graphs, streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]
Dims = Sequence[int | str | None]
HIDDEN = 32
FLOAT, INT64, STRING = int(TensorProto.FLOAT), int(TensorProto.INT64), int(TensorProto.STRING)


def twins(rows: int, columns: int, axis: int = 1) -> Array:
    """A matrix whose second half of `axis` repeats the first: half of the neurons are superfluous."""
    rng = np.random.default_rng(rows * 1000 + columns)
    half = rng.standard_normal((rows // 2 if axis == 0 else rows, columns // 2 if axis == 1 else columns))
    return np.concatenate([half, half], axis).astype(np.float32) * np.float32(0.5)


def assembled(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Dims]],
    outputs: Mapping[str, tuple[int, Dims]],
    stored: Mapping[str, Array],
    opset: int = 17,
) -> ModelProto:
    """A model with these inputs and outputs: (element type, sizes)."""
    fed, given = (
        [
            helper.make_tensor_value_info(name, kind, None if dims is None else list(dims))
            for name, (kind, dims) in side.items()
        ]
        for side in (inputs, outputs)
    )
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    graph = helper.make_graph(list(nodes), "fed", fed, given, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def body(source: str = "x", reads: int = 16, writes: int = 8) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """source (..., reads) -> MatMul, Relu, MatMul -> 'out' (..., writes), half of whose neurons are twins."""
    rng = np.random.default_rng(5)
    w2 = np.tile(0.3 * rng.standard_normal((HIDDEN, -(-writes // 2))), 2)[:, :writes].astype(np.float32)
    nodes = [
        helper.make_node("MatMul", [source, "w1"], ["h1"], name="first"),
        helper.make_node("Relu", ["h1"], ["a1"]),
        helper.make_node("MatMul", ["a1", "w2"], ["out"], name="second"),
    ]
    return nodes, {"w1": twins(reads, HIDDEN), "w2": w2}


def with_state(x: Dims, state: Dims, *, sr: bool = False) -> ModelProto:
    """x (N, 16) and a state (2, N, 8), h and c in one, through two layers and an LSTM; as silero-vad has it."""
    nodes, stored = body()
    rng = np.random.default_rng(6)
    nodes += [
        helper.make_node("Unsqueeze", ["out", "zero"], ["s"]),
        helper.make_node("Split", ["state"], ["h", "c"], axis=0),
        helper.make_node("LSTM", ["s", "W", "R", "", "", "h", "c"], ["", "hn", "cn"], hidden_size=8, name="lstm"),
        helper.make_node("Squeeze", ["hn", "zero"], ["y"]),
        helper.make_node("Concat", ["hn", "cn"], ["stateN"], axis=0),
    ]
    stored |= {
        "W": rng.standard_normal((1, 32, 8)).astype(np.float32),
        "R": rng.standard_normal((1, 32, 8)).astype(np.float32),
        "zero": np.array([0]),
    }
    inputs: dict[str, tuple[int, Dims]] = {"x": (FLOAT, x), "state": (FLOAT, state)}
    outputs: dict[str, tuple[int, Dims]] = {"y": (FLOAT, [x[0], 8]), "stateN": (FLOAT, state)}
    if sr:
        nodes.append(helper.make_node("Identity", ["sr"], ["rate"]))
        inputs["sr"], outputs["rate"] = (INT64, []), (INT64, [])
    return assembled(nodes, inputs, outputs, stored, opset=13)


def running_mean(x: Dims = ("batch", 16), memory: Dims = ("batch", 8)) -> ModelProto:
    """y = relu(x w1) w2 + memory, and memory' = tanh(y): what comes next depends on all that came before."""
    nodes, stored = body()
    nodes += [helper.make_node("Add", ["out", "memory"], ["y"]), helper.make_node("Tanh", ["y"], ["kept"])]
    inputs = {"x": (FLOAT, x), "memory": (FLOAT, memory)}
    return assembled(nodes, inputs, {"y": (FLOAT, memory), "kept": (FLOAT, memory)}, stored)


def over_time(x: Dims = ("T", 16)) -> ModelProto:
    """Every row of x (T, 16) is seen among the others: their mean is taken off."""
    nodes, stored = body("centred")
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        *nodes,
        helper.make_node("Identity", ["out"], ["y"]),
    ]
    return assembled(nodes, {"x": (FLOAT, x)}, {"y": (FLOAT, [x[0], 8])}, stored)


def on_graphs() -> ModelProto:
    """Features of nodes (num_nodes, 16) and edges (2, num_edges): the mean over the edges' ends."""
    nodes, stored = body()
    nodes += [
        helper.make_node("Gather", ["edges", "first"], ["ends"], axis=0),
        helper.make_node("Gather", ["out", "ends"], ["at_ends"], axis=0),
        helper.make_node("ReduceMean", ["at_ends"], ["y"], axes=[0], keepdims=1),
    ]
    inputs: dict[str, tuple[int, Dims]] = {"x": (FLOAT, ["num_nodes", 16]), "edges": (INT64, [2, "num_edges"])}
    return assembled(nodes, inputs, {"y": (FLOAT, [1, 8])}, stored | {"first": np.array(0)})


def with_settings(**more: tuple[int, Dims]) -> ModelProto:
    """x (batch, 16) with other inputs: floats are added up into the output, all others go through."""
    nodes, stored = body()
    value = "out"
    outputs: dict[str, tuple[int, Dims]] = {"y": (FLOAT, ["batch", 8])}
    for name, (kind, dims) in more.items():
        if kind == FLOAT:
            nodes.append(helper.make_node("ReduceSum", [name], [f"{name}_sum"], keepdims=0))
            nodes.append(helper.make_node("Add", [value, f"{name}_sum"], [f"with_{name}"]))
            value = f"with_{name}"
        else:
            nodes.append(helper.make_node("Identity", [name], [f"{name}_out"]))
            outputs[f"{name}_out"] = (kind, dims)
    nodes.append(helper.make_node("Identity", [value], ["y"]))
    return assembled(nodes, {"x": (FLOAT, ["batch", 16]), **more}, outputs, stored)


def with_baked_batch(how: str, batch: str = "batch") -> ModelProto:
    """A model that names its batch and takes one sample: a size of 1 is written into its inside."""
    nodes, stored = body()
    node = helper.make_node
    ends: dict[str, tuple[list[onnx.NodeProto], dict[str, Array]]] = {
        "Reshape": ([node("Reshape", ["out", "shape"], ["y"])], {"shape": np.array([1, 8])}),
        "Reshape, open size": (
            [node("Reshape", ["out", "shape"], ["y"]), node("NonZero", ["y"], ["where"])],
            {"shape": np.array([1, 8])},
        ),
        "Reshape to one row": ([node("Reshape", ["out", "shape"], ["y"])], {"shape": np.array([1, -1])}),
        "Concat": ([node("Concat", ["out", "row"], ["y"], axis=1)], {"row": np.ones((1, 3), np.float32)}),
        "one row inside": (
            [
                node("Reshape", ["out", "shape"], ["row"]),
                node("Softmax", ["row"], ["shares"], axis=1),
                node("Reshape", ["shares", "back"], ["y"]),
            ],
            {"shape": np.array([1, -1]), "back": np.array([-1, 8])},
        ),
        "state": (
            [
                node("Unsqueeze", ["out", "zero"], ["steps"]),
                node("LSTM", ["steps", "W", "R", "", "", "h", "c"], ["", "hn", ""], hidden_size=8, name="lstm"),
                node("Squeeze", ["hn", "zero"], ["y"]),
            ],
            {
                "zero": np.array([0]),
                "W": twins(32, 8)[None],
                "R": twins(32, 8)[None],
                "h": np.zeros((1, 1, 8), np.float32),
                "c": np.zeros((1, 1, 8), np.float32),
            },
        ),
    }
    more, constants = ends[how]
    outputs: dict[str, tuple[int, Dims]] = {"y": (FLOAT, [1, 11 if how == "Concat" else 8])}
    if how in ("one row inside", "Reshape to one row"):
        outputs["y"] = (FLOAT, [None, None])
    if how == "Reshape, open size":
        outputs["where"] = (INT64, [2, "count"])
    return assembled([*nodes, *more], {"x": (FLOAT, [batch, 16])}, outputs, stored | constants)


def run(model: ModelProto, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs of a model in onnxruntime."""
    from pcns_onnx.graph import Program
    from pcns_onnx.runtime.engine import Engine

    return (
        Engine(threads=1)
        .session(Program(model.SerializeToString()))
        .run({name: np.asarray(value) for name, value in feeds.items()})
    )


def samples(count: int = 120, *shape: int, seed: int = 7) -> Array:
    return np.random.default_rng(seed).standard_normal((count, *(shape or (16,)))).astype(np.float32)
