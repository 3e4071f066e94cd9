#!/usr/bin/env bash
# onnx.reference computes Softmax of opset 11 by the rule of opset 13
#
# Guess: the evaluator that ONNX ships as the reference follows the opset that the model imports; where it has no
#   old version of an operator it says so (as it does for DequantizeLinear 13).
# What happens: until opset 12, Softmax flattens the dimensions from axis to the last and normalises over all of
#   them; since 13 it normalises along axis alone. ReferenceEvaluator has one Softmax and uses it for every opset,
#   without a warning. The results agree where axis is the last dimension, so a test on a classifier's logits
#   passes.
# Why it matters: people settle disputes between two runtimes with the reference evaluator. For files of opset 12
#   and below it confirms the wrong one. LogSoftmax and Hardmax are the same.
# Source: https://onnx.ai/onnx/operators/onnx__Softmax.html (versions 11 and 13); onnx/reference/ops/op_softmax.py
#   in onnx/onnx
set -euo pipefail
export ORT_DISABLE_TELEMETRY="${ORT_DISABLE_TELEMETRY-1}"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  numpy==2.4.6 ml-dtypes==0.6.0 protobuf==7.36.2 onnx==1.23.2 onnxruntime==1.32.0

cat > probe.py <<'PROBE'
import numpy as np
import onnx
import onnxruntime
from onnx import helper
from onnx.reference import ReferenceEvaluator

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
X = np.arange(4, dtype=np.float32).reshape(1, 2, 2)


def softmax(opset, axis):
    graph = helper.make_graph(
        [helper.make_node("Softmax", ["x"], ["y"], axis=axis)],
        "softmax",
        [helper.make_tensor_value_info("x", 1, [1, 2, 2])],
        [helper.make_tensor_value_info("y", 1, [1, 2, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def both(model):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": X})[0], ReferenceEvaluator(model).run(None, {"x": X})[0]


for opset, axis, agree in ((11, 1, False), (11, 2, True), (13, 1, True)):
    computed, reference = both(softmax(opset, axis))
    print("opset", opset, "axis", axis, "sum over all: onnxruntime", computed.sum(), "reference", reference.sum())
    assert np.allclose(computed, reference) == agree
old, new = both(softmax(11, 1))[1], both(softmax(13, 1))[1]
assert np.array_equal(old, new), "the reference tells the opsets apart now"
assert np.isclose(both(softmax(11, 1))[0].sum(), 1), "opset 11 is one distribution over the four numbers"
assert np.isclose(old.sum(), 2), "by the rule of 13 there are two distributions"
PROBE
venv/bin/python probe.py
