"""int8 weights: a written file computes the same on every processor, at the least cost in precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from onnx import helper, numpy_helper

from builders.models import Array, build
from pcns_onnx.data.dataset import open_data
from pcns_onnx.graph import Graph
from pcns_onnx.rewrite.lowering.quantize import in_precision
from pcns_onnx.rewrite.lowering.weight_scales import PAIR_LIMIT, bits_lost, safe_scales
from pcns_onnx.runtime.samples import Samples


def quantised(model: onnx.ModelProto, x: Array) -> tuple[onnx.ModelProto, list[str]]:
    source = Graph.load(model)
    graph, warnings = in_precision("int8", source, Samples(open_data(x, source.inputs), len(x)))
    return graph.proto, warnings


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def layer(op: str, weights: Array, shape: tuple[int | str, ...], **attributes: Any) -> onnx.ModelProto:
    return build([helper.make_node(op, ["x", "w"], ["y"], **attributes)], {"w": weights}, shape, opset=13)


def summands(op: str, weights: Array, **attributes: int) -> Array:
    """(output channels, summands), neighbours as a kernel on channels-last data has them."""
    if op == "Conv":
        return weights.transpose(0, 2, 3, 1).reshape(len(weights), -1)
    return weights if attributes.get("transB") else weights.T


def patches(x: Array, kernel: int, groups: int) -> Array:
    """(positions, groups, summands) of images without padding."""
    windows = sliding_window_view(x, (kernel, kernel), axis=(2, 3))
    n, channels, height, width = windows.shape[:4]
    split = windows.reshape(n, groups, channels // groups, height, width, kernel, kernel)
    return np.asarray(split.transpose(0, 3, 4, 1, 5, 6, 2).reshape(n * height * width, groups, -1))


def in_exact_integers(model: onnx.ModelProto, op: str, x: Array, groups: int, **attributes: int) -> tuple[Array, float]:
    """What the file says, summed in 64 bits: (positions, output channels) and the step of the output."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    dtypes = {name: array.dtype for name, array in stored.items()}
    (of_x, of_y) = (node for node in model.graph.node if node.op_type == "QuantizeLinear")
    (of_w,) = (n for n in model.graph.node if n.op_type == "DequantizeLinear" and dtypes.get(n.input[0]) == np.int8)
    (scale_x, zero_x), (scale_y, zero_y) = ([stored[name] for name in n.input[1:]] for n in (of_x, of_y))
    weights, scale_w = stored[of_w.input[0]].astype(np.int64), stored[of_w.input[1]]
    q = np.clip(np.rint(x / scale_x) + zero_x, 0, 255).astype(np.int64) - np.int64(zero_x)
    columns = patches(q, weights.shape[-1], groups) if op == "Conv" else q[:, None]
    rows = summands(op, weights, **attributes)
    total = np.einsum("pgk,gok->pgo", columns, rows.reshape(groups, -1, rows.shape[1])).reshape(len(columns), -1)
    y = np.clip(np.rint(total * scale_w / scale_y * scale_x) + zero_y, 0, 255) - zero_y
    return np.asarray(y * scale_y), float(scale_y)


