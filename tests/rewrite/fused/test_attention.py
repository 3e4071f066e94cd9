"""What is taken apart computes the same, and put together again it is what it was."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from builders import fused_attention as fused
from builders.fused_attention import Fused, samples
from builders.models import relative, run
from pcns_onnx import expand, shrink
from pcns_onnx.graph import Graph
from pcns_onnx.rewrite.canonical import Canonical, emit
from pcns_onnx.rewrite.fused.attention import open_attention

MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "weights inside": fused.packed_weights,
    "bias inside": fused.multi_head,
}


@pytest.mark.parametrize("name", MODELS)
def test_apart_it_computes_the_same(name: str) -> None:
    graph, x = Graph.load(MODELS[name]()), samples(5)
    apart = open_attention(graph)
    apart.check(full=True)
    assert len(apart.nodes) > len(graph.nodes)
    assert relative(run(graph.proto, x), run(apart.proto, x)) < 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_together_it_is_what_it_was(name: str) -> None:
    graph = Graph.load(MODELS[name]())
    small = emit(Canonical.of(graph), ())
    assert [node for node in small.nodes] == [node for node in graph.nodes]
    assert {t.name: t.raw_data for t in small.proto.graph.initializer} == {
        t.name: t.raw_data for t in graph.proto.graph.initializer
    }


def test_a_layer_that_became_two_stays_apart() -> None:
    """Low rank puts two products in the place of the projection: the pieces compute the same."""
    rng = np.random.default_rng(0)
    s = Fused(False)
    s.keep("up", (rng.standard_normal((12, 48)) / 4).astype(np.float32))
    s.op("Relu", s.op("MatMul", "x up", "h", name="up"), "r")
    s.keep("qkv", (rng.standard_normal((48, 4)) @ rng.standard_normal((4, 36)) / 14).astype(np.float32))
    s.contrib("Attention", f"r qkv {s.vector('b', 36)}", "joined", num_heads=3)
    model, x = s.done("joined"), samples(9)
    result = shrink(model, samples(200), budget="macs=0.7", low_rank=True, multiple=1, refine=0)
    Graph.load(result.model).check(full=True)
    assert relative(run(model, x), run(result.model, x)) < 0.5


def test_an_added_bias_goes_into_the_norm_behind() -> None:
    """Behind an FFN that lost channels the re-fit has a bias: no Add comes with it."""
    s = Fused(False)
    for name, shape in (("up", (12, 16)), ("down", (16, 12))):
        s.keep(name, (s.rng.standard_normal(shape) / 4).astype(np.float32))
    s.op("Relu", s.op("MatMul", "x up", "h", name="up"), "r")
    s.op("MatMul", "r down", "d", name="down")
    s.keep("g", np.ones(12, np.float32))
    s.contrib("SkipLayerNormalization", f"x d g {s.vector('shift', 12)}", "normed")
    model = s.done("normed", 12)
    small = shrink(model, samples(100), width=0.5, refine=0).model
    node = next(node for node in small.graph.node if node.op_type == "SkipLayerNormalization")
    assert len(node.input) == 5 and node.input[1] == "d"
    assert "Add" not in [node.op_type for node in small.graph.node][:4]
    assert np.isfinite(run(small, samples(3))).all()


@pytest.mark.parametrize("name", MODELS)
def test_a_wider_model_is_put_together_too(name: str) -> None:
    """The layer behind is what is widened here: attention stays what it was."""
    s = Fused(False)
    s.keep("qkv", (s.rng.standard_normal((12, 36)) / 4).astype(np.float32))
    if name == "weights inside":
        s.contrib("Attention", f"x qkv {s.vector('b', 36)}", "joined", num_heads=3)
    else:
        for part in "qkv":
            s.project("x", part)
        s.contrib("MultiHeadAttention", f"q k v {s.vector('b', 36)}", "joined", num_heads=3)
    s.keep("up", (s.rng.standard_normal((12, 8)) / 4).astype(np.float32))
    s.op("Relu", s.op("MatMul", "joined up", "h", name="up"), "r")
    model, x = s.done("r", 8), samples(4)
    wide = expand(model, layer="up", by=1.5).model
    assert [node.op_type for node in wide.graph.node] == [node.op_type for node in model.graph.node]
    assert relative(run(model, x), run(wide, x)) < 1e-5
