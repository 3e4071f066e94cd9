#!/usr/bin/env bash
# A model declares an output of shape (1, length), passes every check, and gives (2, 3, 4)
#
# Guess: the rank of a declared output binds: the full check refuses a model that breaks it, or the runtime does.
# What happens: where inference cannot tell the shape, the declaration is taken at its word. onnx's full check and
#   strict inference with data propagation pass; onnxruntime warns at most and gives whatever the graph computes.
# Why it matters: whoever plans buffers or reads meaning out of declared shapes ("rank 2, so these are classes") is
#   wrong on deployed files. ddddocr 1.6.1 ships common.onnx, which declares [1, seqlen] and gives (steps, 1, 8210).
# Source: sml2h3/ddddocr issue 196 (https://github.com/sml2h3/ddddocr/issues/196, the warning for {1,-1} against
#   {24,1,8210}); microsoft/onnxruntime issue 12284 (https://github.com/microsoft/onnxruntime/issues/12284); the wheel
#   of ddddocr 1.6.1 on PyPI, run on 2026-11-30
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
from onnx import TensorProto, helper

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
graph = helper.make_graph(
    [helper.make_node("Reshape", ["x", "shape"], ["y"])],
    "declared",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"]),
     helper.make_tensor_value_info("shape", TensorProto.INT64, ["R"])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "length"])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model, full_check=True)
inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph.output[0]
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = onnxruntime.InferenceSession(model.SerializeToString(), options)
(y,) = session.run(None, {"x": np.zeros(24, np.float32), "shape": np.array([2, 3, 4])})
print("declared", session.get_outputs()[0].shape, "checked in full", "given", y.shape)
assert session.get_outputs()[0].shape == [1, "length"] and len(inferred.type.tensor_type.shape.dim) == 2
assert y.shape == (2, 3, 4)
PROBE
venv/bin/python probe.py
