#!/usr/bin/env bash
# onnxruntime's recommended preprocessing makes its own per-channel quantization raise
#
# Guess: quant_pre_process is advised before quantize_static, so a model that quantizes without it also quantizes
#   after it.
# What happens: preprocessing fuses MatMul and Add into Gemm and leaves the bias as it was: of shape (1, N), which
#   Gemm allows. Per-channel quantization of the bias takes one row per channel, meets an array where it wants a
#   number, and raises 'The truth value of an array with more than one element is ambiguous'. Without preprocessing,
#   or per tensor, the same model quantizes. A bias of shape (N,) is fine either way.
# Why it matters: an Add takes any shape that broadcasts, so exporters have no reason to avoid (1, N). The message
#   names neither the node nor the bias, and the step to leave out is the one that the guide asks for.
# Source: microsoft/onnxruntime issue 24815 and pull request 29747
#   (https://github.com/microsoft/onnxruntime/pull/29747, open); the advice:
#   https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
set -euo pipefail
export ORT_DISABLE_TELEMETRY="${ORT_DISABLE_TELEMETRY-1}"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  numpy==2.4.6 ml-dtypes==0.6.0 protobuf==7.36.2 onnx==1.23.2 onnxruntime==1.32.0 sympy==1.14.0

cat > probe.py <<'PROBE'
import logging

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

logging.disable(logging.WARNING)
print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)


class Samples(CalibrationDataReader):
    def __init__(self):
        samples = np.random.default_rng(0).normal(size=(4, 8, 4)).astype(np.float32)
        self.feeds = iter([{"x": sample} for sample in samples])

    def get_next(self):
        return next(self.feeds, None)


def save(bias_shape):
    weight = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", 1, ["N", 4])],
        [helper.make_tensor_value_info("y", 1, ["N", 3])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.ones(bias_shape, np.float32), "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, "raw.onnx")
    quant_pre_process("raw.onnx", "prepared.onnx")
    assert [node.op_type for node in onnx.load("prepared.onnx").graph.node] == ["Gemm"]


def outcome(path, per_channel):
    try:
        quantize_static(path, "quantized.onnx", Samples(), per_channel=per_channel)
    except ValueError as error:
        return str(error)
    onnxruntime.InferenceSession("quantized.onnx")
    return "quantized"


AMBIGUOUS = "The truth value of an array with more than one element is ambiguous. Use a.any() or a.all()"
for bias_shape in ((1, 3), (3,)):
    save(bias_shape)
    for path in ("raw.onnx", "prepared.onnx"):
        for per_channel in (False, True):
            result = outcome(path, per_channel)
            print("bias", bias_shape, path, "per channel:", per_channel, "->", result)
            fails = bias_shape == (1, 3) and path == "prepared.onnx" and per_channel
            assert result == (AMBIGUOUS if fails else "quantized")
PROBE
venv/bin/python probe.py
