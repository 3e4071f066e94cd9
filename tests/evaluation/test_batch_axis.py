"""A sample is what is fed, whatever axis of an output counts it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pcns_onnx import compare
from pcns_onnx.evaluation.output_tally import OutputAgreement

N, T = 70, 5
X = np.random.default_rng(0).standard_normal((N, T, 3)).astype(np.float32)


def net(shift: float, *nodes: onnx.NodeProto, shape: Sequence[str | int]) -> onnx.ModelProto:
    """h = x (N, T, 3) @ W through `nodes` to y."""
    rng = np.random.default_rng(1)
    w = rng.standard_normal((3, 4)) + shift * rng.standard_normal((3, 4))
    constants = {"w": w.astype(np.float32), "flat": np.array([-1, 4]), "table": np.arange(12, dtype=np.float32)[None]}
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), *nodes], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", T, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def compared(*nodes: onnx.NodeProto, shape: Sequence[str | int], batch: int) -> OutputAgreement:
    a, b = (net(shift, *nodes, shape=shape) for shift in (0.0, 0.1))
    report = compare(a, b, X, threads=1, batch=batch)
    assert report.agreement.samples == N
    return report.agreement.outputs[0]


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_time_may_be_the_first_axis(batch: int) -> None:
    first = compared(helper.make_node("Identity", ["h"], ["y"]), shape=["N", T, 4], batch=batch)
    time = helper.make_node("Transpose", ["h"], ["y"], perm=[1, 0, 2])
    output = compared(time, shape=[T, "N", 4], batch=batch)
    assert output.relative_error == pytest.approx(first.relative_error, rel=1e-5)
    assert output.cosine == pytest.approx(first.cosine, rel=1e-5)
    assert output.error_bound == pytest.approx(first.error_bound, rel=1e-5) and output.error_bound is not None
    assert [w.sample for w in output.worst] == [w.sample for w in first.worst]
    assert output.feeds is None


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_rows_of_a_flattened_output_are_no_samples(batch: int) -> None:
    output = compared(helper.make_node("Reshape", ["h", "flat"], ["y"]), shape=["M", 4], batch=batch)
    whole = compared(helper.make_node("Identity", ["h"], ["y"]), shape=["N", T, 4], batch=batch)
    assert output.error_bound == pytest.approx(whole.error_bound, rel=1e-5)
    assert output.argmax_agreement is not None and output.argmax_bound is None


def test_what_no_axis_counts_is_counted_by_feed() -> None:
    total = helper.make_node("ReduceSum", ["h"], ["y"], keepdims=0)
    output = compared(total, shape=[], batch=7)
    assert output.feeds == N // 7 and output.error_bound is None and output.cosine is None


def test_a_single_number_has_no_cosine() -> None:
    mean = helper.make_node("ReduceMean", ["h"], ["y"], axes=[1, 2], keepdims=0)
    output = compared(mean, shape=["N"], batch=16)
    assert output.cosine is None and output.relative_error and output.error_bound
    assert output.error_bound < 5 * output.relative_error  # some are near 0, and no sample is off by much
