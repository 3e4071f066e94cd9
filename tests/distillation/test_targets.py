"""What is learnt at an output follows from what makes it, and losses are shares of saying the mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from builders.mlp import mlp, rows
from builders.students import ending
from pcns_onnx.calibration.output_layout import OutputLayout
from pcns_onnx.calibration.output_weight import OutputWeight
from pcns_onnx.distillation.targets import Spreads, Target, targets_of, taught_tensors
from pcns_onnx.graph import Graph
from pcns_onnx.runtime.engine import Engine


def reshaped() -> onnx.ModelProto:
    """A Softmax whose output changes its shape alone."""
    model = ending("Softmax", axis=1)
    model.graph.node[-1].output[0] = "shares"
    model.graph.node.append(helper.make_node("Identity", ["shares"], ["y"]))
    return model


def places() -> onnx.ModelProto:
    """Places of classes, no numbers to learn from."""
    model = ending("ArgMax", axis=1)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    for size in ("N", 1):
        dim = model.graph.output[0].type.tensor_type.shape.dim.add()
        if isinstance(size, int):
            dim.dim_value = size
        else:
            dim.dim_param = size
    return model


KINDS: Mapping[str, tuple[Callable[[], onnx.ModelProto], str | None, str]] = {
    "scores": (mlp, "kl", "y"),
    "softmax": (lambda: ending("Softmax", axis=1), "kl", "scores"),
    "softmax and a change of shape": (reshaped, "kl", "scores"),
    "log softmax": (lambda: ending("LogSoftmax", axis=1), "kl", "scores"),
    "sigmoid": (lambda: ending("Sigmoid"), "binary", "scores"),
    "features": (lambda: ending("Tanh"), "mse", "y"),
    "two columns": (lambda: mlp(widths=(6, 12, 2)), "mse", "y"),
    "places": (places, None, ""),
}


def learnt(model: onnx.ModelProto, choice: str = "auto") -> list[Target]:
    graph = Graph.load(model)
    outputs = Engine().session(graph.program()).run({"x": rows(50)})
    return targets_of(graph, graph, taught_tensors(graph, graph), outputs, choice)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_what_makes_an_output_says_how_it_is_learnt(kind: str) -> None:
    build, loss, tensor = KINDS[kind]
    assert [(t.loss, t.original) for t in learnt(build())] == ([] if loss is None else [(loss, tensor)])


def test_the_caller_may_say_another_loss() -> None:
    assert [t.loss for t in learnt(mlp(), "mse")] == ["mse"]
    assert [(t.loss, t.original) for t in learnt(ending("Softmax", axis=1), "mse")] == [("mse", "scores")]
    assert [t.loss for t in learnt(ending("Tanh"), "kl")] == ["kl"]
    assert [t.loss for t in learnt(mlp(), "cosine")] == ["cosine"]


def test_what_always_says_the_same_teaches_nothing() -> None:
    target = Target("y", "y", "y", "kl")
    still = Spreads([target], OutputLayout(), {"y": 0})
    still.update({"y": np.tile(np.array([[1, 2, 3]], dtype=np.float32), (9, 1))}, 9)
    assert all(measure.whole < 1e-9 for measure in still.measures())
    ignored = Spreads([target], OutputLayout(weights=(OutputWeight("y", 0.0),)), {"y": 0})
    ignored.update({"y": rows(9)}, 9)
    assert ignored.measures() == []


def test_squared_errors_are_in_the_scale_of_each_channel() -> None:
    values = rows(400) * np.array([1, 1, 1, 100, 100, 100], dtype=np.float32)
    spreads = Spreads([Target("y", "y", "y", "mse")], OutputLayout(), {"y": 0})
    spreads.update({"y": values}, 400)
    (measure,) = spreads.measures()
    assert np.allclose(measure.weights.reshape(-1)[[0, 3]] * [1, 100**2], 1, rtol=0.1)
    centred = values - values.mean(axis=0)
    assert (centred**2 * measure.weights).sum() / 400 / measure.whole == pytest.approx(1, rel=1e-4)


def with_boxes() -> onnx.ModelProto:
    """A Softmax over classes, and four plain numbers beside it."""
    model = ending("Softmax", axis=1)
    weight = np.random.default_rng(3).standard_normal((model.graph.initializer[0].dims[0], 4)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "wb"))
    model.graph.node.append(helper.make_node("MatMul", ["x", "wb"], ["boxes"]))
    model.graph.output.append(helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["N", 4]))
    return model


def test_plain_numbers_beside_classes_are_boxes() -> None:
    assert {target.output: target.loss for target in learnt(with_boxes())} == {"y": "kl", "boxes": "mse"}
    assert {target.output: target.loss for target in learnt(with_boxes(), "kl")}["boxes"] == "kl"
