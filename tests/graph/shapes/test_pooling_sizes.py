"""A pool with ceil_mode is as large as onnxruntime makes it, at every opset."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from builders.chains import ints, node, random
from builders.models import build, relative, run
from pcns_onnx import inspect, shrink
from pcns_onnx.graph import Graph

OPS = {"MaxPool": (10, 20, 22), "AveragePool": (10, 19, 20, 22), "LpPool": (18, 20, 22)}


def windows(op: str, opset: int) -> list[dict[str, Any]]:
    """Kernels, strides, paddings and dilations that the operator takes; onnx is wrong on some of them."""
    dilations = (1, 2) if op == "MaxPool" or opset >= 19 else (1,)
    cases = list[dict[str, Any]]()
    for kernel, stride, front, back, dilation in product((1, 2, 3), (1, 2, 3), (0, 1), (0, 1), dilations):
        if max(front, back) < kernel:
            attributes: dict[str, Any] = {"kernel_shape": [kernel], "strides": [stride], "pads": [front, back]}
            cases.append(attributes | ({"dilations": [dilation]} if dilation > 1 else {}))
    return [*cases, {"kernel_shape": [2], "strides": [3], "auto_pad": "VALID"}]


@pytest.mark.parametrize("op, opset", [(op, opset) for op, opsets in OPS.items() for opset in opsets])
def test_inferred_sizes_are_those_of_onnxruntime(op: str, opset: int) -> None:
    for attributes in windows(op, opset):
        for rank, size in ((1, 5), (2, 7), (3, 5)):
            wide = {k: v if k == "auto_pad" else [n for n in v for _ in range(rank)] for k, v in attributes.items()}
            model = build([node(op, "x", "y", ceil_mode=1, **wide)], {}, ("N", 1, *[size] * rank), opset=opset)
            measured = run(model, np.zeros((2, 1, *[size] * rank), dtype=np.float32)).shape
            assert Graph.load(model).shapes()["y"] == measured, (op, opset, wide)


def pooled(op: str, rank: int, opset: int, reader: str) -> onnx.ModelProto:
    """A Conv of 16 channels in pairs, a pool on 7 positions that has 4 per axis, and a reader."""
    half = random(8, 3, *[3] * rank)
    pool = node(op, "r", "p", name="p", kernel_shape=[2] * rank, strides=[2] * rank, pads=[1] * (2 * rank), ceil_mode=1)
    nodes = [node("Conv", "x W0", "h", name="c", pads=[1] * (2 * rank)), node("Relu", "h", "r"), pool]
    weights = {"W0": np.concatenate([half, half])}
    if reader == "Conv":
        nodes.append(node("Conv", "p W1", "y", name="d"))
        weights["W1"] = random(4, 16, *[1] * rank)
    else:
        nodes += [node("Reshape", "p s", "f"), node("Gemm", "f W1", "y", name="d")]
        weights |= {"s": ints(-1, 16 * 4**rank), "W1": random(16 * 4**rank, 4)}
    model = build(nodes, weights, ("N", 3, *[7] * rank), opset=opset)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.output[0].type.tensor_type.shape.CopyFrom(
        helper.make_tensor_type_proto(
            1, ["N", 4, *(["a", "b", "c"][:rank] if reader == "Conv" else [])]
        ).tensor_type.shape
    )
    return model


@pytest.mark.parametrize("reader", ["Conv", "Reshape"])
@pytest.mark.parametrize(
    "op, rank, opset",
    [
        ("MaxPool", 2, 22),
        ("MaxPool", 2, 20),
        ("MaxPool", 1, 13),
        ("AveragePool", 2, 20),
        ("AveragePool", 3, 13),
        ("LpPool", 2, 18),
    ],
)
def test_what_lies_behind_is_counted_and_narrowed(op: str, rank: int, opset: int, reader: str) -> None:
    model = pooled(op, rank, opset, reader)
    stale = onnx.shape_inference.infer_shapes(model).graph.value_info
    model.graph.value_info.extend(value for value in stale if value.name == "p")
    x = np.random.default_rng(0).standard_normal((300, 3, *[7] * rank)).astype(np.float32)
    macs = 16 * 3 * 3**rank * 7**rank + 4 * 16 * 4**rank
    assert inspect(model).macs == macs
    result = shrink(model, x, width=0.5, multiple=1, refine=0)
    assert (result.report.before.macs, result.report.after.macs) == (macs, macs // 2)
    (written,) = [value for value in result.model.graph.value_info if value.name == "p"]
    assert [dim.dim_value for dim in written.type.tensor_type.shape.dim][1:] == [8, *[4] * rank]
    assert relative(run(model, x[:9]), run(result.model, x[:9])) < 0.1
