#!/usr/bin/env bash
# onnx.reference normalises only as many channels in LRN as the batch has samples
#
# Guess: the reference evaluator's LRN gives the same answer for a sample whether it comes alone or in a batch.
# What happens: its loop over the channels runs to the length of the batch. With one sample, channel 0 is normalised
#   and the others come out untouched; with as many samples as channels all is right, which is how the operator's
#   own test (5 x 5 x 5 x 5) passes. Mended on onnx's main branch, not in this release.
# Why it matters: AlexNet, GoogLeNet and the CaffeNet family use LRN. Comparing an edited file with the reference at
#   batch 1 shows a difference that is not there, or hides one; with more samples the very same rows change.
# Source: onnx/onnx issue 7805 (https://github.com/onnx/onnx/issues/7805), mended by pull request 8331;
#   onnx/reference/ops/op_lrn.py
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
graph = helper.make_graph(
    [helper.make_node("LRN", ["x"], ["y"], size=3, alpha=1.0, beta=1.0, bias=1.0)],
    "lrn",
    [helper.make_tensor_value_info("x", 1, ["N", 4, 1, 1])],
    [helper.make_tensor_value_info("y", 1, ["N", 4, 1, 1])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
onnx.checker.check_model(model, full_check=True)
session, evaluator = onnxruntime.InferenceSession(model.SerializeToString()), ReferenceEvaluator(model)
for samples in (1, 2, 3, 4):
    x = np.ones((samples, 4, 1, 1), np.float32)
    computed = session.run(None, {"x": x})[0][0].ravel()
    reference = evaluator.run(None, {"x": x})[0][0].ravel()
    normalised = int(np.isclose(reference, computed).sum())
    untouched = int((reference == 1).sum())
    print(samples, "samples: first sample of onnxruntime", computed.round(3), "of reference", reference.round(3))
    assert (normalised, untouched) == (samples, 4 - samples)
PROBE
venv/bin/python probe.py
