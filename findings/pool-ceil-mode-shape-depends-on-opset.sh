#!/usr/bin/env bash
# The inferred length of the same ceil_mode pool is 4 at opset 19 and 3 at opset 22; it always computes 3
#
# Guess: strict shape inference of a pool with constant shapes gives what the runtime computes.
# What happens: with ceil_mode and padding, the last window can begin in the padding. Runtimes leave such a window
#   out; ONNX says so since opset 22. For older opsets, shape inference still uses the formula without that
#   exception and promises one element more. onnxruntime computes the shorter result at every opset and only warns.
# Why it matters: most files on disk are older than opset 22. Whoever counts operations, plans memory or sizes the
#   next Gemm from inferred shapes is off by one row and column.
# Source: onnx/onnx issue 5711 (https://github.com/onnx/onnx/issues/5711); microsoft/onnxruntime issue 25848 (the
#   same for LpPool, https://github.com/microsoft/onnxruntime/issues/25848); onnx/defs/nn/old.cc in onnx/onnx
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
from onnx.reference import ReferenceEvaluator

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
SIGNAL = np.arange(1, 6, dtype=np.float32).reshape(1, 1, 5)
for op_type in ("MaxPool", "AveragePool"):
    for opset, expected in ((19, 4), (22, 3)):
        pool = helper.make_node(op_type, ["x"], ["y"], kernel_shape=[2], strides=[2], pads=[1, 1], ceil_mode=1)
        graph = helper.make_graph(
            [pool],
            "pool",
            [helper.make_tensor_value_info("x", 1, [1, 1, 5])],
            [helper.make_tensor_value_info("y", 1, [1, 1, "L"])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.output[0].type.tensor_type.shape
        length = inferred.dim[2].dim_value
        computed = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": SIGNAL})[0]
        reference = ReferenceEvaluator(model).run(None, {"x": SIGNAL})[0]
        lengths = {"inferred": length, "onnxruntime": computed.shape[2], "reference": reference.shape[2]}
        print(op_type, "opset", opset, lengths)
        assert list(lengths.values()) == [expected, 3, 3]
PROBE
venv/bin/python probe.py
