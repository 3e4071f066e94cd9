#!/usr/bin/env bash
# ConvTranspose with auto_pad SAME gives fewer elements than input times stride where the kernel is the shorter one
#
# Guess: "auto_pad SAME_UPPER or SAME_LOWER" means output = input * stride, as ONNX's text says in so many words
#   (`output_shape[i] = input_shape[i] * strides[i]`).
# What happens: onnxruntime only ever crops. With a kernel of 2 and a stride of 3 three inputs become 8 elements and
#   not 9, and onnx's shape inference says 8 as well. With a kernel of 3, a stride of 2 and an output_padding of 1 the
#   two differ: onnxruntime gives 6, the inferred shape says 7, and the session only warns.
# Why it matters: PyTorch and TensorFlow make input * stride. A translation by the text has other shapes than the
#   runtime; a graph with the stored inferred shape is contradicted by its own run.
# Source: onnx docs/Operators.md, ConvTranspose, auto_pad (https://onnx.ai/onnx/operators/onnx__ConvTranspose.html);
#   onnxruntime/core/providers/cpu/nn/conv_transpose_attributes.h (DistributePadding)
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
from onnx import helper, numpy_helper, shape_inference

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
options = onnxruntime.SessionOptions()
options.log_severity_level = 4


def sizes(kernel, stride, auto_pad, output_padding):
    """What the text says, what onnx infers, what onnxruntime makes of three inputs."""
    attributes = {"strides": [stride], "auto_pad": auto_pad, "output_padding": [output_padding]}
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attributes)
    values = [helper.make_tensor_value_info("x", 1, [1, 1, 3]), helper.make_tensor_value_info("y", 1, None)]
    weight = numpy_helper.from_array(np.ones((1, 1, kernel), np.float32), "w")
    graph = helper.make_graph([node], "g", values[:1], values[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    inferred = shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim[2].dim_value
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return 3 * stride, inferred, session.run(None, {"x": np.ones((1, 1, 3), np.float32)})[0].shape[2]


for auto_pad in ("SAME_UPPER", "SAME_LOWER"):
    for case in ((4, 2, 0), (3, 2, 0), (2, 3, 0), (1, 2, 0), (3, 2, 1)):
        print(auto_pad, "kernel %d, stride %d, output_padding %d:" % case, *sizes(case[0], case[1], auto_pad, case[2]))
    assert sizes(4, 2, auto_pad, 0)[::2] == (6, 6)
    assert sizes(2, 3, auto_pad, 0)[::2] == (9, 8)
    assert sizes(1, 2, auto_pad, 0)[::2] == (6, 5)
    assert sizes(3, 2, auto_pad, 1) == (6, 7, 6)
PROBE
venv/bin/python probe.py
