"""Norms and constants per channel: what treats every channel by itself passes, what mixes them says so."""

from __future__ import annotations

import onnx
import pytest

from builders.chains import BACKS, FRONTS, C, Chain, K, node, random
from builders.contract import halved, holds, nothing_lost, stood_in, surveyed
from builders.models import Array, build
from builders.norms import MIXED, PASSED, SCALE, group_norm
from pcns_onnx.ops.normalization import SEVERAL
from pcns_onnx.runtime.engine import Engine

GROUPS: dict[str, tuple[onnx.ModelProto, int]] = {
    "of pairs": (stood_in(Chain([node("GroupNormalization", "h g be", num_groups=4)], SCALE, opset=21)), 4),
    "of two": (stood_in(Chain([node("GroupNormalization", "h g be", num_groups=2)], SCALE, opset=21)), 2),
    "of single channels": (stood_in(Chain([node("GroupNormalization", "h g be", num_groups=C)], SCALE, opset=21)), C),
    "in pieces, of two": (group_norm(2).build(), 2),
    "in pieces, of pairs": (group_norm(4).build(), 4),
    "in pieces, of more axes": (group_norm(4, 2, 6, 6).build(), 4),
    "in pieces, of single channels": (group_norm(C).build(), C),
}  # fmt: skip
"""GroupNormalizations and the number of their groups."""


