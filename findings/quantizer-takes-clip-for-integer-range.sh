#!/usr/bin/env bash
# onnxruntime's quantizer drops a Clip whose range has no 0, and rectifies an output that a Relu reads
#
# Guess: quantize_static drops a Relu or Clip only where the integer range behind it does the same; and what it does
#   behind an output of the model does not change that output, but for rounding.
# What happens: Relu and Clip are taken out, and what they read gets the range of what they made. Ranges always have 0
#   in them, so Clip(0.5, 2) becomes a clip to (0, 2): what was 0.5 is anything from 0. And 'what they read' may be an
#   output of the model, of which all that is negative is then 0. Both files load, and nothing is said.
# Why it matters: the lower bound of a Clip keeps a division or a logarithm from 0; a model with features in front of
#   an activation among its outputs loses half of them. Exclude such Clips by name (nodes_to_exclude), and read outputs
#   through an Identity of their own.
# Source: onnxruntime/python/tools/quantization/operators/activation.py (QDQRemovableActivation) and
#   base_quantizer.py (adjust_tensor_ranges); for symmetric ranges it was mended in microsoft/onnxruntime issue 11660
#   (https://github.com/microsoft/onnxruntime/issues/11660)
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
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_static

print("onnxruntime", onnxruntime.__version__)
rng = np.random.default_rng(0)
x = rng.standard_normal((64, 16)).astype(np.float32)


class Reader:
    def __init__(self):
        self.batches = iter([{"x": x}])

    def get_next(self):
        return next(self.batches, None)


def error(activation, constants, output, excluded=()):
    """Of `output`, after x -> Gemm 'a' -> activation 'b' -> MatMul 'y', in int8."""
    weights = {"w": rng.standard_normal((16, 16)), "v": np.eye(16), **constants}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), activation, helper.make_node("MatMul", ["b", "v"], ["y"])]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 16]) for n in ("x", *sorted({"y", output}))]
    stored = [numpy_helper.from_array(np.float32(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "probe", values[:1], values[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, "float.onnx")
    quantize_static("float.onnx", "int8.onnx", Reader(), nodes_to_exclude=list(excluded))
    before, after = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run([output], {"x": x})[0]
        for path in ("float.onnx", "int8.onnx")
    )
    print(f"  {activation.op_type}, output '{output}', excluded {list(excluded)}: least {before.min():.2f} -> {after.min():.2f}")
    return float(np.linalg.norm(before - after) / np.linalg.norm(before))


clip = helper.make_node("Clip", ["a", "low", "high"], ["b"], name="clip")
bounds = {"low": 0.5, "high": 2.0}
relu = helper.make_node("Relu", ["a"], ["b"], name="relu")
assert error(clip, bounds, "y") > 0.1
assert error(clip, bounds, "y", ["clip"]) < 0.05
assert error(clip, {"low": 0.0, "high": 2.0}, "y") < 0.05
assert error(relu, {}, "y") < 0.05
assert error(relu, {}, "a") > 0.3
PROBE
venv/bin/python probe.py
