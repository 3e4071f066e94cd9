"""Activations as the solve knows them, against onnxruntime, and their inverses."""

from __future__ import annotations

from typing import Any, cast

import array_api_strict
import numpy as np
import pytest
from onnx import TensorProto, helper

from builders.activations import SIGMAS, Parameter, grid_inside, sigma_of
from builders.models import run
from pcns_onnx.methods.pcns.activations import activation
from pcns_onnx.numerics.arrays import to_numpy

Array = Any
BACKENDS = pytest.mark.parametrize("xp", [np, array_api_strict], ids=["numpy", "strict"])


@BACKENDS
@SIGMAS
def test_the_inverse_undoes_the_activation(xp: Any, op: str, attrs: dict[str, float], slope: Parameter) -> None:
    sigma = sigma_of(op, attrs, slope)
    x = grid_inside(sigma)
    assert len(x) > 10
    outputs = sigma.forward(xp.asarray(x))
    np.testing.assert_allclose(to_numpy(sigma.inverse(outputs)), x, rtol=1e-9, atol=1e-9)
    assert (to_numpy(outputs) > sigma.low).all() and (to_numpy(outputs) < sigma.high).all()


@SIGMAS
def test_the_activation_is_what_onnxruntime_computes(op: str, attrs: dict[str, float], slope: Parameter) -> None:
    x = np.linspace(-5, 5, 101, dtype=np.float32)
    values = slope if isinstance(slope, tuple) else () if slope is None else (slope,)
    extra = {f"p{i}": value for i, value in enumerate(values)}
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *extra], ["y"], **cast("dict[str, Any]", attrs))],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [101])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [101])],
        [helper.make_tensor(name, TensorProto.FLOAT, [1] if op == "PRelu" else [], [v]) for name, v in extra.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    np.testing.assert_allclose(sigma_of(op, attrs, slope).forward(x), run(model, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("op", "slope"),
    [("Gelu", None), ("HardSwish", None), ("Mish", None), ("Swish", None), ("PRelu", 0.0), ("PRelu", -0.1),
     ("Abs", None)],
)  # fmt: skip
def test_what_is_not_one_to_one_has_no_inverse(op: str, slope: float | None) -> None:
    assert activation(op, {}, slope) is None


@pytest.mark.parametrize("bounds", [None, (float("-inf"), 2.0), (1.0, 1.0), (float("nan"), 1.0)])
def test_a_clip_without_usable_bounds_has_no_inverse(bounds: tuple[float, float] | None) -> None:
    assert activation("Clip", {}, bounds=bounds) is None
