#!/usr/bin/env bash
# onnx.version_converter throws the model's local functions away, and the checker accepts the rest
#
# Guess: functions are carried over, or the converter refuses a model that has them.
# What happens: the converter goes through an older in-memory form that knows no functions. The nodes that call them
#   stay, the functions are gone, no error is raised, and onnx.checker accepts the result, because a node of an
#   unknown domain may be anybody's operator. onnxruntime refuses it.
# Why it matters: exporters write modules as local functions. A pipeline that converts, checks and then stores the
#   file destroys the file, and nobody sees it until the file is loaded. Inline first:
#   onnx.inliner.inline_local_functions.
# Source: onnx/onnx issue 4370 (https://github.com/onnx/onnx/issues/4370); onnx/common/ir_pb_converter.cc in
#   onnx/onnx
set -euo pipefail
export ORT_DISABLE_TELEMETRY="${ORT_DISABLE_TELEMETRY-1}"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  numpy==2.4.6 ml-dtypes==0.6.0 protobuf==7.36.2 onnx==1.23.2 onnxruntime==1.32.0

cat > probe.py <<'PROBE'
import onnx
import onnx.inliner
import onnxruntime
from onnx import helper, version_converter

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
function = helper.make_function(
    "example", "Activation", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 17)]
)
graph = helper.make_graph(
    [helper.make_node("Activation", ["x"], ["y"], domain="example")],
    "graph",
    [helper.make_tensor_value_info("x", 1, ["N"])],
    [helper.make_tensor_value_info("y", 1, ["N"])],
)
opsets = [helper.make_opsetid("", 17), helper.make_opsetid("example", 1)]
model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8)
onnx.checker.check_model(model, full_check=True)
onnxruntime.InferenceSession(model.SerializeToString())

converted = version_converter.convert_version(model, 18)
onnx.checker.check_model(converted)
print("functions before:", len(model.functions), "after:", len(converted.functions), "(the checker accepts both)")
print("nodes after:", [(node.domain, node.op_type) for node in converted.graph.node])
assert len(model.functions) == 1 and len(converted.functions) == 0
assert [(node.domain, node.op_type) for node in converted.graph.node] == [("example", "Activation")]
try:
    onnxruntime.InferenceSession(converted.SerializeToString())
except Exception as error:
    print("onnxruntime:", error)
    assert "is not a registered function/op" in str(error)
else:
    raise SystemExit("onnxruntime loads it now")

inlined = version_converter.convert_version(onnx.inliner.inline_local_functions(model), 18)
onnxruntime.InferenceSession(inlined.SerializeToString())
print("inlined first, then converted: loads")
PROBE
venv/bin/python probe.py
