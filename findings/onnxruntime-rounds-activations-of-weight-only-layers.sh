#!/usr/bin/env bash
# onnxruntime computes a MatMul by weight-only quantised weights with activations in 8 bits
#
# Guess: DequantizeLinear of a constant in front of a MatMul means float arithmetic with the weights that it makes;
#   a graph optimiser may fold or fuse it, but not change the result beyond the rounding of float32.
# What happens: with weights of 8 bits or fewer (per tensor, per axis or in blocks) the two nodes become MatMulNBits,
#   whose default accuracy level (4) rounds the activations to int8, too. The outputs are 0.5 % off, without a word.
#   16-bit weights are not touched. The session option session.qdq_matmulnbits_accuracy_level=1 keeps float32.
# Why it matters: the same file differs between optimisation levels, versions and runtimes. Who compares a quantised
#   model with its float twin blames the weights for what the activations lose, and a solve that reads activations
#   of such a model reads rounded ones.
# Source: onnxruntime/core/optimizer/qdq_transformer/selectors_actions (DQMatMulToMatMulNBitsAction) and
#   include/onnxruntime/core/session/onnxruntime_session_options_config_keys.h of microsoft/onnxruntime
set -euo pipefail
export ORT_DISABLE_TELEMETRY="${ORT_DISABLE_TELEMETRY-1}"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  numpy==2.4.6 ml-dtypes==0.6.0 protobuf==7.36.2 onnx==1.23.2 onnxruntime==1.32.0

cat > probe.py <<'PROBE'
import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
rng, K, N = np.random.default_rng(0), 64, 48
x = rng.standard_normal((32, K)).astype(np.float32)


def outputs(dtype, opset, block, level):
    q = rng.integers(-8, 8, (K, N)).astype(np.float32).astype(dtype)
    scale = (rng.random((K // 16, N) if block else N) * 0.01 + 0.01).astype(np.float32)
    how = {"axis": 0, "block_size": 16} if block else {"axis": 1}
    weight = q.astype(np.float64) * (np.repeat(scale, 16, axis=0) if block else scale)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], **how),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", K])],
        [helper.make_tensor_value_info("y", 1, ["n", N])],
        [numpy_helper.from_array(q, "q"), numpy_helper.from_array(scale, "s")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    options = onnxruntime.SessionOptions()
    if level is not None:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    exact = x.astype(np.float64) @ weight
    return float(np.linalg.norm(y - exact) / np.linalg.norm(exact))


for dtype, opset, block in [(np.int8, 17, False), (ml_dtypes.int4, 21, True)]:
    default, plain = outputs(dtype, opset, block, None), outputs(dtype, opset, block, "1")
    print(f"{np.dtype(dtype).name}, opset {opset}: relative error {default:.1e} by default, {plain:.1e} at level 1")
    assert default > 1e-3 and plain < 1e-6
default = outputs(np.int16, 21, False, None)
print(f"int16, opset 21: relative error {default:.1e} by default")
assert default < 1e-6
PROBE
venv/bin/python probe.py
