#!/usr/bin/env bash
# pnnx makes of a Gather of channels a Crop of one row, exits with 0, and ncnn computes with it
#
# Guess: Gather(x, [3, 0, 2], axis=1) gives three channels in ncnn, or pnnx says that it cannot.
# What happens: a list of indices on the axis of the channels becomes a 'select': a Crop of one index and a Squeeze. The
#   index is not one of the list's (unless it has a single one), the axis is that of the rows and not of the channels,
#   and what comes out has two dimensions instead of three. pnnx exits with 0, and the file loads. Even one index does so.
# Why it matters: shuffles, and what narrowing tools leave in front of layers that need their channels in another order,
#   are such Gathers. The converted model gives numbers of the wrong shape or, behind a Reshape, of the right one.
#   Compare outputs after every conversion; where you may choose, write channels in order (a Slice) or a 1 x 1 Conv.
# Source: https://github.com/pnnx/pnnx, pnnx 20261020 (its output *.ncnn.param, which this script prints)
set -euo pipefail
export ORT_DISABLE_TELEMETRY="${ORT_DISABLE_TELEMETRY-1}"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check --no-deps pnnx==20261020
venv/bin/pip install --quiet --disable-pip-version-check \
  numpy==2.4.6 ml-dtypes==0.6.0 protobuf==7.36.2 onnx==1.23.2

cat > probe.py <<'PROBE'
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

print("onnx", onnx.__version__)
(pnnx,) = (path for path in Path(sysconfig.get_path("purelib")).glob("pnnx/**/pnnx") if path.is_file())


def layers(name, indices):
    """The layers of ncnn that become of a Gather of these channels, each with its parameters."""
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 8, 8]) for n, c in (("x", 6), ("y", len(indices)))
    ]
    graph = helper.make_graph(
        [helper.make_node("Gather", ["x", "i"], ["y"], axis=1)], "probe", values[:1], values[1:],
        [numpy_helper.from_array(np.array(indices), "i")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), f"{name}.onnx")
    done = subprocess.run([pnnx, f"{name}.onnx", "inputshape=[1,6,8,8]"], capture_output=True, text=True)
    lines = [line.split() for line in Path(f"{name}.ncnn.param").read_text().splitlines()[2:]]
    found = [(line[0], line[4 + int(line[2]) + int(line[3]) :]) for line in lines]
    print(f"channels {indices}: exit code {done.returncode}: {found}")
    assert done.returncode == 0
    return found


for name, indices in (("three", [3, 0, 2]), ("one", [2])):
    (_, crop, squeeze) = layers(name, indices)
    assert crop[0] == "Crop" and squeeze[0] == "Squeeze"
    # 9: starts, 10: ends, 11: axes (of a blob c, h, w: 0, 1, 2)
    (start,) = (value for value in crop[1] if value.startswith("-23309="))
    assert "-23311=1,1" in crop[1], "the axis of the rows"
    assert (start == "-23309=1,1") if len(indices) == 3 else (start == "-23309=1,2")
PROBE
venv/bin/python probe.py
