#!/usr/bin/env bash
# onnxruntime's float32 Sigmoid is wrong by percents far out, and exactly 0 from about -18 on
#
# Guess: a float32 Sigmoid of -14 is right to about seven digits, as in NumPy and PyTorch, and is 0 only where
#   exp(x) is below the smallest float (-104).
# What happens: the CPU kernel is a quotient of polynomials plus one half on x clipped to [-18, 18]. Its absolute
#   error stays below 1e-7, so what lies near 0 has no digits left: at -14.3 it errs by percents, and at -18
#   and beyond it is 0. Near 1 nothing shows.
# Why it matters: the logarithm of such an output (a loss, a KL between two models) is off by percents or -inf, and a
#   comparison with another runtime by relative error fails where nothing is wrong (detectors whose maps are nearly
#   all background, wake words). Compare absolutely, or in front of the Sigmoid.
# Source: onnxruntime/core/mlas/lib/logistic.cpp (LowerRange -18; https://github.com/microsoft/onnxruntime)
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

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
values = [helper.make_tensor_value_info(name, 1, ["N"]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Sigmoid", ["x"], ["y"])], "g", values[:1], values[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
x = np.linspace(-30, 0, 3001, dtype=np.float32)
y = session.run(None, {"x": x})[0].astype(np.float64)
right = 1 / (1 + np.exp(-x.astype(np.float64)))
relative, absolute = np.abs(y - right) / right, np.abs(y - right)
for at in (-1, -5, -10, -14, -16, -17.5, -18, -20):
    i = int(np.argmin(np.abs(x - at)))
    print(f"{x[i]:7.2f}  right {right[i]:.4e}  onnxruntime {y[i]:.4e}  off by {relative[i]:.1%}")
print("largest absolute error:", absolute.max())
assert absolute.max() < 2e-7
assert relative[x > -2].max() < 1e-5
assert relative[(x < -14) & (x > -18)].max() > 0.02
assert (y[x < -18.5] == 0).all()
PROBE
venv/bin/python probe.py
