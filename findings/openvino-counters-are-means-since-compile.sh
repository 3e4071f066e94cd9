#!/usr/bin/env bash
# OpenVINO's counters of kernels are means over all runs since the model was compiled, cut off to the microsecond
#
# Guess: get_profiling_info() says what the kernels of the last run took, so a program reads it after every run and takes
#   the median.
# What happens: each real_time is the mean of all runs since compile_model, the slow first one among them, and of every
#   request of that compiled model; each run is cut off to whole microseconds before the mean is, so a kernel that takes
#   less than one is NOT_RUN. A run that another process interrupts for milliseconds stays in the mean for good.
# Why it matters: medians of what is read after each run are medians of means: they fall for as long as one looks, and one
#   interruption outweighs a hundred runs of a small kernel. Read twice, and divide the difference of the sums.
# Source: https://github.com/openvinotoolkit/openvino/blob/2026.4.1/src/plugins/intel_cpu/src/perf_count.h (avg)
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check numpy==2.4.6 openvino==2026.4.1

cat > probe.py <<'PROBE'
from datetime import timedelta

import numpy as np
import openvino
from openvino import opset13 as ops

print("OpenVINO", openvino.__version__)
x = ops.parameter([1, 512], np.float32, name="x")
weights = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
model = openvino.Model([ops.matmul(x, ops.constant(weights), False, False)], [x], "probe")
wishes = {"PERF_COUNT": True, "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
request = openvino.Core().compile_model(model, "CPU", wishes).create_infer_request()


def total():
    """Microseconds of all kernels, as they are read."""
    return sum(info.real_time // timedelta(microseconds=1) for info in request.get_profiling_info())


read = []
for _ in range(400):
    request.infer()
    read.append(total())
print("read after runs 1, 2, 5, 20, 100, 400:", [read[n - 1] for n in (1, 2, 5, 20, 100, 400)])
for runs in (2, 5, 20):
    assert runs * (read[runs - 1] + 1) >= read[0], "the first run, the slowest by far, is still in it"
PROBE
venv/bin/python probe.py
