"""ConvTranspose: its algebra is onnxruntime's for all that its attributes can say, and it shrinks like a Conv."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from builders.chains import NORM, C, Chain, K, node, random
from builders.contract import halved, holds, nothing_lost, surveyed
from builders.models import build, relative, run
from builders.surgery import bias_of, sample, taken, weight_of
from builders.transposed import LAYERS, UP, grouped, pair
from pcns_onnx import shrink
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.rewrite.fold_batch_norm import fold_batch_norms
from pcns_onnx.rewrite.layer_weights import set_layer
from pcns_onnx.rewrite.patch import apply


@dataclass(frozen=True)
class Case:
    """One ConvTranspose with everything that it can be told."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    blocks: int
    inside: int
    outside: int
    bias: bool
    attributes: dict[str, Any]

    def build(self) -> onnx.ModelProto:
        weights = {"W": random(self.blocks * self.inside, self.outside, *self.kernel)}
        if self.bias:
            weights["b"] = random(self.blocks * self.outside)
        item = node("ConvTranspose", "x W b" if self.bias else "x W", "y", group=self.blocks, **self.attributes)
        return build([item], weights, ("N", self.blocks * self.inside, *self.size))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    spatial = draw(st.integers(1, 3))

    def each(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(spatial)]

    size, kernel, strides, dilations = each(1, 4), each(1, 3), each(1, 3), each(1, 2)
    extra = [min(e, max(s, d) - 1) for e, s, d in zip(each(0, 2), strides, dilations, strict=True)]
    whole = [
        (n - 1) * s + e + (k - 1) * d + 1 for n, s, e, k, d in zip(size, strides, extra, kernel, dilations, strict=True)
    ]
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "output_padding": extra}
    attributes["auto_pad"] = draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if attributes["auto_pad"] == "NOTSET":
        attributes["pads"] = [*each(0, 2), *each(0, 2)]
    if draw(st.booleans()):
        attributes["output_shape"] = [max(w + more, 1) for w, more in zip(whole, each(-3, 1), strict=True)]
    elif "pads" in attributes:
        pads = attributes["pads"]
        assume(all(w > pads[i] + pads[i + spatial] for i, w in enumerate(whole)))
    blocks = draw(st.integers(1, 3))
    inside = draw(st.integers(blocks, 3))
    return Case(tuple(size), tuple(kernel), blocks, inside, draw(st.integers(1, 3)), draw(st.booleans()), attributes)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_its_algebra_is_what_onnxruntime_computes(case: Case) -> None:
    model = case.build()
    x = sample(model)
    try:
        y = run(model, x)
    except InputError:  # a combination that onnxruntime refuses
        assume(False)
    graph, dependencies = surveyed(model)
    (layer,) = dependencies.layers
    weight = weight_of(graph, layer).astype(np.float64)
    whole, bias = layer.linear.op.matrix(weight), bias_of(graph, layer)
    assert whole.shape == (case.blocks * case.outside, case.inside * int(np.prod(case.kernel)))
    np.testing.assert_array_equal(layer.linear.op.weight(whole, weight), weight)
    for block, part in enumerate(layer.parts):
        op = part.op
        matrix = op.matrix(weight)
        np.testing.assert_array_equal(matrix, whole[part.rows])
        every = op.inputs(x, None)
        rows = every.astype(np.float64) @ matrix.T + bias[part.rows]
        np.testing.assert_allclose(op.outputs(y, None), rows, rtol=1e-4, atol=1e-4)

        positions = op.positions(x.shape)
        assert positions == op.positions_of(y.shape) == int(np.prod(y.shape[2:]))
        at = np.unique(np.array([positions - 1, 0, positions // 2]))
        np.testing.assert_array_equal(op.inputs(x, at), taken(every, len(x), at))
        np.testing.assert_allclose(op.outputs(y, at), taken(rows, len(x), at), rtol=1e-4, atol=1e-4)

        channels = np.arange(1, 1 + case.blocks * case.inside).reshape(1, -1, *(1,) * len(case.size))
        seen = op.inputs(np.broadcast_to(channels, x.shape), None)
        mine = np.split(channels.reshape(-1), case.blocks)[block]
        np.testing.assert_array_equal(np.where(seen, op.owners(mine), 0), seen)
        if not op.padded:
            assert (seen > 0).all()


@settings(max_examples=40, deadline=None)
@given(cases())
def test_it_takes_a_new_matrix(case: Case) -> None:
    model = case.build()
    x = sample(model)
    try:
        y = run(model, x)
    except InputError:
        assume(False)
    graph, dependencies = surveyed(model)
    (layer,) = dependencies.layers
    matrix = layer.linear.op.matrix(weight_of(graph, layer).astype(np.float64))
    doubled = apply(graph, set_layer(graph, layer, 2 * matrix, 2 * bias_of(graph, layer) + 1))
    doubled.check(full=True)
    np.testing.assert_allclose(run(doubled.proto, x), 2 * y + 1, rtol=1e-4, atol=1e-4)


# -- models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_it_keeps_the_contract(name: str) -> None:
    holds(*LAYERS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_it_is_shrunk_end_to_end(name: str) -> None:
    halved(LAYERS[name][0])


@pytest.mark.parametrize("name", ["2d", "decoder", "in blocks", "depthwise"])
def test_some_are_shrunk_end_to_end(name: str) -> None:
    halved(LAYERS[name][0], samples=30)


def planted(model: onnx.ModelProto, name: str, axis: int) -> onnx.ModelProto:
    """Of the outputs of weight `name` (along `axis`), 1 and 4 are dead, 3 and 6 are what 0 and 5 are."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    for tensor in twin.graph.initializer:
        if tensor.name in (name, {"W0": "b0", "U": "u"}[name]):
            value = onnx.numpy_helper.to_array(tensor).copy()
            moved = np.moveaxis(value, axis if value.ndim > 1 else 0, 0)
            moved[[1, 4]] = 0
            moved[[3, 6]] = moved[[0, 5]]
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    return twin


def test_what_is_superfluous_goes_without_a_trace() -> None:
    nothing_lost(planted(pair(2, strides=[2, 2]), "W0", 1), 0.5)
    up = Chain([replace_op(UP, "t"), node("Relu", "t")], {"U": random(C, C, 3, 3), "u": random(C)}).build()
    result = nothing_lost(planted(planted(up, "U", 1), "W0", 0), 0.5)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in result.model.graph.initializer}
    assert shapes["U"] == (C // 2, C // 2, 3, 3)


def test_principal_components_are_exact_without_an_activation() -> None:
    """Eight channels that are mixtures of four: the paper's four and their mean are enough."""
    mixed = np.einsum("cktu,kn->cntu", random(3, 4, 3, 2), random(4, C))
    nodes = [node("ConvTranspose", "x W0", "h", strides=[2, 2], pads=[1] * 4), node("ConvTranspose", "h W1 b1", "y")]
    model = build(nodes, {"W0": mixed, "W1": random(C, K, 3, 3), "b1": random(K)}, ("N", 3, 5, 4))
    x = np.random.default_rng(0).standard_normal((100, *sample(model).shape[1:])).astype(np.float32)
    for refit in (True, False):
        small = shrink(model, x, method="pcns", width=5 / C, multiple="1", refit=refit, refine=0).model
        assert relative(run(model, x), run(small, x)) < 1e-3
        assert {tensor.name: tuple(tensor.dims) for tensor in small.graph.initializer}["W0"] == (3, 5, 3, 2)


def test_it_runs_on_any_array_library() -> None:
    xp = pytest.importorskip("array_api_strict")
    _, dependencies = surveyed(LAYERS["in blocks"][0])
    x = np.random.default_rng(0).standard_normal((2, 6, 5, 4))
    for at in (None, np.array([0, 7, 8])):
        for part in dependencies.layers[0].parts:
            rows = part.op.inputs(xp.asarray(x), at)
            np.testing.assert_array_equal(np.asarray(rows), part.op.inputs(x, at))


def replace_op(item: onnx.NodeProto, output: str) -> onnx.NodeProto:
    twin = onnx.NodeProto()
    twin.CopyFrom(item)
    twin.output[0] = output
    return twin


def test_costs_follow_the_input() -> None:
    _, dependencies = surveyed(pair(2, strides=[2, 2]))
    assert [layer.macs for layer in dependencies.layers] == [20 * 3 * C * 6, 11 * 8 * C * K * 6]
    _, dependencies = surveyed(grouped(C, 1).build())
    (node,) = dependencies.unsolved
    assert (node.macs, node.reason, node.width) == (36 * C * 9, "", C) and node.scales is not None


@pytest.mark.parametrize("blocks", [1, 2])
def test_norms_are_folded_into_it(blocks: int) -> None:
    nodes = [node("ConvTranspose", "x U u", "h", group=blocks), node("BatchNormalization", "h g be mu va", "y")]
    model = build(nodes, {**NORM, "U": random(4, C // blocks, 3, 3), "u": random(C)}, ("N", 4, 5, 5))
    folded, names = fold_batch_norms(Graph.load(model))
    x = sample(model)
    assert len(names) == 1 and [item.op for item in folded.nodes] == ["ConvTranspose"]
    assert relative(run(model, x), run(folded.proto, x)) < 1e-5


FROZEN: dict[str, tuple[Chain, str]] = {
    "computed weight": (
        Chain([node("Relu", "U", "V"), node("ConvTranspose", "h V")], {"U": random(C, C, 2, 2)}),
        "ConvTranspose 'm' has a weight that is computed, not stored",
    ),
    "computed bias": (
        Chain([node("Relu", "u", "v"), node("ConvTranspose", "h U v")], {"U": random(C, C, 2, 2), "u": random(C)}),
        "ConvTranspose 'm' has a bias that is computed, not stored",
    ),
    "across positions": (
        Chain([node("Transpose", "h", "t", perm=[0, 2, 1, 3]), node("ConvTranspose", "t U", kernel_shape=[1, 1])],
              {"U": random(6, C, 1, 1)}),
        "ConvTranspose 'm' reads channels along another axis",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FROZEN)
def test_what_cannot_be_solved_is_left_alone(name: str) -> None:
    chain, reason = FROZEN[name]
    _, dependencies = surveyed(chain.build())
    assert dependencies.groups[0].frozen == reason
    assert [(node.kind, node.reason) for node in dependencies.unsolved] == [("ConvTranspose", reason)]


def test_the_models_own_channels_are_filtered_one_by_one() -> None:
    nodes = [node("ConvTranspose", "x U", "h", group=3), node("Conv", "h W", "r"), node("Conv", "r V", "y")]
    model = build(nodes, {"U": random(3, 1, 2, 2), "W": random(C, 3, 1, 1), "V": random(K, C, 1, 1)}, ("N", 3, 4, 4))
    _, dependencies = surveyed(model)
    assert [node.reason for node in dependencies.unsolved] == [
        "ConvTranspose 'h' filters the model's own channels one by one"
    ]
    assert dependencies.groups[0].frozen is None
