#!/usr/bin/env bash
# An optimised model of onnxruntime.transformers is no instance of its own OnnxModel
#
# Guess: optimize_model returns an OnnxModel, so isinstance(model, onnxruntime.transformers.onnx_model.OnnxModel)
#   holds.
# What happens: the package's __init__ appends the package's folder to sys.path, and its modules import each other
#   by bare names when they can. So onnx_model, fusion_options and some eighty others exist twice, as a top-level
#   module and inside the package, with different classes. isinstance is False, and 'import onnx_model', 'import
#   benchmark', 'import float16' succeed in any program that imported the package once.
# Why it matters: type checks and except clauses on these classes fail silently, a registry patched in one copy does
#   nothing in the other, and a misspelt or missing local 'import metrics' or 'import constants' picks up
#   onnxruntime's file instead of raising.
# Source: onnxruntime/python/tools/transformers/__init__.py and optimizer.py in microsoft/onnxruntime
set -euo pipefail
export ORT_DISABLE_TELEMETRY="${ORT_DISABLE_TELEMETRY-1}"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  numpy==2.4.6 ml-dtypes==0.6.0 protobuf==7.36.2 onnx==1.23.2 onnxruntime==1.32.0 sympy==1.14.0 packaging==26.4

cat > probe.py <<'PROBE'
import importlib.util
import sys

import onnx
import onnxruntime
from onnx import helper

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
NAMES = ("onnx_model", "fusion_options", "benchmark", "float16", "metrics", "constants")
assert [name for name in NAMES if importlib.util.find_spec(name)] == []
path_before = list(sys.path)

from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.onnx_model import OnnxModel
from onnxruntime.transformers import optimizer

added = [entry for entry in sys.path if entry not in path_before]
print("added to sys.path:", [entry.split("site-packages")[-1] for entry in added])
print("importable by bare name now:", [name for name in NAMES if importlib.util.find_spec(name)])
assert any(entry.endswith("/onnxruntime/transformers") for entry in added)
assert all(importlib.util.find_spec(name) for name in NAMES)

graph = helper.make_graph(
    [helper.make_node("Relu", ["x"], ["y"])],
    "graph",
    [helper.make_tensor_value_info("x", 1, ["N"])],
    [helper.make_tensor_value_info("y", 1, ["N"])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model, full_check=True)
onnx.save(model, "m.onnx")
optimised = optimizer.optimize_model("m.onnx", opt_level=0)
bases = [f"{base.__module__}.{base.__name__}" for base in type(optimised).__mro__]
print("optimize_model returns:", bases)
print("isinstance of OnnxModel:", isinstance(optimised, OnnxModel))
print("one FusionOptions:", optimizer.FusionOptions is FusionOptions)
assert "onnx_model.OnnxModel" in bases and not isinstance(optimised, OnnxModel)
assert optimizer.FusionOptions is not FusionOptions
assert optimizer.FusionOptions.__name__ == FusionOptions.__name__
PROBE
venv/bin/python probe.py
