"""float16: what does not fit into it stays in float32, and the result is right in float16 arithmetic, too.

onnxruntime's CPU computes such models in float32, so onnx's reference implementation is the judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from builders.models import MODELS, Array, relative
from pcns_onnx.data.dataset import open_data
from pcns_onnx.graph import Graph, Program
from pcns_onnx.rewrite.lowering.quantize import in_precision
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples

node, info = helper.make_node, helper.make_tensor_value_info
NEAR = 3e-3


def parsed(text: str) -> list[NodeProto]:
    """Nodes, as onnx writes them."""
    return [onnx.parser.parse_node(line) for line in text.split("; ")]


def model(
    middle: str | Sequence[NodeProto],
    constants: Mapping[str, object],
    *,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> onnx.ModelProto:
    """x (N, 16) -> Gemm, Relu 'b' -> `middle` 'c' -> MatMul 'y' of weights (32, 4)."""
    rng = np.random.default_rng(0)
    weights = {"w1": (16, 32), "b1": (32,), "w2": (32, 4)}
    values = {name: rng.standard_normal(shape) for name, shape in weights.items()} | dict(constants)
    arrays = {name: np.asarray(value) for name, value in values.items()}
    stored = [
        numpy_helper.from_array(array.astype(np.float32) if array.dtype.kind == "f" else array, name)
        for name, array in arrays.items()
    ]
    nodes = [node("Gemm", ["x", "w1", "b1"], ["a"], name="first"), node("Relu", ["a"], ["b"])]
    nodes += [*(parsed(middle) if isinstance(middle, str) else middle), node("MatMul", ["c", "w2"], ["y"], name="last")]
    ranks = {name: array.ndim for name, array in arrays.items()}
    fed = info("x", TensorProto.FLOAT, ["N", 16])
    ends = [info(name, TensorProto.FLOAT, [None] * ranks.get(name, 2)) for name in outputs]
    graph = helper.make_graph(nodes, "test", [fed], ends, stored)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def samples() -> dict[str, Array]:
    return {"x": np.random.default_rng(1).standard_normal((48, 16)).astype(np.float32)}


def float16(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    graph = Graph.load(proto)
    lowered, notes = in_precision("fp16", graph, Samples(open_data(samples()["x"], graph.inputs), 16))
    assert (lowered.inputs, lowered.outputs) == (graph.inputs, graph.outputs)
    return lowered.proto, " ".join(notes)


def run(proto: onnx.ModelProto) -> list[Array]:
    return [np.asarray(a) for a in Engine().session(Program(proto.SerializeToString())).run(samples()).values()]


def is_near(proto: onnx.ModelProto, *, reference: bool = True) -> tuple[onnx.ModelProto, str]:
    """Check that float16 is near in onnxruntime and in float16 arithmetic; the model and what it warned of."""
    lowered, notes = float16(proto)
    assert "first" not in notes
    kinds = {tensor.name: tensor.data_type for tensor in lowered.graph.initializer}
    assert kinds["w1"] == TensorProto.FLOAT16
    judges = [run(lowered)]
    if reference:
        with np.errstate(all="ignore"):
            judges.append([np.asarray(array) for array in ReferenceEvaluator(lowered).run(None, samples())])
    for outputs in judges:
        for before, after in zip(run(proto), outputs, strict=True):
            assert before.dtype == after.dtype
            assert relative(before, after) < NEAR
    return lowered, notes


LARGE: dict[str, tuple[str, dict[str, object]]] = {
    "Mul": ("l = Mul(b, k); c = Mul(l, m)", {"k": 3e4, "m": 1e-4}),
    "Pow": ("l = Pow(b, k); c = Pow(l, m)", {"k": 8.0, "m": 0.125}),
    "Exp": ("l = Exp(b); c = Log(l)", {}),
    "MatMul": ("l = MatMul(b, k); c = Mul(l, m)", {"k": np.eye(32) * 3e4, "m": 1e-4}),
    "Gemm": ("l = Gemm(b, k, m); c = Sub(l, m)", {"k": np.eye(32), "m": np.full(32, 7e4)}),
    "Sum": ("l = Mul(b, k); n = Neg(l); s = Sum(l, l, n); c = Div(s, k)", {"k": 2000.0}),
    "ReduceSum": ("l = Mul(b, k); s = ReduceSum(l, ax); c = Div(l, s)", {"k": 1000.0, "ax": np.array([1])}),
    "ReduceMean": ("l = Mul(b, k); s = ReduceMean <axes = [1]> (l); c = Div(l, s)", {"k": 1000.0}),
    "ReduceL2": ("l = Mul(b, k); s = ReduceL2 <axes = [1]> (l); c = Div(l, s)", {"k": 50.0}),
    "LayerNormalization": ("l = Mul(b, k); c = LayerNormalization(l, g)", {"k": 500.0, "g": np.ones(32)}),
    "LpNormalization": ("l = Mul(b, k); c = LpNormalization(l)", {"k": 100.0}),
    "Softplus": ("l = Mul(b, k); c = Softplus(l)", {"k": 5.0}),
    "Gelu": ('l = Mul(b, k); c = Gelu <approximate = "tanh"> (l)', {"k": 10.0}),
    "Where": ("is = Greater(b, t); l = Where(is, b, k); c = Softmax(l)", {"t": 1.0, "k": -1e9}),
}


@pytest.mark.parametrize("op", LARGE)
def test_what_is_too_large_stays_in_float32_and_is_listed(op: str) -> None:
    middle, constants = LARGE[op]
    _, notes = is_near(model(middle, constants, opset=20 if op == "Gelu" else 17))
    assert f"{op} '" in notes and "65,504" in notes


FITS: dict[str, tuple[str, dict[str, object]]] = {
    "least": ("z = Sub(b, b); n = Add(z, e); d = Div(z, n); c = Add(b, d)", {"e": 1e-12}),
    "norm": ("c = LayerNormalization(b, g)", {"g": np.ones(32)}),
    "TopK": ("c, places = TopK(b, k)", {"k": np.array([32])}),
    "Range": ("r = Range(k0, k1, k2); c = Add(b, r)", {"k0": 0.0, "k1": 32.0, "k2": 1.0}),
    "ConstantOfShape": ("s = Shape(b); z = ConstantOfShape(s); c = Add(b, z)", {}),
    "Constant": ("k = Constant <value = float[1] {0.5}> (); c = Mul(b, k)", {}),
    "double": ("d = Cast <to = 11> (b); c = Cast <to = 1> (d)", {}),
    "sequence": ("s = SplitToSequence <axis = 1> (b, k); c = ConcatFromSequence <axis = 1> (s)", {"k": np.array(8)}),
    "bounds": ("l = Clip(b, k0, k1); c = Max(l, k0)", {"k0": 0.5, "k1": 2.0}),
    "labels": (
        "i = ArgMax <axis = 1, keepdims = 0> (b); o = OneHot(i, n, k); c = Add(b, o)",
        {"n": np.array(32), "k": [0.0, 1.0]},
    ),
    "a tensor called mean": ("mean = ReduceMean <axes = [1], keepdims = 1> (b); c = Add(b, mean)", {}),
    "tensors called like what looks at them": ("size = Abs(b); peak = Neg(size); c = Add(size, peak)", {}),
    "scattered sums": (
        'z = Mul(b, k); i = Cast <to = 7> (z); c = ScatterElements <axis = 1, reduction = "add"> (b, i, b)',
        {"k": 0.0},
    ),
    "scattered maxima": (
        'z = Mul(b, k); i = Cast <to = 7> (z); c = ScatterElements <axis = 1, reduction = "max"> (b, i, b)',
        {"k": 0.0},
    ),
    "scattered rows": (
        'c = ScatterND <reduction = "max"> (b, i, u)',
        {"i": np.array([[0], [1]]), "u": np.ones((2, 32))},
    ),
    "shared": (
        "t, places = TopK(k, n); l = Mul(b, k); c = Mul(l, t)",
        {"k": np.linspace(0.5, 2, 32)[None], "n": np.array([32])},
    ),
}


@pytest.mark.parametrize("name", FITS)
def test_all_else_is_float16_and_nothing_is_said(name: str) -> None:
    middle, constants = FITS[name]
    _, notes = is_near(model(middle, constants))
    assert notes == ""


@pytest.mark.parametrize(
    "outputs", [("y", "anchors"), ("x", "y"), ("w2", "y", "b1"), ("y", "b", "a", "c")], ids=", ".join
)
def test_outputs_keep_their_types(outputs: tuple[str, ...]) -> None:
    proto = model("c = Mul(b, k)", {"anchors": [1.0, 2.0, 3.0], "k": 2.0}, outputs=outputs)
    lowered, _ = float16(proto)
    for before, after in zip(run(proto), run(lowered), strict=True):
        assert (before.dtype, before.shape) == (after.dtype, after.shape)
        assert relative(before, after) < NEAR


def test_the_bodies_of_branches_stay_in_float32() -> None:
    """They read tensors and weights that are float16 outside."""
    then, otherwise = (
        helper.make_graph(parsed(text), "branch", [], [info("t", TensorProto.FLOAT, None)])
        for text in ("t = MatMul(b, k)", "t = Identity(b)")
    )
    choose = node("If", ["is"], ["f"], name="choose", then_branch=then, else_branch=otherwise)
    before = parsed("m = ReduceMean <keepdims = 0> (x); is = Greater(m, zero); d = MatMul(b, k)")
    middle = [*before, choose, *parsed("c = Add(d, f)")]
    lowered, notes = is_near(model(middle, {"k": np.eye(32) * 0.5, "zero": 0.0}))
    assert "If 'choose'" in notes
    assert {t.name: t.data_type for t in lowered.graph.initializer}["k"] == TensorProto.FLOAT  # what the branch reads


def test_local_functions_are_written_out() -> None:
    inner = [node("Constant", [], ["h"], value_float=0.5), node("Mul", ["i", "h"], ["o"])]
    proto = model("c = own.Half(b)", {})
    proto.functions.append(helper.make_function("own", "Half", ["i"], ["o"], inner, [helper.make_opsetid("", 17)]))
    proto.opset_import.append(helper.make_opsetid("own", 1))
    lowered, _ = is_near(proto)
    assert not lowered.functions


def test_sizes_and_positions_keep_their_digits() -> None:
    """Above 2,048 float16 has not all integers."""
    middle = "s = Shape(b); n = Gather(s, one); w = Mul(n, k); f = Cast <to = 1> (w); r = Sub(f, less); c = Mul(b, r)"
    is_near(model(middle, {"one": np.array(1), "k": np.array(101), "less": 3231.0}))


def test_operators_of_onnxruntime_compute_in_float16_too() -> None:
    lowered, _ = is_near(model("c = com.microsoft.Gelu(b)", {}), reference=False)
    assert [n.op_type for n in lowered.graph.node].count("Cast") == 2  # of the input and of the output


def test_lists_name_twenty_nodes_and_count_the_rest() -> None:
    chain = "; ".join(f"t{i + 1} = Mul(t{i}, one)" for i in range(30))
    _, notes = is_near(model(f"t0 = Mul(b, k); {chain}; c = Mul(t30, m)", {"k": 3e4, "m": 1e-4, "one": 1.0}))
    assert notes.count("Mul '") == 20 and "12 more" in notes


TURNED = {
    "at once": "t = Transpose <perm = [1, 0, 2]> (d); m = MatMul(t, k)",
    "four axes": "e = Unsqueeze(d, one); t = Transpose <perm = [1, 2, 0, 3]> (e); f = MatMul(t, k); "
    "m = Squeeze(f, first)",
    "passed on": "t = Transpose <perm = [1, 0, 2]> (d); i = Identity(t); m = MatMul(i, k)",
    "too large for half": "t = Transpose <perm = [1, 0, 2]> (d); h = MatMul(t, big); m = Mul(h, less)",
    "others read the matrix": "t = Transpose <perm = [1, 0, 2]> (d); o = MatMul(t, k); p = MatMul(d, k); "
    "q = Transpose <perm = [1, 0, 2]> (p); m = Add(o, q)",
}
"""Samples that are no longer in front where a matrix is multiplied by."""


@pytest.mark.parametrize("form", TURNED)
def test_a_turned_tensor_meets_a_stored_matrix(form: str) -> None:
    """The matrix is stored otherwise in float16 (`lowering.float16`), and nothing that nobody reads is left."""
    rng = np.random.default_rng(3)
    middle = f"d = Reshape(b, split); {TURNED[form]}; r = Transpose <perm = [1, 0, 2]> (m); c = Reshape(r, joined)"
    constants = {
        "split": np.array([-1, 2, 16]), "joined": np.array([-1, 32]), "one": np.array([1]), "first": np.array([0]),
        "less": 1e-5,
        "k": rng.standard_normal((16, 16)), "big": 1e5 * rng.standard_normal((16, 16)),
    }  # fmt: skip
    del constants["k" if "big" in middle else "big"]
    lowered, _ = is_near(model(middle, constants))
    read = {name for item in lowered.graph.node for name in item.input}
    assert {tensor.name for tensor in lowered.graph.initializer if len(tensor.dims) > 1} <= read


@pytest.mark.parametrize("path", sorted(MODELS.glob("digits_*.onnx")), ids=lambda path: path.stem)
def test_models_of_layers_alone_have_nothing_of_float32_left(path: Path) -> None:
    graph = Graph.load(path)
    shape = [size or 8 for size in graph.inputs[0].shape]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    lowered, notes = in_precision("fp16", graph, Samples(open_data(x, graph.inputs), 8))
    assert notes == [] and TensorProto.FLOAT not in {tensor.data_type for tensor in lowered.proto.graph.initializer}
