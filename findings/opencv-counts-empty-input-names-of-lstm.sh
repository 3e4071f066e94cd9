#!/usr/bin/env bash
# OpenCV 5's importer counts optional inputs that are left out: an LSTM with empty names at its end is refused
#
# Guess: an optional input of which the name is empty is the same as one that is not there ("optional inputs may be left
#   out: trailing ones by leaving them away, others by an empty name", ONNX's text; the checker takes both).
# What happens: an LSTM with X, W, R and B runs. The same node with one empty name behind them is refused ("not
#   implemented"); with three (sequence_lens, initial_h, initial_c) an assertion about a Mat fails when it runs.
# Why it matters: tools that take zero states away leave such names. Cut empty names at the end of every node that
#   you edit: all readers take the short form.
# Source: https://github.com/onnx/onnx/blob/main/docs/IR.md (optional inputs and outputs);
#   modules/dnn/src/layers/recurrent2_layers.cpp
set -euo pipefail
export ORT_DISABLE_TELEMETRY="${ORT_DISABLE_TELEMETRY-1}"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  numpy==2.4.6 ml-dtypes==0.6.0 protobuf==7.36.2 onnx==1.23.2 onnxruntime==1.32.0 opencv-python-headless==5.0.0.93

cat > probe.py <<'PROBE'
import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
import onnxruntime

print("OpenCV", cv2.__version__, "onnxruntime", onnxruntime.__version__)
STEPS, WIDTH = 5, 8
rng = np.random.default_rng(0)
shapes = {"w": (1, 4 * WIDTH, 3), "r": (1, 4 * WIDTH, WIDTH), "b": (1, 8 * WIDTH)}
weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
x = rng.standard_normal((STEPS, 1, 3)).astype(np.float32)


def model(more):
    """An LSTM over five steps; `more` are the names behind W, R and B."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [STEPS, 1, 3]), ("y", [STEPS, 1, WIDTH]))]
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r", "b", *more], ["steps"], hidden_size=WIDTH),
        helper.make_node("Squeeze", ["steps", "axis"], ["y"]),
    ]
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    stored.append(numpy_helper.from_array(np.array([1]), "axis"))
    graph = helper.make_graph(nodes, "probe", values[:1], values[1:], stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


def opencv(content, engine):
    network = cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8), engine)
    network.setInput(x)
    return network.forward()


def outcome(more, engine):
    want = onnxruntime.InferenceSession(model(more), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    try:
        return "same" if np.allclose(opencv(model(more), engine).ravel(), want.ravel(), atol=1e-5) else "other values"
    except cv2.error as error:
        return str(error).splitlines()[0][:110]


for title, engine in (("new", cv2.dnn.ENGINE_NEW), ("classic", cv2.dnn.ENGINE_CLASSIC)):
    found = [outcome([""] * count, engine) for count in (0, 1, 3)]
    for count, said in zip((0, 1, 3), found):
        print(f"{title} engine, {count} empty names at the end: {said}")
    assert found[0] == "same"
    assert found[1].startswith("OpenCV(5.0.0)") and found[2].startswith("OpenCV(5.0.0)"), "mended"
PROBE
venv/bin/python probe.py
