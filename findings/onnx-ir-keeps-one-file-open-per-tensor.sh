#!/usr/bin/env bash
# onnx-ir holds one open file for each external tensor that was read, though all lie in one file
#
# Guess: a model whose weights lie in one side file needs one descriptor, as in onnx.load and onnxruntime, or none
#   after reading.
# What happens: each external tensor maps the file on its own when its values are first read, and each map keeps a
#   descriptor until release() is called. Reading the weights of a model with more tensors than the open-file limit
#   raises 'Too many open files'. The file is not large: here it has under 5 KB.
# Why it matters: the usual limit is 1024, and a transformer exported with external data easily has more
#   initializers. Code that looks at every weight (statistics, pruning, quantization) fails late, after hundreds of
#   tensors, and whatever opens a file next fails too. Call release() on each tensor after use.
# Source: class ExternalTensor in src/onnx_ir/_core.py of onnx/ir-py (_load maps, release closes)
set -euo pipefail
export ORT_DISABLE_TELEMETRY="${ORT_DISABLE_TELEMETRY-1}"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  numpy==2.4.6 ml-dtypes==0.6.0 protobuf==7.36.2 onnx==1.23.2 onnxruntime==1.32.0 onnx-ir==1.1.0

cat > probe.py <<'PROBE'
import errno
import os
import resource

import numpy as np
import onnx
import onnx_ir
import onnxruntime
from onnx import helper, numpy_helper

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__, "onnx-ir", onnx_ir.__version__)
LIMIT, TENSORS = 256, 300
nodes = [helper.make_node("Add", [f"y{i}", f"w{i}"], [f"y{i + 1}"]) for i in range(TENSORS)]
weights = [numpy_helper.from_array(np.full(4, i, np.float32), f"w{i}") for i in range(TENSORS)]
graph = helper.make_graph(
    nodes,
    "sums",
    [helper.make_tensor_value_info("y0", 1, [4])],
    [helper.make_tensor_value_info(f"y{TENSORS}", 1, [4])],
    weights,
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.save(model, "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
print("weights:", os.path.getsize("m.data"), "bytes in one file")
resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

onnx.checker.check_model("m.onnx", full_check=True)
onnx.load("m.onnx")
onnxruntime.InferenceSession("m.onnx")
print("limit", LIMIT, "files: onnx and onnxruntime load all", TENSORS, "tensors")


def read(tensors, release):
    for count, tensor in enumerate(tensors):
        try:
            values = tensor.numpy().copy()
        except OSError as error:
            return count, error
        assert values.shape == (4,)
        if release:
            tensor.release()
    return len(tensors), None


kept = [value.const_value for value in onnx_ir.load("m.onnx").graph.initializers.values()]
count, error = read(kept, release=False)
print("onnx-ir read", count, "and then raised:", error)
assert error is not None and error.errno == errno.EMFILE and LIMIT - 64 < count < LIMIT
for tensor in kept:
    tensor.release()
released = [value.const_value for value in onnx_ir.load("m.onnx").graph.initializers.values()]
count, error = read(released, release=True)
print("with release() after each: read", count)
assert (count, error) == (TENSORS, None)
PROBE
venv/bin/python probe.py
