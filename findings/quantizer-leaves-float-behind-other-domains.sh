#!/usr/bin/env bash
# onnxruntime's quantizer leaves everything behind an operator of its own in float, and the model is still called int8
#
# Guess: quantize_static knows what the tensors of a model hold: onnxruntime runs the model, and the calibration has
#   just done so. A model with com.microsoft operators (as its own transformer optimizer writes them) is quantised like
#   any other.
# What happens: types come from onnx's shape inference, which knows nothing of other domains, so nothing behind such an
#   operator has a type up to the end of the model, and a tensor without a type is not quantised. Weights are stored in
#   int8 all the same and turned back into floats on every run: the file is as small as hoped for and the integer
#   kernels are not used. All that is said is a warning per tensor in Python's log ("failed to infer the type of
#   tensor"). The same is true behind operators of ai.onnx.ml, a Scaler for instance.
# Why it matters: a layer of Llama with fused norms had 4 QuantizeLinear in place of 17, and a small perceptron behind a
#   Scaler took 1.45 of its time in float, in place of 0.97. State the types in value_info first (an onnxruntime session gives them: make every tensor an output), or give
#   extra_options={"DefaultTensorType": 1} where there are no other types than float.
# Source: onnxruntime/python/tools/quantization/base_quantizer.py (is_valid_quantize_weight, get_tensor_type) and
#   qdq_quantizer.py (_is_tensor_quantizable); https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
set -euo pipefail
export ORT_DISABLE_TELEMETRY="${ORT_DISABLE_TELEMETRY-1}"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  numpy==2.4.6 protobuf==7.36.2 onnx==1.23.2 onnxruntime==1.32.0

cat > probe.py <<'PROBE'
import logging

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_static

logging.disable(logging.WARNING)
print("onnxruntime", onnxruntime.__version__)
rng = np.random.default_rng(0)
x = rng.standard_normal((64, 16)).astype(np.float32)
float_ = TensorProto.FLOAT


class Reader:
    def __init__(self):
        self.batches = iter([{"x": x}])

    def get_next(self):
        return next(self.batches, None)


def layers_in_integers(front, stated=()):
    """How many of two MatMuls behind `front` (x -> s) read what is quantised; types of tensors may be `stated`."""
    weights = {"w": rng.standard_normal((16, 16)), "v": rng.standard_normal((16, 16))}
    nodes = [
        front,
        helper.make_node("MatMul", ["s", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "v"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, float_, ["N", 16]) for name in ("x", "y")]
    stored = [numpy_helper.from_array(np.float32(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "probe", ends[:1], ends[1:], stored)
    graph.value_info.extend(helper.make_tensor_value_info(name, float_, None) for name in stated)
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=8), "float.onnx")
    quantize_static("float.onnx", "int8.onnx", Reader())
    made = onnx.load("int8.onnx").graph
    by = {name: node.op_type for node in made.node for name in node.output}
    count = sum(by.get(node.input[0]) == "DequantizeLinear" for node in made.node if node.op_type == "MatMul")
    types = {tensor.name: tensor.data_type for tensor in made.initializer}
    assert types["w_quantized"] == types["v_quantized"] == TensorProto.INT8, "the weights are stored in int8 anyway"
    print(f"  behind {front.domain or 'ai.onnx'}.{front.op_type}, stated {list(stated)}: {count} of 2 layers in integers")
    return count


plain = helper.make_node("Identity", ["x"], ["s"])
own = helper.make_node("QuickGelu", ["x"], ["s"], domain="com.microsoft")
scaler = helper.make_node("Scaler", ["x"], ["s"], domain="ai.onnx.ml", offset=[0.5] * 16, scale=[2.0] * 16)
assert layers_in_integers(plain) == 2
for front in (own, scaler):
    assert layers_in_integers(front) == 0
    assert layers_in_integers(front, ["s", "a", "b"]) == 2
PROBE
venv/bin/python probe.py
