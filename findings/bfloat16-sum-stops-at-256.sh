#!/usr/bin/env bash
# The sum of a bfloat16 weight stops at 256, though the sum of a float16 weight does not stop
#
# Guess: numpy_helper.to_array gives an ordinary array; sum and mean of a bfloat16 initializer are good to three
#   digits, as for float16, which has more digits but a smaller range.
# What happens: NumPy adds float16 in float32, but knows nothing of the bfloat16 of ml_dtypes and adds one number
#   after the other in bfloat16. At 256 the next number is 258, so adding 1 changes nothing any more: 100,000 ones
#   sum to 256 and their mean is 0.00256. The dtype's kind is V, so tests for a floating type miss it too.
# Why it matters: importance scores, weight statistics and sparsity reports over bfloat16 files (large language
#   models) are wrong by orders of magnitude with no warning, and rankings change, because large rows saturate to
#   the same 256. Cast to float32 first.
# Source: jax-ml/ml_dtypes issue 63 (https://github.com/jax-ml/ml_dtypes/issues/63); numpy.mean's note on float16
#   (https://numpy.org/doc/stable/reference/generated/numpy.mean.html)
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  numpy==2.4.6 ml-dtypes==0.6.0 protobuf==7.36.2 onnx==1.23.2

cat > probe.py <<'PROBE'
import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

print("onnx", onnx.__version__, "numpy", np.__version__, "ml_dtypes", ml_dtypes.__version__)
COUNT = 100_000


def weight(data_type, count):
    return numpy_helper.to_array(helper.make_tensor("w", data_type, [count], [1.0] * count))


brain = weight(TensorProto.BFLOAT16, COUNT)
half = weight(TensorProto.FLOAT16, 32_768)
print("bfloat16:", COUNT, "ones, sum", brain.sum(), "mean", brain.mean(), "kind", brain.dtype.kind)
print("float16:", 32_768, "ones, sum", half.sum(), "mean", half.mean(), "kind", half.dtype.kind)
print("bfloat16 cast first: sum", brain.astype(np.float32).sum())
assert float(brain.sum()) == 256 and abs(float(brain.mean()) - 256 / COUNT) < 1e-4
assert float(half.sum()) == 32_768 and float(half.mean()) == 1
assert float(brain.astype(np.float32).sum()) == COUNT
assert brain.dtype.kind == "V" and not np.issubdtype(brain.dtype, np.floating)
rows = np.ones((2, 1000), brain.dtype)
rows[1, 500:] = 0
print("L1 norms of a full row and of one half empty:", np.abs(rows).sum(axis=1))
assert [float(norm) for norm in np.abs(rows).sum(axis=1)] == [256, 256]
PROBE
venv/bin/python probe.py
