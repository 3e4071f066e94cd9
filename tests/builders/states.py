"""Models whose caller carries a state from run to run, with channels planted that do what others do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from builders.models import Array
from pcns_onnx.ops.recurrent import GATES

UNITS, PLANTED, WIDTH = 10, 4, 5
"""Units of a cell, how many of these are copies, and what it reads."""
node = helper.make_node


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Mapping[str, Sequence[Any]],
    weights: Mapping[str, Any],
) -> onnx.ModelProto:
    """A checked model; weights in float32, whole numbers as they are."""
    stored = {name: np.asarray(value) for name, value in weights.items()}
    stored = {name: v.astype(np.float32) if v.dtype == np.float64 else v for name, v in stored.items()}
    fed, results = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    )
    tensors = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = helper.make_graph(list(nodes), "states", fed, results, tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def cell_weights(rng: np.random.Generator, op: str, directions: int, width: int, units: int = UNITS) -> list[Array]:
    """W, R and B, the last units of each direction copies of the first."""
    k = GATES[op]
    w, r, b = (
        scale * rng.standard_normal(shape)
        for scale, shape in (
            (0.4, (directions, k * units, width)),
            (0.4, (directions, k * units, units)),
            (0.3, (directions, 2 * k * units)),
        )
    )
    for copy in range(PLANTED):
        for gate in range(2 * k):
            source, target = gate * units + copy, (gate + 1) * units - 1 - copy
            b[:, target] = b[:, source]
            if gate < k:
                w[:, target], r[:, target] = w[:, source], r[:, source]
    return [w, r, b]


def streaming(op: str, direction: str = "forward", layers: int = 1) -> onnx.ModelProto:
    """x (T, N, 5) and h (layers * directions, N, H), of an LSTM c too -> y (T, N, 3), hN and cN."""
    rng, directions = np.random.default_rng(3), 2 if direction == "bidirectional" else 1
    names, weights = (["h", "c"] if op == "LSTM" else ["h"]), dict[str, Any]()
    nodes, source, width = list[onnx.NodeProto](), "x", WIDTH
    for layer in range(layers):
        for name, value in zip("WRB", cell_weights(rng, op, directions, width), strict=True):
            weights[f"{name}{layer}"] = value
        first, last = names, [f"{name}N" for name in names]
        if layers > 1:
            first, last = ([f"{name}{end}{layer}" for name in names] for end in ("", "N"))
            weights |= {f"from{layer}": [layer * directions], f"to{layer}": [(layer + 1) * directions], "axis": [0]}
            nodes += [
                node("Slice", [whole, f"from{layer}", f"to{layer}", "axis"], [part])
                for whole, part in zip(names, first, strict=True)
            ]
        inputs = [source, f"W{layer}", f"R{layer}", f"B{layer}", "", *first]
        outputs = [f"Y{layer}", *last]
        nodes.append(node(op, inputs, outputs, name=f"cell{layer}", hidden_size=UNITS, direction=direction))
        width, source = directions * UNITS, f"flat{layer}"
        weights["flat"] = [0, 0, width]
        nodes.append(node("Transpose", [f"Y{layer}"], [f"turned{layer}"], perm=[0, 2, 1, 3]))
        nodes.append(node("Reshape", [f"turned{layer}", "flat"], [source]))
    if layers > 1:
        nodes += [node("Concat", [f"{n}N{at}" for at in range(layers)], [f"{n}N"], axis=0) for n in names]
    weights["V"] = 0.4 * rng.standard_normal((width, 3))
    nodes.append(node("MatMul", [source, "V"], ["y"], name="head"))
    shape = [layers * directions, "N", UNITS]
    inputs_of = {"x": ["T", "N", WIDTH], **dict.fromkeys(names, shape)}
    return model(nodes, inputs_of, {"y": ["T", "N", 3], **{f"{n}N": shape for n in names}}, weights)


def in_one_state(parts: str = "Gather") -> onnx.ModelProto:
    """A frame (N, 5) for an LSTM of one step, whose h and c lie in one state (2, N, H); taken by `parts`."""
    rng = np.random.default_rng(0)
    weights = dict(zip("WRB", cell_weights(rng, "LSTM", 1, WIDTH), strict=True), axis=[0], V=np.eye(UNITS)[:, :3])
    if parts == "Gather":
        weights |= {"first": np.array(0), "second": np.array(1)}
        nodes = [node("Gather", ["state", at], [f"{n}.row"], axis=0) for n, at in (("h", "first"), ("c", "second"))]
        nodes += [node("Unsqueeze", [f"{name}.row", "axis"], [name]) for name in "hc"]
    else:
        weights["ones"] = [1, 1]
        nodes = [node("Split", ["state", "ones"], ["h", "c"], axis=0)]
    weights["V"] = rng.standard_normal((UNITS, 3))
    nodes += [
        node("Unsqueeze", ["x", "axis"], ["steps"]),
        node("LSTM", ["steps", "W", "R", "B", "", "h", "c"], ["", "hn", "cn"], name="cell", hidden_size=UNITS),
        node("Concat", ["hn", "cn"], ["stateN"], axis=0),
        node("Squeeze", ["hn", "axis"], ["last"]),
        node("MatMul", ["last", "V"], ["y"], name="head"),
    ]
    shape = [2, "N", UNITS]
    return model(nodes, {"x": ["N", WIDTH], "state": shape}, {"y": ["N", 3], "stateN": shape}, weights)


def written_out() -> onnx.ModelProto:
    """A GRU's step as exporters write it: x (N, 5), h (N, H) -> y (N, 3), hN."""
    rng, weights, nodes = np.random.default_rng(0), dict[str, Any](), list[onnx.NodeProto]()
    for gate in "zrn":
        w, u, b = rng.standard_normal((WIDTH, UNITS)), 0.4 * rng.standard_normal((UNITS, UNITS)), np.zeros(UNITS)
        for copy in range(PLANTED):
            w[:, -1 - copy], u[:, -1 - copy] = w[:, copy], u[:, copy]
        weights |= {f"W{gate}": w, f"U{gate}": u, f"b{gate}": b + 0.1}
    weights |= {"one": np.float32(1), "V": rng.standard_normal((UNITS, 3))}
    for gate, state, function in (("z", "h", "Sigmoid"), ("r", "h", "Sigmoid"), ("n", "rh", "Tanh")):
        if gate == "n":
            nodes.append(node("Mul", ["r", "h"], ["rh"]))
        nodes += [
            node("MatMul", ["x", f"W{gate}"], [f"x{gate}"]),
            node("MatMul", [state, f"U{gate}"], [f"h{gate}"]),
            node("Add", [f"x{gate}", f"h{gate}"], [f"s{gate}"]),
            node("Add", [f"s{gate}", f"b{gate}"], [f"p{gate}"]),
            node(function, [f"p{gate}"], [gate]),
        ]
    nodes += [
        node("Sub", ["one", "z"], ["iz"]),
        node("Mul", ["iz", "n"], ["new"]),
        node("Mul", ["z", "h"], ["old"]),
        node("Add", ["new", "old"], ["hN"]),
        node("MatMul", ["hN", "V"], ["y"], name="head"),
    ]
    return model(nodes, {"x": ["N", WIDTH], "h": ["N", UNITS]}, {"y": ["N", 3], "hN": ["N", UNITS]}, weights)


