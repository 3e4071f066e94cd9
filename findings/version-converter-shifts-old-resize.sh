#!/usr/bin/env bash
# onnx.version_converter moves the pixels of an old linear Resize or Upsample
#
# Guess: converting to a newer opset keeps what the model computes; where a default changed, the converter writes
#   the old value.
# What happens: opset 11 gave Resize the attribute coordinate_transformation_mode with the default half_pixel.
#   Before, the only rule was the one now called asymmetric. The adapter from 10 to 11 adds the new input and no
#   attribute, so a linear Resize (and Upsample, which becomes Resize on the way) samples other places. Nearest by a
#   factor of 2 is unharmed, so a quick test with nearest sees nothing.
# Why it matters: old segmentation and super-resolution files are raised to a new opset before other tools can read
#   them. The file stays valid, every shape stays right, and the numbers are wrong at every upsampling step.
# Source: onnx/onnx issue 8480 (https://github.com/onnx/onnx/issues/8480);
#   onnx/version_converter/adapters/resize_10_11.h in onnx/onnx
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
from onnx import helper, numpy_helper, version_converter

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
IMAGE = np.array([[[[1, 2], [3, 4]]]], np.float32)


def upsampling(op_type, opset, mode):
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", "scales"], ["y"], mode=mode)],
        "upsampling",
        [helper.make_tensor_value_info("x", 1, [1, 1, 2, 2])],
        [helper.make_tensor_value_info("y", 1, [1, 1, 4, 4])],
        [scales],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": IMAGE})[0]


for op_type, opset in (("Upsample", 9), ("Resize", 10)):
    for mode, expected in (("nearest", 0.0), ("linear", 0.75)):
        before = upsampling(op_type, opset, mode)
        after = version_converter.convert_version(before, 13)
        onnx.checker.check_model(after, full_check=True)
        resize = next(node for node in after.graph.node if node.op_type == "Resize")
        difference = float(np.abs(run(before) - run(after)).max())
        attributes = [attribute.name for attribute in resize.attribute]
        print(op_type, opset, "-> 13", mode, "attributes now:", attributes, "difference:", difference)
        assert attributes == ["mode"]
        assert difference == expected
PROBE
venv/bin/python probe.py
