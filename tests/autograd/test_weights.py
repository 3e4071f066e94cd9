"""Which constants train, what they are called, and that they go back into the nodes that hold them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.chains import node
from builders.models import Array, build, relative, run
from builders.single_node import in_onnxruntime
from pcns_onnx import InputError
from pcns_onnx.graph import Graph

torch = pytest.importorskip("torch")

from pcns_onnx.autograd.translation import to_onnx, to_torch  # noqa: E402


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def parameters(model: onnx.ModelProto) -> list[str]:
    return [name for name, _ in to_torch(model).named_parameters()]


def test_weights_in_constant_nodes_train_and_go_back_there() -> None:
    """As Paddle and TensorFlow export them."""
    w, b = noise(4, 3), noise(3, seed=1)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(w)),
        helper.make_node("Constant", [], ["b"], value_floats=b.tolist()),
        node("MatMul", "x w", "h"),
        node("Add", "h b", "y"),
    ]
    model, x = build(nodes, {}, ("N", 4)), noise(5, 4)
    module = to_torch(model)
    assert parameters(model) == ["w", "b"]
    assert to_onnx(module, model).SerializeToString() == model.SerializeToString()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= 2
    trained = to_onnx(module, model)
    assert [n.op_type for n in trained.graph.node] == [n.op_type for n in model.graph.node]
    np.testing.assert_allclose(run(trained, x), 2 * run(model, x), rtol=1e-5)


def test_masks_and_fillers_are_no_weights() -> None:
    causal = np.triu(np.full((4, 4), -1e9, np.float32), 1)
    seen, start = np.tril(np.ones((4, 4), np.float32)), np.zeros((2, 4, 4), np.float32)
    constants = {"causal": causal, "seen": seen, "start": start, "shift": np.zeros(4, np.float32), "place": noise(4, 4)}
    nodes = [
        node("Add", "x causal", "a"), node("Mul", "a seen", "b"), node("Add", "b start", "c"),
        node("Add", "c shift", "d"), node("Add", "d place", "y"),
    ]  # fmt: skip
    assert parameters(build(nodes, constants, (2, 4, 4))) == ["shift", "place"]


def test_what_no_gradient_reaches_is_no_parameter() -> None:
    """Of the layer in front of the ArgMax every weight is a constant, and the other one trains."""
    nodes = [
        node("MatMul", "x w", "scores"), node("ArgMax", "scores", "best", axis=1, keepdims=0),
        node("Cast", "best", "chosen", to=TensorProto.FLOAT), node("Unsqueeze", "chosen ones", "column"),
        node("MatMul", "x v", "h"), node("Mul", "h column", "y"),
    ]  # fmt: skip
    model = build(nodes, {"w": noise(4, 3), "v": noise(4, 2), "ones": np.array([1])}, ("N", 4))
    assert parameters(model) == ["v"]


def test_a_module_of_a_part_brings_the_weights_of_that_part() -> None:
    """So that what ends in an ArgMax can be trained by its scores."""
    nodes = [node("MatMul", "x w", "scores"), node("ArgMax", "scores", "y", axis=1)]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["N", 1])], [numpy_helper.from_array(noise(4, 3), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert parameters(model) == []
    module = to_torch(Graph.load(model).extract(["x"], ["scores"]).proto)
    with torch.no_grad():
        module.w += 1
    changed = numpy_helper.to_array(to_onnx(module, model).graph.initializer[0])
    np.testing.assert_array_equal(changed, noise(4, 3) + 1)
    module.register_parameter("other", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(InputError, match="'other'"):
        to_onnx(module, model)


@pytest.mark.parametrize("name", ["training", "lambda", "graph", "weight.1", "1", "x"])
def test_any_name_will_do(name: str) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x" if name != "x" else "i", name], ["y"])], "g",
        [helper.make_tensor_value_info("x" if name != "x" else "i", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])], [numpy_helper.from_array(noise(4, 3), name)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    module = to_torch(model)
    assert tuple(module(torch.zeros(2, 4)).shape) == (2, 3)
    assert to_onnx(module, model).SerializeToString() == model.SerializeToString()


HALVES: dict[int, float] = {TensorProto.FLOAT16: 5e-3, TensorProto.BFLOAT16: 4e-2}


def half_model(kind: int) -> tuple[onnx.ModelProto, Array]:
    """A convolution, a norm and a layer, all stored in half precision."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weights: dict[str, Any] = {"k": noise(6, 3, 3, 3) / 5, "g": noise(6), "b": noise(6), "w": noise(6, 4)}
    weights |= {"c": noise(4), "m": noise(6), "v": np.abs(noise(6)) + 1}
    nodes = [
        node("Conv", "x k", "h", pads=[1, 1, 1, 1]), node("BatchNormalization", "h g b m v", "n"),
        node("Relu", "n", "r"), node("GlobalAveragePool", "r", "p"), node("Flatten", "p", "f"),
        node("Gemm", "f w c", "y"),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, ["N", 3, 5, 5])],
        [helper.make_tensor_value_info("y", kind, ["N", 4])],
        [numpy_helper.from_array(value.astype(dtype), name) for name, value in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model, noise(2, 3, 5, 5, seed=3)


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("widen", [False, True])
def test_half_precision_runs_and_trains_as_it_is_or_widened(kind: int, widen: bool) -> None:
    model, x = half_model(kind)
    module = to_torch(model, widen=widen)
    dtype = next(module.parameters()).dtype
    assert (dtype == torch.float32) == widen
    expected = in_onnxruntime(Graph.load(model).as_float32().proto, {"x": x})[0]
    y = module(torch.from_numpy(x).to(dtype))
    assert relative(expected, y.detach().float().numpy()) < (1e-5 if widen else HALVES[kind])
    y.float().square().sum().backward()
    assert all(float(p.grad.float().norm()) > 0 for p in module.parameters())
    assert to_onnx(module, model).SerializeToString() == model.SerializeToString()
    with torch.no_grad():
        module.w += 0.5
    trained = to_onnx(module, model)
    assert {i.data_type for i in trained.graph.initializer} == {kind}
    changed = [a.name for a, b in zip(trained.graph.initializer, model.graph.initializer, strict=True) if a != b]
    assert changed == ["w"]


def test_what_half_precision_cannot_hold_is_refused() -> None:
    model, _ = half_model(TensorProto.FLOAT16)
    module = to_torch(model, widen=True)
    with torch.no_grad():
        module.w.fill_(1e6)
    with pytest.raises(InputError, match="'w' has NaN or Inf, or is too large for float16"):
        to_onnx(module, model)
