#!/usr/bin/env bash
# Of two initializers of one name, onnxruntime takes the last if they are small and the first if they are large
#
# Guess: a file with an initializer twice is either refused, or one rule says which one counts: onnxruntime's log says
#   that it uses the one that it met last.
# What happens: below 128 bytes the last one counts, from 128 bytes on the first. Nothing is raised; onnx's checker
#   refuses the file.
# Why it matters: tools that append an initializer instead of replacing it write files whose meaning changes with the
#   size of the tensor. A reader that keeps one of the two must not believe the log.
# Source: onnxruntime, core/graph/graph.cc, the constructor of Graph ("Duplicate initializer ... the model will use the
#   latest encountered initializer"): https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/graph/graph.cc
set -euo pipefail
export ORT_DISABLE_TELEMETRY="${ORT_DISABLE_TELEMETRY-1}"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  numpy==2.4.6 protobuf==7.36.2 onnx==1.23.2 onnxruntime==1.32.0

cat > probe.py <<'PROBE'
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

print("onnxruntime", ort.__version__)


def counts(size):
    tensors = [numpy_helper.from_array(np.full(size, value, np.float32), "w") for value in (1, 2)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return float(session.run(None, {"x": np.zeros(size, np.float32)})[0][0])


took = {size: counts(size) for size in (2, 16, 31, 32, 64, 4096)}
print({4 * size: "last" if value == 2 else "first" for size, value in took.items()}, "by bytes")
raise SystemExit(took != {2: 2.0, 16: 2.0, 31: 2.0, 32: 1.0, 64: 1.0, 4096: 1.0})
PROBE
venv/bin/python probe.py