CASES = {
    "MatMul": ("MatMul", (64, 16), (4, 64), 1, {}),
    "Gemm": ("Gemm", (16, 63), (4, 63), 1, {"transB": 1}),
    "Conv 3x3 on 3 channels": ("Conv", (16, 3, 3, 3), (1, 3, 8, 8), 1, {}),
    "Conv 3x3 on 16 channels": ("Conv", (16, 16, 3, 3), (1, 16, 8, 8), 1, {}),
    "Conv 1x1": ("Conv", (32, 16, 1, 1), (1, 16, 8, 8), 1, {}),
    "grouped Conv": ("Conv", (32, 8, 3, 3), (1, 32, 8, 8), 4, {}),
    "depthwise Conv": ("Conv", (16, 1, 3, 3), (1, 16, 8, 8), 16, {}),
    "depthwise Conv with a multiplier": ("Conv", (32, 1, 3, 3), (1, 16, 8, 8), 16, {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_worst_case_computes_what_exact_integers_give(case: str, sign: int, rng: np.random.Generator) -> None:
    """All weights near the largest and of one sign, all activations near 255: every pair would saturate."""
    op, shape, fed, groups, attributes = CASES[case]
    weights = (sign * rng.uniform(0.9, 1, shape)).astype(np.float32)
    x = rng.uniform(0.9, 1, fed).astype(np.float32)
    group = {"group": groups} if op == "Conv" else {}
    model, _ = quantised(layer(op, weights, fed, **attributes, **group), x)
    want, step = in_exact_integers(model, op, x, groups, **attributes)
    got = np.asarray(session(model).run(None, {"x": x})[0])
    got = got.transpose(0, 2, 3, 1).reshape(want.shape) if op == "Conv" else got
    assert np.abs(got - want).max() <= 1.01 * step


def maddubs(a: Array, w: Array) -> Array:
    """What `pmaddubsw` makes of pairs: two products, added in 16 bits with saturation."""
    return np.asarray(np.clip((a * w).reshape(len(w), -1, 2).sum(axis=2), -(2**15), 2**15 - 1))


@given(seed=st.integers(0, 2**32 - 1), channels=st.integers(1, 8), pairs=st.integers(1, 40), tail=st.floats(0.3, 4))
def test_no_pair_saturates_and_no_scale_is_larger_than_it_must(
    seed: int, channels: int, pairs: int, tail: float
) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.standard_t(tail, (2 * pairs, channels)).astype(np.float32)
    (entry,) = safe_scales(Graph.load(layer("MatMul", weights, ("N", 2 * pairs))))
    rows, least = weights.T, np.abs(weights).max(axis=0) / np.float32(127)
    q = np.rint(rows / entry.scales[:, None]).astype(np.int64)
    for a in (np.where(q > 0, 255, 0), np.where(q < 0, 255, 0)):
        assert (maddubs(a, q) == (a * q).reshape(channels, -1, 2).sum(axis=2)).all()
    assert (entry.scales >= least * (1 - 1e-6)).all() and (entry.scales <= least * 2.01).all()
    finer = np.rint(rows / (entry.scales[:, None] * np.float32(0.998))).reshape(channels, -1, 2).sum(axis=2)
    assert ((np.abs(finer).max(axis=1) > PAIR_LIMIT) | (entry.scales <= least * (1 + 1e-6))).all()
    assert 0 <= entry.bits_lost <= 1.01


def test_a_channel_that_cannot_overflow_keeps_all_its_bits() -> None:
    weights = np.array([[127, 127], [1, 127], [-127, 3], [-1, -127]], np.float32)
    (entry,) = safe_scales(Graph.load(layer("MatMul", weights, ("N", 4))))
    assert entry.scales[0] == 1
    assert np.rint(127 / entry.scales[1]) == 64  # 64 + 64: the largest that fits


def test_a_depthwise_conv_keeps_its_scales() -> None:
    weights = np.full((16, 1, 3, 3), 127, np.float32)
    (entry,) = safe_scales(Graph.load(layer("Conv", weights, (1, 16, 8, 8), group=16)))
    assert (entry.scales == 1).all() and entry.bits_lost == 0


def test_a_channel_of_zeros_is_quantised(rng: np.random.Generator) -> None:
    weights = (rng.standard_normal((8, 4)) * [1, 0, 1, 1]).astype(np.float32)
    x = rng.standard_normal((32, 8)).astype(np.float32)
    model, _ = quantised(layer("MatMul", weights, ("N", 8)), x)
    assert (np.asarray(session(model).run(None, {"x": x})[0])[:, 1] == 0).all()


@pytest.mark.parametrize("others", [("MatMul",), ("Gemm",), ("Gather",), ("Add",), ("Gemm", "Gather")])
def test_a_matrix_that_is_read_in_several_ways_is_right_for_all(
    others: tuple[str, ...], rng: np.random.Generator
) -> None:
    nodes = {
        "MatMul": [helper.make_node("MatMul", ["a", "w"], ["MatMul"])],
        "Gemm": [helper.make_node("Gemm", ["a", "w"], ["Gemm"], transB=1)],
        "Gather": [
            helper.make_node("ArgMax", ["x"], ["rows"], axis=1, keepdims=0),
            helper.make_node("Gather", ["w", "rows"], ["Gather"]),
        ],
        "Add": [helper.make_node("Add", ["a", "w"], ["Add"])],
    }
    read = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["a"])]
    summed = helper.make_node("Sum", ["a", *others], ["y"])
    weights = rng.standard_normal((8, 8)) * np.linspace(0.1, 1, 8)  # scales of the wrong axis would show
    x = rng.standard_normal((8, 8)).astype(np.float32)
    exact = build(
        [*read, *(node for other in others for node in nodes[other]), summed],
        {"w": weights.astype(np.float32)},
        [8, 8],
        opset=13,
    )
    model, _ = quantised(exact, x)
    want, got = (np.asarray(session(m).run(None, {"x": x})[0]) for m in (exact, model))
    assert np.linalg.norm(got - want) < 0.03 * np.linalg.norm(want)


def test_what_it_costs_is_said_where_it_is_much(rng: np.random.Generator) -> None:
    x = rng.uniform(0, 1, (32, 64)).astype(np.float32)
    spread = rng.standard_normal((64, 16)).astype(np.float32)
    flat = rng.uniform(0.9, 1, (64, 16)).astype(np.float32)
    assert bits_lost(safe_scales(Graph.load(layer("MatMul", flat, ("N", 64))))) > 0.9
    (warning,) = quantised(layer("MatMul", flat, ("N", 64)), x)[1]
    assert "of 8 bits" in warning and "VNNI" in warning
    assert not quantised(layer("MatMul", spread, ("N", 64)), x)[1]
