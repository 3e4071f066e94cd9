"""ONNX to PyTorch and back: the same numbers, the same bits, and weights that learn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders import topologies as t
from builders.attention import SPELLED, normalised, rotary
from builders.chains import MODELS as CHAINS
from builders.chains import scalar
from builders.control_flow import chosen, typed
from builders.joins import branches, dense, fire, neck, option_a, unet
from builders.models import MODELS, Array, build, relative, run
from pcns_onnx import InputError, UnsupportedError, shrink

torch = pytest.importorskip("torch")

from pcns_onnx.autograd.operators.registry import OPERATORS  # noqa: E402
from pcns_onnx.interop.torch import to_onnx, to_torch, unknown_operators  # noqa: E402

NETS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "residual": t.residual,
    "projection": t.projection,
    "zero-padded shortcut": option_a,
    "pre-activation": t.pre_activation,
    "branches": lambda: branches(8, 6, 10),
    "dense block": dense,
    "fire": fire,
    "inverted residual": t.inverted_residual,
    "grouped": lambda: t.grouped(2),
    "shuffle": t.shuffle,
    "squeeze and excite": lambda: t.squeeze_excite("conv"),
    "neck": neck,
    "U-Net": unet,
    **{f"attention {name}": model for name, model in SPELLED.items()},
    "rotary": rotary,
    "normalised attention": normalised,
    **{path.stem: partial(onnx.load, path) for path in sorted(MODELS.glob("*.onnx"))},
}
OWN = ("Reciprocal", "Log", "Tan", "Atanh", "Cosh", "Sinh")
"""Not compared on random numbers: near a pole, or far out, they magnify any rounding."""


def knows(model: onnx.ModelProto) -> bool:
    return all(n.op_type in OPERATORS or n.op_type in ("Constant", "ConstantOfShape") for n in model.graph.node)


KNOWN = {
    name: model for name, model in CHAINS.items() if knows(model) and not any(name.endswith(f" {op}") for op in OWN)
}


def rows(model: onnx.ModelProto, seed: int = 0) -> Array:
    stored = {i.name for i in model.graph.initializer}
    (value,) = [value for value in model.graph.input if value.name not in stored]
    shape = [dim.dim_value or 6 for dim in value.type.tensor_type.shape.dim]
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def in_onnxruntime(model: onnx.ModelProto, x: Array) -> Array:
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    (value,) = [v for v in model.graph.input if v.name not in {i.name for i in model.graph.initializer}]
    if value.name != "x":
        for node in twin.graph.node:
            node.input[:] = ["x" if name == value.name else name for name in node.input]
        next(v for v in twin.graph.input if v.name == value.name).name = "x"
    return run(twin, x)


def in_torch(model: onnx.ModelProto, x: Array) -> Array:
    with torch.inference_mode():
        return np.asarray(to_torch(model)(torch.from_numpy(x)).numpy())


@pytest.mark.parametrize("name", KNOWN)
def test_every_chain_that_is_known_computes_what_onnxruntime_does(name: str) -> None:
    model = KNOWN[name]
    x = rows(model)
    np.testing.assert_allclose(in_torch(model, x), in_onnxruntime(model, x), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", NETS)
def test_nets_compute_what_onnxruntime_does(name: str) -> None:
    model = NETS[name]()
    x = rows(model)
    assert relative(in_onnxruntime(model, x), in_torch(model, x)) < 2e-6


@pytest.mark.parametrize("name", [*KNOWN, *NETS])
def test_a_round_trip_keeps_every_bit(name: str) -> None:
    model = KNOWN[name] if name in KNOWN else NETS[name]()
    assert to_onnx(to_torch(model), model).SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_other_float_types_keep_every_bit_too(kind: int) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weight = np.random.default_rng(0).standard_normal((4, 3)).astype(dtype)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    value = [helper.make_tensor_value_info(n, kind, ["N", s]) for n, s in (("x", 4), ("y", 3))]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    module = to_torch(model)
    assert str(module.w.dtype).endswith({10: "float16", 16: "bfloat16", 11: "float64"}[kind])
    assert to_onnx(module, model).SerializeToString() == model.SerializeToString()
    wide = to_onnx(module.double(), model)
    assert wide.graph.initializer[0].data_type == kind
    assert numpy_helper.to_array(wide.graph.initializer[0]).tobytes() == weight.tobytes()


@pytest.mark.parametrize("name", [name for name in NETS if name != "digits_mlp_tanh"])
def test_gradients_reach_every_weight_and_trained_weights_go_back(name: str) -> None:
    """One step down the gradient: the loss falls, in PyTorch and in the ONNX file that comes back."""
    model = NETS[name]()
    module, x = to_torch(model), rows(model)
    goal = torch.from_numpy(in_onnxruntime(model, x) + np.float32(0.1))
    parameters: dict[str, Any] = dict(module.named_parameters())
    floats = {i.name for i in model.graph.initializer if i.data_type == TensorProto.FLOAT}
    assert parameters and len(parameters) <= len(floats)

    def loss() -> Any:
        return ((module(torch.from_numpy(x)) - goal) ** 2).mean()

    before = loss()
    before.backward()
    assert [n for n, p in parameters.items() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    size = sum(float((p.grad**2).sum()) for p in parameters.values())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter -= 0.05 * float(before.detach()) / size * parameter.grad
        assert float(loss()) < float(before)
    trained = to_onnx(module, model)
    onnx.checker.check_model(trained, full_check=True)
    assert [n.SerializeToString() for n in trained.graph.node] == [n.SerializeToString() for n in model.graph.node]
    with torch.inference_mode():
        expected = module(torch.from_numpy(x)).numpy()
    assert relative(expected, in_onnxruntime(trained, x)) < 2e-6
    assert relative(in_onnxruntime(model, x), expected) > 1e-7


def test_statistics_and_single_numbers_do_not_train() -> None:
    x = np.ones(4, dtype=np.float32)
    norm = helper.make_node("BatchNormalization", ["x", "g", "b", "mean", "var"], ["h"])
    nodes = [norm, helper.make_node("Mul", ["h", "tenth"], ["a"]), helper.make_node("Add", ["a", "c"], ["y"])]
    weights = {"g": x, "b": x, "mean": x, "var": x, "tenth": np.float32(0.1), "c": x}
    module = to_torch(build(nodes, {n: np.asarray(w) for n, w in weights.items()}, ("N", 4)))
    assert set(dict(module.named_parameters())) == {"g", "b", "c"}
    assert set(dict(module.named_buffers())) == {"mean", "var", "tenth"}


def test_a_shared_weight_is_one_parameter() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    module = to_torch(build(nodes, {"w": np.eye(4, dtype=np.float32)}, ("N", 4)))
    assert [n for n, _ in module.named_parameters()] == ["w"]


def test_a_weight_that_is_transposed_on_its_way_trains_where_it_is_stored() -> None:
    nodes = [helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]), helper.make_node("MatMul", ["x", "wt"], ["y"])]
    model = build(nodes, {"w": np.ones((3, 4), dtype=np.float32)}, ("N", 4))
    module = to_torch(model)
    assert [tuple(p.shape) for p in module.parameters()] == [(3, 4)]
    assert to_onnx(module, model).SerializeToString() == model.SerializeToString()


def one_node(node: onnx.NodeProto) -> onnx.ModelProto:
    """x -> the node -> y; what else it reads is stored."""
    kinds = {"x": TensorProto.FLOAT, "y": TensorProto.INT64 if len(node.output) > 1 else TensorProto.FLOAT}
    value = [helper.make_tensor_value_info(n, k, ["N", 4, 8, 8]) for n, k in kinds.items()]
    stored: dict[str, Array] = {"w": np.ones((4, 4), np.uint8), "s": np.ones(1, np.float32), "yes": np.array(True)}
    stored["f"] = np.ones(4, np.float32)
    tensors = [numpy_helper.from_array(v, n) for n, v in stored.items() if n in node.input]
    graph = helper.make_graph([node], "g", value[:1], value[1:], tensors)
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("mine", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def made(op: str, inputs: str = "x", outputs: str = "y", domain: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), domain=domain, **attributes)


REFUSED = [
    (made("Det", name="d"), "Det 'd' is not known"),
    (made("Trilu", domain="com.microsoft"), "com.microsoft.Trilu 'y' is not known"),
    (made("Fold", domain="mine"), "mine.Fold 'y' is not known"),
    (made("MaxPool", outputs="z y", kernel_shape=[2, 2]), "MaxPool 'z' has outputs"),
    (made("MultiHeadAttention", domain="com.microsoft", num_heads=2), "com.microsoft.MultiHeadAttention 'y' is used"),
    (made("Resize", "x f f", mode="linear", antialias=1), "another antialias than 0"),
    (made("Resize", "x f f", coordinate_transformation_mode="tf_crop_and_resize"), "with the coordinates of tf_crop"),
    (made("Cast", to=TensorProto.FLOAT8E4M3FN), "to element type 17"),
    (made("LSTM", "x f f", layout=1, hidden_size=1), "another layout than 0"),
    (made("GRU", "x f f", activations=["Sin", "Tanh"], hidden_size=1), "with activation Sin"),
    (made("FusedConv", "x f", domain="com.microsoft", activation="Softplus"), "with activation Softplus"),
    (made("QuantizeLinear", "x s"), "quantised numbers"),
    (made("DequantizeLinear", "x s"), "quantised numbers"),
    (made("MatMulNBits", "x w s", domain="com.microsoft", K=8, N=4, bits=4, block_size=32), "quantised numbers"),
]


@pytest.mark.parametrize(("node", "said"), REFUSED, ids=lambda v: getattr(v, "op_type", ""))
def test_what_is_not_known_is_refused_in_one_line_that_names_it(node: onnx.NodeProto, said: str) -> None:
    model = one_node(node)
    with pytest.raises(UnsupportedError) as error:
        to_torch(model)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert [said in line for line in unknown_operators(model)] == [True]


def test_all_that_is_not_known_is_named_at_once() -> None:
    nodes = [made("Det", "x", "d"), made("Shape", "x", "s"), made("Relu", "d", "r"), made("Fold", "r", "y", "mine")]
    model = one_node(nodes[0])
    del model.graph.node[:]
    model.graph.node.extend([*nodes, made("Det", "x", "unused")])
    assert [line.partition(" is ")[0] for line in unknown_operators(model)] == ["Det 'd'", "mine.Fold 'y'"]
    with pytest.raises(UnsupportedError, match=r"Det 'd' .* \(and 1 more of its nodes\)"):
        to_torch(model)
    assert unknown_operators(t.residual()) == []


def test_control_flow_is_refused_by_name_unless_its_condition_is_known() -> None:
    nodes = [made("ReduceSum", "x", "sum", keepdims=0), made("Greater", "sum zero", "positive"), chosen("positive")]
    zero = numpy_helper.from_array(scalar(0), "zero")
    weights = {"up": np.ones((4, 4)), "down": -np.ones((4, 4))}
    stored = [zero, *(numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items())]
    graph = helper.make_graph(nodes, "g", [typed("x")], [typed("y")], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert [line.partition(",")[0] for line in unknown_operators(model)] == ["If 'choice' is control flow"]


def test_a_module_of_another_model_is_refused() -> None:
    small = shrink(MODELS / "digits_mlp_leaky.onnx", MODELS / "digits_rows.npz", width=0.5, samples=300, refine=0).model
    module = to_torch(small)
    with pytest.raises(InputError, match="was made from another"):
        to_onnx(module, MODELS / "digits_mlp_leaky.onnx")
    with torch.no_grad():
        next(module.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="NaN"):
        to_onnx(module, small)


def test_a_copy_of_the_module_goes_back_as_well() -> None:
    model = onnx.load(MODELS / "digits_cnn.onnx")
    assert to_onnx(copy.deepcopy(to_torch(model)), model).SerializeToString() == model.SerializeToString()


def test_the_package_does_not_need_torch() -> None:
    import subprocess
    import sys

    code = "import sys, pcns_onnx.api.shrink, pcns_onnx.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# -- a shrunk model goes on ------------------------------------------------------------------


@pytest.mark.parametrize("method", ["obs", "pcns"])
@pytest.mark.parametrize("name", ["digits_mlp_leaky", "digits_cnn"])
def test_a_shrunk_model_is_the_student_of_its_original(name: str, method: str) -> None:
    """Distillation without labels: the student comes closer to the teacher on samples neither was trained on."""
    kind = "images" if name.endswith("cnn") else "rows"
    with np.load(MODELS / f"digits_{kind}.npz") as held:
        x = torch.from_numpy(held["input"])
    with np.load(MODELS / f"digits_{kind}_test.npz") as held:
        unseen = torch.from_numpy(held["input"])
    data = MODELS / f"digits_{kind}.npz"
    small = shrink(MODELS / f"{name}.onnx", data, width=0.3, method=method, samples=400, refine=0).model
    teacher, student = to_torch(MODELS / f"{name}.onnx"), to_torch(small)
    with torch.inference_mode():
        wanted, truth = teacher(x).clone(), teacher(unseen).clone()

    def miss() -> float:
        with torch.inference_mode():
            return float(((student(unseen) - truth) ** 2).mean())

    before = miss()
    optimiser = torch.optim.Adam(student.parameters(), lr=1e-3)
    torch.manual_seed(0)
    for _ in range(3):
        for batch in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            ((student(x[batch]) - wanted[batch]) ** 2).mean().backward()
            optimiser.step()
    assert miss() < 0.9 * before
    onnx.checker.check_model(to_onnx(student, small), full_check=True)
