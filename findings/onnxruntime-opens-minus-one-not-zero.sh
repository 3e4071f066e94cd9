#!/usr/bin/env bash
# An input size written as -1 is open to onnxruntime, the same size written as 0 fits no array
#
# Guess: dim_value 0 and -1 both are how exporters without names write an open size (PaddlePaddle: -1, TensorFlow
#   and older Keras converters: 0), so a runtime that opens one opens the other, or refuses both files.
# What happens: onnx's checker passes both. onnxruntime loads both without a word. Fed five rows, the file with -1
#   runs; that with 0 says "Got invalid dimensions ... Got: 5 Expected: 0". An array of no rows runs, so 0 is meant
#   literally. onnx's shape inference keeps -1 and 0 as sizes of all that follows.
# Why it matters: tools that read dim_value divide by it, allocate -1 rows, or multiply costs to 0; and whoever feeds
#   a file with 0 is told that the data is wrong, though it is the file. Clear the field before making a session.
# Source: onnx IR.md, "a size may be an unknown value, in which case neither dim_value nor dim_param is set"
#   (https://github.com/onnx/onnx/blob/main/docs/IR.md#static-tensor-shapes)
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  numpy==2.4.6 protobuf==7.36.2 onnx==1.23.2 onnxruntime==1.32.0
export ORT_DISABLE_TELEMETRY=1

cat > probe.py <<'PROBE'
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, shape_inference

print("onnx", onnx.__version__, "onnxruntime", ort.__version__)


def model(size):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Neg", ["h"], ["y"])], "g", *([v] for v in values))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def runs(made, rows):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    try:
        return session.run(None, {"x": np.zeros((rows, 4), np.float32)})[0].shape
    except Exception as error:
        return " ".join(str(error).split())[:120]


minus, zero = model(-1), model(0)
print("-1, five rows:", runs(minus, 5))
print(" 0, five rows:", runs(zero, 5))
print(" 0, no rows:  ", runs(zero, 0))
assert runs(minus, 5) == (5, 4)
assert "invalid dimensions" in runs(zero, 5)
assert runs(zero, 0) == (0, 4)
for made, size in ((minus, -1), (zero, 0)):
    hidden = shape_inference.infer_shapes(made).graph.value_info[0].type.tensor_type.shape.dim[0]
    print(f"{size:2}: inference says of what follows:", hidden.dim_value, "set:", hidden.HasField("dim_value"))
    assert hidden.HasField("dim_value") and hidden.dim_value == size
    made.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_value")
    assert runs(made, 5) == (5, 4)
PROBE
venv/bin/python probe.py