def buffered() -> onnx.ModelProto:
    """A causal Conv whose last inputs are kept: x (N, 5, T), buffer (N, H, 2) -> y (N, 6, T), bufferN."""
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((UNITS, WIDTH, 1)), rng.standard_normal(UNITS)
    for copy in range(PLANTED):
        w[-1 - copy], b[-1 - copy] = w[copy], b[copy]
    weights = {"w": w, "b": b, "w2": rng.standard_normal((6, UNITS, 3)), "from": [-2], "to": [1 << 30], "axis": [2]}
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], name="first"),
        node("Relu", ["c"], ["r"]),
        node("Concat", ["buffer", "r"], ["joined"], axis=2),
        node("Slice", ["joined", "from", "to", "axis"], ["bufferN"]),
        node("Conv", ["joined", "w2"], ["y"], name="second"),
    ]
    shape = ["N", UNITS, 2]
    return model(nodes, {"x": ["N", WIDTH, "T"], "buffer": shape}, {"y": ["N", 6, "T"], "bufferN": shape}, weights)


def session(proto: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def shapes(proto: onnx.ModelProto) -> dict[str, list[Any]]:
    """Sizes, or names of sizes, of all inputs and outputs."""
    return {
        value.name: [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }


def running_free(proto: onnx.ModelProto, steps: Sequence[Array], carries: Mapping[str, str], batch: int) -> Array:
    """What comes out of `x`, step by step, each state (input -> output) being fed back; from zeros."""
    run = session(proto)
    states = {
        spec.name: np.zeros([size if isinstance(size, int) else batch for size in spec.shape], np.float32)
        for spec in run.get_inputs()
        if spec.name in carries
    }
    names, results = [spec.name for spec in run.get_outputs()], []
    for x in steps:
        outputs = dict(zip(names, run.run(None, {"x": x, **states}), strict=True))
        states = {name: outputs[source] for name, source in carries.items()}
        results.append(outputs["y"])
    return np.stack(results)


def decoded(proto: onnx.ModelProto, tokens: Array, prompt: int) -> Array:
    """Logits of a decoder: the first `prompt` tokens at once, then one after the other behind its own cache."""
    run = session(proto)
    caches = {
        spec.name: np.zeros((len(tokens), spec.shape[1], 0, spec.shape[3]), np.float32)
        for spec in run.get_inputs()
        if spec.name.startswith("past")
    }
    names, logits = [spec.name for spec in run.get_outputs()], []
    for part in (tokens[:, :prompt], *np.split(tokens[:, prompt:], tokens.shape[1] - prompt, axis=1)):
        outputs = dict(zip(names, run.run(None, {"input_ids": part, **caches}), strict=True))
        caches = {name: outputs[name.replace("past", "present")] for name in caches}
        logits.append(outputs["y"])
    return np.concatenate(logits, axis=1)
