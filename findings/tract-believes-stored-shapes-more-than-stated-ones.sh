#!/usr/bin/env bash
# tract refuses the size of a batch that you state, if the file has stored a name for it in the middle
#
# Guess: value_info is a comment: shapes in the middle that shape inference left there. Who states the shape of an input
#   (set_input_fact, as in tract's examples) overrules what the file calls 'N'.
# What happens: a stored shape [N, 3] in the middle does not unify with the stated batch of 1: "Unifying shapes N,3 ...",
#   and the model cannot be analysed. Without stored shapes it runs; or when N is bound behind the analysis (the transform
#   set_symbols). With a stored shape [1, 3] beside a batch of N it is the other way round.
# Why it matters: onnxruntime's quantizer and onnx.shape_inference store such shapes, exporters do not. The int8 file is
#   refused with the code that runs the float32 file, which looks as if integers were the reason.
# Source: https://github.com/sonos/tract (the error is that of its analysis, which unifies all facts of a shape)
set -euo pipefail
export ORT_DISABLE_TELEMETRY="${ORT_DISABLE_TELEMETRY-1}"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  numpy==2.4.6 ml-dtypes==0.6.0 protobuf==7.36.2 onnx==1.23.2 tract==0.23.9

cat > probe.py <<'PROBE'
import numpy as np
import onnx
import tract
from onnx import TensorProto, helper, numpy_helper

print("tract", tract.version(), "onnx", onnx.__version__)
weight = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
x = np.ones((1, 4), np.float32)


def file(batch, stored):
    """MatMul and Relu; the size of a batch as inputs and outputs say it, and as a stored shape in the middle does."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, s]) for n, s in (("x", 4), ("y", 3))]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    more = [helper.make_tensor_value_info("a", TensorProto.FLOAT, [stored, 3])] if stored else []
    graph = helper.make_graph(nodes, "probe", values[:1], values[1:], [numpy_helper.from_array(weight, "w")], value_info=more)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "probe.onnx")
    return "probe.onnx"


def stated(path):
    """The batch is said at the input before the analysis, as tract's examples do."""
    model = tract.onnx().load(path)
    model.set_input_fact(0, "1,4,f32")
    model.set_output_fact(0, None)
    return model.into_model()


def bound(path):
    """The batch is bound as a symbol behind the analysis."""
    model = tract.onnx().load(path).into_model()
    model.transform(tract.SetSymbols({"N": 1}))
    return model


def outcome(make, path):
    try:
        return make(path).into_runnable().run([x])[0].to_numpy().shape
    except tract.TractError as error:
        return " ".join(str(error).split())[:140]


found = {}
for stored in ("", "N", 1):
    path = file("N", stored)
    for make in (stated, bound):
        found[stored, make.__name__] = outcome(make, path)
        print(f"stored shape of the middle: {[stored, 3] if stored else 'none'}; batch {make.__name__}: {found[stored, make.__name__]}")

REFUSED = "Failed analyse"
assert found["", "stated"] == found["", "bound"] == (1, 3)
assert found["N", "stated"].startswith(REFUSED) and found["N", "bound"] == (1, 3)
assert found[1, "stated"] == (1, 3) and found[1, "bound"].startswith(REFUSED)
PROBE
venv/bin/python probe.py
