"""A small detector with its post-processing in the graph, and all in it that graphsurgeon has no place for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from builders.models import Array

SIZE, CLASSES = 16, 3
PLACES = SIZE * SIZE // 4
PADS = (1, 1, 1, 1)


def images(count: int, seed: int = 0) -> Array:
    """Blobs on a noisy ground, shape (count, 3, SIZE, SIZE), float32."""
    rng = np.random.default_rng(seed)
    at = np.arange(SIZE)
    x = 0.1 * rng.standard_normal((count, 3, SIZE, SIZE))
    for _ in range(2):
        row, column = rng.integers(2, SIZE - 2, (2, count, 1))
        blob = np.exp(-((at - row) ** 2)[:, :, None] / 6 - ((at - column) ** 2)[:, None, :] / 6)
        x += blob[:, None] * rng.uniform(0.3, 1, (count, 3, 1, 1))
    return x.astype(np.float32)


def _weights() -> dict[str, Array]:
    """A backbone in which every channel is there twice, but for a thousandth."""
    rng = np.random.default_rng(7)

    def he(*shape: int) -> Array:
        return rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)

    def twice(*shape: int) -> Array:
        half = he(*shape)
        return np.concatenate([half, 1.5 * half + 1e-3 * he(*shape)])

    stored = {
        "stem.w": twice(8, 3, 3, 3), "stem.b": np.tile([0.1, 0.15], (8, 1)).T.reshape(-1),
        "body.w": twice(8, 16, 3, 3), "body.b": np.tile([0.1, 0.15], (8, 1)).T.reshape(-1),
        "box.w": he(4, 16, 1, 1), "box.b": np.zeros(4),
        "score.w": he(CLASSES, 16, 1, 1), "score.b": np.full(CLASSES, -1),
        "anchor.scale": np.float32(1 / 8),
    }  # fmt: skip
    floats = {name: np.asarray(value, dtype=np.float32) for name, value in stored.items()}
    shapes = {"box.shape": np.array([0, 4, -1]), "score.shape": np.array([0, CLASSES, -1])}
    return floats | shapes | {"most": np.array([5]), "overlap": np.float32(0.5), "least": np.float32(0.5)}


def _anchors() -> TensorProto:
    """Corners of a box at each place in eighths of the image, int4, shape (PLACES, 4)."""
    row, column = np.divmod(np.arange(PLACES), SIZE // 2)
    corners = np.stack([row - 1, column - 1, row + 1, column + 1], 1) - 1
    return numpy_helper.from_array(corners.astype(helper.tensor_dtype_to_np_dtype(TensorProto.INT4)), "anchors")


def _decode() -> onnx.FunctionProto:
    node = helper.make_node
    nodes = [
        node("Tanh", ["raw"], ["bent"], doc_string="a box moves by one anchor at most"),
        node("Transpose", ["bent"], ["turned"], perm=[0, 2, 1]),
        node("Mul", ["turned", "scale"], ["shift"]),
        node("Add", ["shift", "anchors"], ["boxes"]),
    ]
    inputs, opsets = ["raw", "anchors", "scale"], [helper.make_opsetid("", 21)]
    function = helper.make_function("my.detector", "Decode", inputs, ["boxes"], nodes, opsets, doc_string="corners")
    function.metadata_props.add(key="kind", value="function")
    function.node[0].metadata_props.add(key="kind", value="node of a function")
    return function


def detector() -> onnx.ModelProto:
    """x -> Conv, Relu, Conv, Relu -> two heads -> decode, NonMaxSuppression; with int4, sparse and a function."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "stem.w", "stem.b"], ["stem.y"], "stem", strides=[2, 2], pads=PADS, doc_string="first"),
        node("Relu", ["stem.y"], ["stem.r"], "stem.relu"),
        node("Conv", ["stem.r", "body.w", "body.b"], ["body.y"], "body", pads=PADS),
        node("Relu", ["body.y"], ["body.r"], "body.relu"),
        node("Conv", ["body.r", "box.w", "box.b"], ["box.y"], "box"),
        node("Conv", ["body.r", "score.w", "score.b"], ["score.y"], "score"),
        node("Reshape", ["box.y", "box.shape"], ["box.raw"], "box.flat"),
        node("Reshape", ["score.y", "score.shape"], ["score.raw"], "score.flat"),
        node("DequantizeLinear", ["anchors", "anchor.scale"], ["corners"], "unpack", doc_string="int4"),
        node("Decode", ["box.raw", "corners", "anchor.scale"], ["boxes"], "decode", domain="my.detector"),
        # onnx's shape inference takes a sparse tensor for one of rank 0, so an operator that it does not know reads it.
        node("FusedMatMul", ["mixing", "score.raw"], ["mixed"], "mix", domain="com.microsoft"),
        node("QuickGelu", ["mixed"], ["bent"], "bend", domain="com.microsoft", alpha=1.0),
        node("Sigmoid", ["bent"], ["scores"], "squash"),
        node("NonMaxSuppression", ["boxes", "scores", "most", "overlap", "least"], ["selected"], "suppress"),
    ]  # fmt: skip
    value, kinds = helper.make_tensor_value_info, TensorProto
    mixing = numpy_helper.from_array(np.array([1, 1, 0.5, 1], np.float32), "mixing")
    graph = helper.make_graph(
        nodes, "detector", [value("x", kinds.FLOAT, ["n", 3, SIZE, SIZE])],
        [value("boxes", kinds.FLOAT, ["n", PLACES, 4]), value("scores", kinds.FLOAT, ["n", CLASSES, PLACES]),
         value("selected", kinds.INT64, ["k", 3])],
        [*(numpy_helper.from_array(w, name) for name, w in _weights().items()), _anchors()],
        sparse_initializer=[helper.make_sparse_tensor(
            mixing, numpy_helper.from_array(np.array([0, 4, 5, 8]), "mixing.at"), [CLASSES, CLASSES])],
        value_info=[value("box.raw", kinds.FLOAT, ["n", 4, PLACES]),
                    value("score.raw", kinds.FLOAT, ["n", CLASSES, PLACES])],
    )  # fmt: skip
    opsets = [helper.make_opsetid(*opset) for opset in (("", 21), ("com.microsoft", 1), ("my.detector", 1))]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=[_decode()])
    _describe(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _describe(model: onnx.ModelProto) -> None:
    """Names, texts and notes wherever the format has a place for them."""
    model.doc_string, model.domain, model.model_version = "finds blobs", "org.blobs", 3
    model.producer_name, model.producer_version = "the tests", "1"
    graph = model.graph
    graph.doc_string, graph.input[0].doc_string, graph.initializer[0].doc_string = "a graph", "images", "weights"
    graph.input[0].type.denotation = "IMAGE"
    annotation = graph.quantization_annotation.add(tensor_name="x")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="least")
    parts: dict[str, Iterable[Any]] = {
        "model": [model], "graph": [graph], "node": graph.node, "tensor": graph.initializer, "input": graph.input,
    }  # fmt: skip
    for kind, described in parts.items():
        for part in described:
            part.metadata_props.add(key="kind", value=kind)
