#!/usr/bin/env bash
# onnx.printer and onnx.parser: a round trip through text changes what a function computes
#
# Guess: onnx.parser.parse_model(onnx.printer.to_text(model)) computes what model computes, or fails. The grammar
#   has a place for default values of a function's attributes.
# What happens: the parser reads such defaults, the printer does not write them. The text is valid, and so is the
#   parsed model. The inner node's attribute now refers to nothing, so the operator's own default takes its place:
#   this LeakyRelu goes from slope 0.5 to 0.01, and neither checker nor runtime says a word.
# Why it matters: the text form is what people put in issues, tests and reviews, and edit by hand. A function
#   written in onnxscript with a default for an attribute is stored in this way.
# Source: ProtoPrinter::print(const FunctionProto&) in onnx/defs/printer.cc writes attribute(), not
#   attribute_proto(); grammar in docs/Syntax.md (fun-attr-list); the field came with onnx/onnx pull request 4153
#   (https://github.com/onnx/onnx/pull/4153)
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
import onnx.parser
import onnx.printer
import onnxruntime

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
TEXT = """
<ir_version: 10, opset_import: ["" : 17, "example" : 1]>
graph (float[N] x) => (float[N] y)
{
    y = example.Activation(x)
}
<domain: "example", opset_import: ["" : 17]>
Activation <slope: float = 0.5> (a) => (b)
{
    b = LeakyRelu <alpha: float = @slope> (a)
}
"""


def run(model):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": np.array([-100, 100], np.float32)})[0]


model = onnx.parser.parse_model(TEXT)
onnx.checker.check_model(model, full_check=True)
printed = onnx.printer.to_text(model)
again = onnx.parser.parse_model(printed)
onnx.checker.check_model(again, full_check=True)
print(printed)
print("before:", run(model), "after the round trip:", run(again))
assert [a.name for a in model.functions[0].attribute_proto] == ["slope"]
assert len(again.functions[0].attribute_proto) == 0 and len(again.functions[0].attribute) == 0
assert np.array_equal(run(model), np.array([-50, 100], np.float32))
assert np.array_equal(run(again), np.array([-1, 100], np.float32))
PROBE
venv/bin/python probe.py
