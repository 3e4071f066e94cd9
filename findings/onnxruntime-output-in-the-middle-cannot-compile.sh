#!/usr/bin/env bash
# Looking at a tensor in the middle of a model can make it uncompilable, and the error that arrives is about something else
#
# Guess: any tensor of a model may be listed as an output too; optimisations then leave it alone. Where a session fails,
#   the exception says why, and a library prints nothing.
# What happens: Transpose, Gemm, Transpose become one Gemm even if the first Gemm's result is an output, and the session
#   fails: "Failed to find node output or a constant initializer producing output". The Python layer prints four lines
#   to stdout, then tries again without the initializers that were handed over in memory, so that the exception speaks
#   of a path of external data. Without fallback the true reason arrives, and with the optimiser off the model runs.
# Why it matters: whoever taps activations (quantisers, debuggers, calibration) loses runs on sound models, reads the
#   wrong reason, and finds text in the JSON on stdout.
# Source: onnxruntime, onnxruntime_inference_collection.py, InferenceSession.__init__ ("EP Error", "Falling back to"):
#   https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/python/onnxruntime_inference_collection.py
set -euo pipefail
export ORT_DISABLE_TELEMETRY="${ORT_DISABLE_TELEMETRY-1}"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  numpy==2.4.6 protobuf==7.36.2 onnx==1.23.2 onnxruntime==1.32.0

cat > probe.py <<'PROBE'
import contextlib
import io

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

print("onnxruntime", ort.__version__)
square = np.eye(32, dtype=np.float32)
nodes = [
    helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0]),
    helper.make_node("Gemm", ["xt", "g"], ["q"], transA=1),
    helper.make_node("Transpose", ["q"], ["y"], perm=[1, 0]),
]
values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [32, 32]) for name in "xyqg"}
stored = TensorProto(name="g", data_type=TensorProto.FLOAT, dims=[32, 32])
stored.data_location = TensorProto.EXTERNAL
stored.external_data.add(key="location", value="beside")
graph = helper.make_graph(nodes, "g", [values["x"]], [values["y"], values["q"]], [stored])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
weight = ort.OrtValue.ortvalue_from_numpy(square)


def outcome(level=None, **more):
    """What is raised, or 'runs', and what comes out on stdout."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_external_initializers(["g"], [weight])
    if level is not None:
        options.graph_optimization_level = level
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], **more)
            session.run(None, {"x": square})
            said = "runs"
        except Exception as error:
            said = str(error)
    return said, printed.getvalue()


plain, alone = outcome(), outcome(enable_fallback=0)
off = outcome(ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
for name, (said, printed) in {"as it comes": plain, "no fallback": alone, "not optimised": off}.items():
    print(f"{name}: {said[:110]!r}, on stdout {printed[:40]!r}")
holds = "producing output" not in plain[0] and "xternal" in plain[0] and "EP Error" in plain[1]
holds = holds and "producing output" in alone[0] and not alone[1] and off == ("runs", "")
raise SystemExit(not holds)
PROBE
venv/bin/python probe.py
