#!/usr/bin/env bash
# onnx-graphsurgeon's fold_constants turns a float32 constant into float64
#
# Guess: folding a Constant node keeps its type; ONNX defines value_float and value_floats as float32.
# What happens: numbers given as value_float or value_floats become a NumPy array without a dtype, so DOUBLE. The
#   export succeeds. onnx.checker with full_check and onnxruntime both reject the result: Add of float and double. A
#   Constant written as a tensor (value) folds well, so most models pass.
# Why it matters: onnxscript and hand-written models use value_floats for scales, anchors and epsilons. Cleaning
#   such a file with graphsurgeon, or with onnxslim which carries the same code, makes it unloadable.
# Source: NVIDIA/TensorRT pull request 4834 (https://github.com/NVIDIA/TensorRT/pull/4834, open);
#   tools/onnx-graphsurgeon/onnx_graphsurgeon/ir/graph.py there
set -euo pipefail
export ORT_DISABLE_TELEMETRY="${ORT_DISABLE_TELEMETRY-1}"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  numpy==2.4.6 ml-dtypes==0.6.0 protobuf==7.36.2 onnx==1.23.2 onnxruntime==1.32.0 onnx-graphsurgeon==0.6.1

cat > probe.py <<'PROBE'
import numpy as np
import onnx
import onnx_graphsurgeon
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__, "graphsurgeon", onnx_graphsurgeon.__version__)


def model_with(**value):
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], **value), helper.make_node("Add", ["x", "c"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", 1, ["N", 2])],
        [helper.make_tensor_value_info("y", 1, ["N", 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnxruntime.InferenceSession(model.SerializeToString())
    return model


def refused(action):
    try:
        action()
    except Exception as error:
        print("   ", type(error).__name__, str(error).strip().splitlines()[0][:150])
        return True
    return False


tensor = numpy_helper.from_array(np.array([1, 2], np.float32))
for value, data_type in (
    ({"value": tensor}, TensorProto.FLOAT),
    ({"value_floats": [1.0, 2.0]}, TensorProto.DOUBLE),
    ({"value_float": 1.0}, TensorProto.DOUBLE),
):
    graph = onnx_graphsurgeon.import_onnx(model_with(**value))
    folded = onnx_graphsurgeon.export_onnx(graph.fold_constants().cleanup())
    found = folded.graph.initializer[0].data_type
    print(next(iter(value)), "folds to", TensorProto.DataType.Name(found))
    assert found == data_type
    broken = data_type == TensorProto.DOUBLE
    assert refused(lambda: onnx.checker.check_model(folded, full_check=True)) == broken
    assert refused(lambda: onnxruntime.InferenceSession(folded.SerializeToString())) == broken
PROBE
venv/bin/python probe.py