@pytest.mark.parametrize("name", GROUPS)
def test_of_a_group_norm_whole_groups_go(name: str) -> None:
    model, groups = GROUPS[name]
    _, dependencies = surveyed(model)
    assert (dependencies.groups[0].width, dependencies.groups[0].unit) == (groups, C // groups)
    assert dependencies.groups[0].frozen is None
    small = halved(model).model
    left = {tuple(tensor.dims) for tensor in small.graph.initializer if tensor.name in ("g", "be", "g3", "be3")}
    assert left <= {(C // 2,), (C // 2, 1, 1)}
    for item in small.graph.node:
        assert [a.i for a in item.attribute if a.name == "num_groups"] in ([], [groups // 2])


def test_dead_groups_go_without_a_trace() -> None:
    for name in ("of pairs", "in pieces, of pairs"):
        model = onnx.ModelProto()
        model.CopyFrom(GROUPS[name][0])
        for tensor in model.graph.initializer:
            if tensor.name in ("g", "be", "g3", "be3"):
                value = onnx.numpy_helper.to_array(tensor).copy()
                value[2:6] = 0
                tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
        nothing_lost(model, 0.5)


@pytest.mark.parametrize("name", PASSED)
def test_what_treats_channels_apart_keeps_the_contract(name: str) -> None:
    holds(PASSED[name].build(), C)


@pytest.mark.slow
@pytest.mark.parametrize("name", PASSED)
def test_what_treats_channels_apart_is_shrunk_end_to_end(name: str) -> None:
    halved(PASSED[name].build())


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_channels_keeps_them(name: str) -> None:
    chain, reason = MIXED[name]
    graph, dependencies = surveyed(stood_in(chain) if "whole" in name else chain.build())
    assert dependencies.groups[0].frozen == reason
    Engine().session(graph.program())


def test_defaults_are_the_operators() -> None:
    model = stood_in(Chain([node("MeanVarianceNormalization", "h")]))
    _, dependencies = surveyed(model)
    assert dependencies.groups[0].frozen is None
    halved(model)


def test_behind_a_norm_in_pieces_the_rest_is_still_shrunk() -> None:
    chain, _ = MIXED["layer norm in pieces"]
    hidden = [node("MatMul", "m V", "v"), node("Relu", "v", "r"), node("MatMul", "r W1", "y")]
    model = build(
        [*FRONTS["rows"][1], *chain.middle, *hidden],
        {**FRONTS["rows"][2], **chain.weights, "V": random(C, 12), "W1": random(12, K)},
        ("N", 4, 5),
    )
    result = halved(model)
    assert list(result.plan.groups) == ["v"]
    assert {name: item.reason for item in result.report.left_alone for name in item.layers}[
        "h"
    ] == f"ReduceMean 'mean' {SEVERAL}"


# -- constants per channel -------------------------------------------------------------------

SLOPES: dict[str, tuple[int, ...]] = {
    "C11": (C, 1, 1), "1C11": (1, C, 1, 1), "one": (1,), "one of rank 3": (1, 1, 1), "scalar": (), "CHW": (C, 6, 6),
    "per column": (6,),
}  # fmt: skip


def stream(middle: list[onnx.NodeProto], weights: dict[str, Array]) -> onnx.ModelProto:
    """Two layers that write to one residual stream s, `middle` from s to m, a layer that reads."""
    nodes = [
        *FRONTS["conv"][1],
        node("Relu", "h", "r"),
        node("Conv", "r W2", "g", pads=[1] * 4),
        node("Add", "g h", "s"),
    ]
    weights = {**FRONTS["conv"][2], **BACKS["conv"][1], "W2": random(C, C, 3, 3), **weights}
    return build([*nodes, *middle, *BACKS["conv"][0]], weights, ("N", 3, 6, 6))


@pytest.mark.parametrize("shape", SLOPES.values(), ids=SLOPES)
@pytest.mark.parametrize("op", ["PRelu", "Mul", "Add", "Sub"])
def test_constants_ride_with_a_residual_stream(op: str, shape: tuple[int, ...]) -> None:
    holds(stream([node(op, "s c")], {"c": random(*shape)}), C)


@pytest.mark.parametrize("shape", [(C,), (1, C), (1, 1, C), (4, 1), (4, C), (), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("op", ["PRelu", "Mul", "Add"])
def test_constants_ride_on_the_last_axis(op: str, shape: tuple[int, ...]) -> None:
    if op == "PRelu" and len(shape) > 3:
        pytest.skip("a slope has no more axes than its input")
    nodes = [*FRONTS["rows"][1], node("MatMul", "x W2", "g"), node("Add", "h g", "s"), node(op, "s c")]
    weights = {**FRONTS["rows"][2], **BACKS["rows"][1], "W2": random(5, C), "c": random(*shape)}
    back = BACKS["rows"][0]
    holds(build([*nodes, *back], weights, ("N", 4, 5)), C)


JOINED: dict[str, tuple[list[onnx.NodeProto], dict[str, Array]]] = {
    "batch norm": (
        [node("BatchNormalization", "j g be mu va", "n"), node("Relu", "n")],
        {"g": random(20), "be": random(20), "mu": random(20), "va": random(20) ** 2 + 1}),
    "instance norm": ([node("InstanceNormalization", "j g be")], {"g": random(20), "be": random(20)}),
    "slope": ([node("PRelu", "j c")], {"c": random(20, 1, 1)}),
    "shared slope": ([node("PRelu", "j c")], {"c": random(1)}),
    "scale and shift": (
        [node("Mul", "j c", "k"), node("Add", "k d")], {"c": random(1, 20, 1, 1), "d": random(20, 1, 1)}),
    "where": (
        [node("Greater", "j c", "up"), node("Where", "up j d")],
        {"c": random(20, 1, 1), "d": random(1, 20, 1, 1)}),
}  # fmt: skip


def joined(name: str, own: bool) -> onnx.ModelProto:
    """Two layers (and the model's `own` input) side by side, then constants for all of them."""
    nodes = [*FRONTS["conv"][1], node("Conv", "x W2", "o", pads=[1] * 4)]
    middle, weights = JOINED[name]
    join = node("Concat", "h x o" if own else "h o", "j", axis=1)
    width = C + 3 * own + 9 + 3 * (not own)
    weights = {**FRONTS["conv"][2], **weights, "W2": random(width - C - 3 * own, 3, 3, 3), "W1": random(K, 20, 3, 3)}
    back = [node("Conv", "m W1", "y")]
    return build([*nodes, join, *middle, *back], weights, ("N", 3, 6, 6))


@pytest.mark.parametrize("own", [False, True], ids=["layers", "layers and input"])
@pytest.mark.parametrize("name", JOINED)
def test_constants_ride_with_what_is_concatenated(name: str, own: bool) -> None:
    model = joined(name, own)
    _, dependencies = surveyed(model)
    assert [group.width for group in dependencies.groups if group.frozen is None] == [C, 9 + 3 * (not own)]
    holds(model)


def test_a_norm_behind_a_concatenation_is_shrunk_end_to_end() -> None:
    result = halved(joined("batch norm", own=True))
    assert [item.op_type for item in result.model.graph.node].count("BatchNormalization") == 1
    assert {tuple(t.dims) for t in result.model.graph.initializer if t.name in ("g", "be", "mu", "va")} == {
        (3 + 4 + 4,)
    }


def test_dead_and_equal_channels_go_without_a_trace() -> None:
    """Channels 1 and 4 are constant behind the norm, 3 and 6 what 0 and 5 are, all in scale and shift alike."""
    weight, bias = random(C, 3, 3, 3), random(C)
    gain, shift, slope = random(C) + 1, random(C), random(C, 1, 1)
    gain[[1, 4]] = shift[[1, 4]] = 0
    for value in (weight, bias, gain, shift, slope):
        value[[3, 6]] = value[[0, 5]]
    middle = [node("InstanceNormalization", "h g be", "n"), node("PRelu", "n c")]
    chain = Chain(middle, {"W0": weight, "b0": bias, "g": gain, "be": shift, "c": slope})
    result = nothing_lost(chain.build(), 0.5)
    sizes = {tensor.name: tuple(tensor.dims) for tensor in result.model.graph.initializer}
    assert (sizes["g"], sizes["be"], sizes["c"]) == ((4,), (4,), (4, 1, 1))
