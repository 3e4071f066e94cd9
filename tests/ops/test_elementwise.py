"""Operators of com.microsoft, which onnxruntime's optimizer writes: activations pass, the rest says what it is."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import helper

from builders.chains import C, Chain, K, node, random
from builders.contract import halved, nothing_lost, stood_in, surveyed
from builders.models import Array, relative, run
from builders.surgery import sample
from pcns_onnx.graph import Program
from pcns_onnx.ops.normalization import SEVERAL
from pcns_onnx.ops.unsupported import FUSED as WHY
from pcns_onnx.ops.unsupported import QUANTISED
from pcns_onnx.runtime.engine import Engine


def fused(op: str, inputs: str = "h", weights: dict[str, Array] | None = None, **attributes: Any) -> onnx.ModelProto:
    """Rows through an operator of com.microsoft, with a layer before and behind."""
    item = node(op, inputs, domain="com.microsoft", **attributes)
    model = stood_in(Chain([item], weights or {}, "rows", "rows"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.checker.check_model(model)
    return model


FUSED = {
    "Gelu": fused("Gelu"),
    "QuickGelu": fused("QuickGelu", alpha=1.5),
    "FastGelu": fused("FastGelu"),
    "FastGelu with a bias": fused("FastGelu", "h c", {"c": random(C)}),
    "BiasGelu": fused("BiasGelu", "h c", {"c": random(C)}),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_activations_pass(name: str) -> None:
    model = FUSED[name]
    result = halved(model)
    assert result.plan.groups["h"].width == C // 2
    sizes = {tensor.name: tuple(tensor.dims) for tensor in result.model.graph.initializer}
    assert sizes.get("c", (C // 2,)) == (C // 2,) and sizes["W1"] == (C // 2, K)
    x = sample(model)
    whole = nothing_lost(twins_in(model), 0.5).model
    assert relative(run(twins_in(model), x), run(whole, x)) < 1e-4


def twins_in(model: onnx.ModelProto) -> onnx.ModelProto:
    """The second half of the hidden channels is what the first half is."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    for tensor in twin.graph.initializer:
        if tensor.name in ("W0", "b0", "c"):
            value = onnx.numpy_helper.to_array(tensor).copy()
            value[..., C // 2 :] = value[..., : C // 2]
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    return twin


def test_skip_layer_norm_keeps_its_channels() -> None:
    model = fused("SkipLayerNormalization", "h h g be", {"g": random(C), "be": random(C)})
    _, dependencies = surveyed(model)
    assert dependencies.groups[0].frozen == f"com.microsoft.SkipLayerNormalization 'm' {SEVERAL}"
    Engine().session(Program(model.SerializeToString()))


@pytest.mark.parametrize(
    ("op", "reason"), [("FusedMatMul", WHY), ("GemmFastGelu", WHY), ("QGemm", QUANTISED), ("GroupNorm", SEVERAL)]
)
def test_what_was_fused_is_named(op: str, reason: str) -> None:
    _, dependencies = surveyed(fused(op, "h W", {"W": random(C, C)}))
    assert dependencies.groups[0].frozen == f"com.microsoft.{op} 'm' {reason}"
