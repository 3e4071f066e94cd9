"""Operators that move numbers and those that make shapes, against onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.chains import scalar
from builders.models import Array
from builders.single_node import Single, assert_same, at_opsets, in_onnxruntime, in_torch

pytest.importorskip("torch")


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


X = noise(2, 3, 4)
IMAGE = noise(2, 8, 4, 6)

CASES: Mapping[str, Single] = {
    **{f"Flatten {axis}": Single("Flatten", [X], {"axis": axis}) for axis in (0, 1, 2)},
    "Flatten from the end": Single("Flatten", [X], {"axis": -1}, low=11),
    "Reshape": Single("Reshape", [X, ints(0, -1, 2)]),
    "Reshape of nothing": Single("Reshape", [X[:0], ints(0, 6)], {"allowzero": 1}, low=14),
    "Reshape computed": Single("Reshape", [X, ints(4, -1)], feed=(0, 1)),
    "Transpose": Single("Transpose", [X]),
    "Transpose perm": Single("Transpose", [X], {"perm": [1, 0, 2]}),
    "Squeeze attribute": Single("Squeeze", [X[:, :1]], {"axes": [1]}, high=12),
    "Squeeze all": Single("Squeeze", [X[:1, :, :1]]),
    "Squeeze": Single("Squeeze", [X[:1, :, :1], ints(0, -1)], low=13),
    "Unsqueeze attribute": Single("Unsqueeze", [X], {"axes": [0, 4]}, high=12),
    "Unsqueeze": Single("Unsqueeze", [X, ints(0, -1)], low=13),
    "Concat": Single("Concat", [X, X[:, :1], noise(2, 2, 4)], {"axis": 1}, feed=(0, 1)),
    "Concat from the end": Single("Concat", [X, X], {"axis": -1}, feed=(0, 1), low=11),
    "Split": Single("Split", [X], {"axis": 2}, outputs=2, high=17),
    "Split attribute": Single("Split", [X], {"axis": 1, "split": [1, 2]}, outputs=2, high=12),
    "Split input": Single("Split", [X, ints(1, 2)], {"axis": 1}, outputs=2, low=13),
    "Split uneven": Single("Split", [X], {"axis": 1, "num_outputs": 2}, outputs=2, low=18),
    "Expand": Single("Expand", [X[:, :1], ints(2, 5, 1)], low=8),
    "Expand to more axes": Single("Expand", [X, ints(2, 1, 1, 1)], low=8),
    "Tile": Single("Tile", [X, ints(1, 2, 3)]),
    "DepthToSpace": Single("DepthToSpace", [IMAGE], {"blocksize": 2}),
    "DepthToSpace CRD": Single("DepthToSpace", [IMAGE], {"blocksize": 2, "mode": "CRD"}, low=11),
    "SpaceToDepth": Single("SpaceToDepth", [IMAGE], {"blocksize": 2}),
    **{f"Trilu {upper}": Single("Trilu", [X, np.array(1)], {"upper": upper}, low=14) for upper in (0, 1)},
    "Trilu of the diagonal": Single("Trilu", [X], low=14),
    "Shape": Single("Shape", [X]),
    "Shape part": Single("Shape", [X], {"start": -2, "end": -1}, low=15),
    "Size": Single("Size", [X]),
    "ConstantOfShape": Single("ConstantOfShape", [ints(2, 3)], low=9),
    "ConstantOfShape of ones": Single(
        "ConstantOfShape", [ints(2, 3)], {"value": numpy_helper.from_array(np.array([7], dtype=np.int32))}, low=9
    ),
    "Range": Single("Range", [np.array(1), np.array(9), np.array(3)], feed=(0, 1, 2), low=11),
    "Range of floats": Single("Range", [scalar(1), scalar(-1), scalar(-0.5)], feed=(1,), low=11),
}


@pytest.mark.parametrize(("case", "opset"), [pytest.param(c, o, id=name) for name, c, o in at_opsets(CASES)])
def test_computes_what_onnxruntime_does(case: Single, opset: int) -> None:
    assert_same(case, opset)


def sequence_model(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """i0 -> the nodes -> o0, through sequences of tensors."""
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("i0", X.shape), ("o0", [None] * 3))]
    stored = [numpy_helper.from_array(v, n) for n, v in (("two", np.array(2)), ("sizes", ints(1, 2)))]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def made(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)


SEQUENCES = {
    "SplitToSequence": [
        made("SplitToSequence", "i0 two", "s", axis=1), made("SequenceAt", "s zero", "o0"),
    ],
    "SplitToSequence of sizes": [
        made("SplitToSequence", "i0 sizes", "s", axis=1), made("ConcatFromSequence", "s", "o0", axis=1),
    ],
    "SplitToSequence to ones": [
        made("SplitToSequence", "i0", "s", axis=0, keepdims=0),
        made("ConcatFromSequence", "s", "o0", axis=1, new_axis=1),
    ],
    "SequenceConstruct": [
        made("SequenceConstruct", "i0 i0", "s"), made("ConcatFromSequence", "s", "o0", axis=-1),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_of_tensors_are_taken_apart_and_put_together(name: str) -> None:
    zero = helper.make_node("Constant", [], ["zero"], value_int=0)
    model = sequence_model(zero, *SEQUENCES[name])
    (expected,), (got,) = in_onnxruntime(model, {"i0": X}), in_torch(model, {"i0": X})
    np.testing.assert_array_equal(got, expected)
