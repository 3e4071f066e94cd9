"""Norms and constants per channel: what treats every channel by itself passes, what mixes them says so."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from chains import BACKS, FRONTS, NORM, C, Chain, K, ints, node, random, scalar
from conftest import Array, build
from contract import halved, holds, nothing_lost, stood_in, surveyed

from pcns_onnx.ops.normalization import SEVERAL
from pcns_onnx.runtime.engine import Engine

SCALE = {"g": random(C) + 1, "be": random(C)}
NHWC = node("Transpose", "h", "t", perm=[0, 2, 3, 1])
NCHW = node("Transpose", "n", perm=[0, 3, 1, 2])


def layer_norm(source: str = "h", axes: list[int] | None = None) -> list[onnx.NodeProto]:
    """As PyTorch's first exporter writes it below opset 17."""
    axes = axes or [-1]
    return [
        node("ReduceMean", source, "mean", axes=axes),
        node("Sub", f"{source} mean", "d"),
        node("Pow", "d two", "sq"),
        node("ReduceMean", "sq", "var", axes=axes),
        node("Add", "var eps", "ve"),
        node("Sqrt", "ve", "std"),
        node("Div", "d std", "q"),
    ]


PIECES = {"two": scalar(2), "eps": scalar(1e-5)}

PASSED: dict[str, Chain] = {
    "instance norm": Chain([node("InstanceNormalization", "h g be")], SCALE),
    "instance norm 1d": Chain([node("InstanceNormalization", "h g be", epsilon=1e-3)], SCALE, "conv1d", "conv1d"),
    "instance norm and relu": Chain([node("InstanceNormalization", "h g be", "a"), node("Relu", "a")], SCALE),
    "mean variance norm": Chain([node("MeanVarianceNormalization", "h", axes=[0, 2, 3])]),
    "mean variance norm of images": Chain([node("MeanVarianceNormalization", "h", axes=[2, 3])]),
    "mean variance norm negative axes": Chain([node("MeanVarianceNormalization", "h", axes=[-1, -2])]),
    "lp norm of positions": Chain([node("LpNormalization", "h", axis=3, p=2)]),
    "lp norm of rows": Chain([node("LpNormalization", "h", axis=-2, p=1)], {}, "rows", "rows"),
    "layer norm of positions": Chain([node("LayerNormalization", "h w")], {"w": random(6)}),
    "layer norm of all positions": Chain(
        [node("LayerNormalization", "h w v", axis=2)], {"w": random(6, 6), "v": random(6, 6)}
    ),
    "layer norm of columns": Chain(
        [node("Transpose", "h", "t", perm=[0, 2, 1]), node("LayerNormalization", "t w", "n"),
         node("Transpose", "n", perm=[0, 2, 1])], {"w": random(4)}, "rows", "rows"
    ),
    "layer norm in pieces, of positions": Chain([*layer_norm(axes=[2, 3]), node("Mul", "q g3")],
                                                {**PIECES, "g3": random(C, 1, 1)}),
    "rms norm of positions": Chain([node("RMSNormalization", "h w")], {"w": random(6)}, opset=23),
    "lrn of rows": Chain(
        [NHWC, node("LRN", "t", "n", size=3), NCHW]
    ),
    "batch norm in the way": Chain([node("Relu", "h", "a"), node("BatchNormalization", "a g be mu va")], NORM),
    "cumulative sum": Chain([node("CumSum", "h axis")], {"axis": np.array(2)}),
    "cumulative sum of rows": Chain([node("CumSum", "h axis", reverse=1)], {"axis": ints(-2)[0]}, "rows", "rows"),
    "triangle": Chain([node("Trilu", "h k", upper=0)], {"k": np.array(1)}),
}  # fmt: skip
"""What treats every channel by itself."""


def group_norm(groups: int, *rest: int) -> Chain:
    """As both of PyTorch's exporters write it below opset 18: a Reshape to groups and the `rest` in front of a norm."""
    return Chain(
        [
            node("Reshape", "h there", "r"),
            node("InstanceNormalization", "r one zero", "n"),
            node("Reshape", "n back", "b"),
            node("Mul", "b g3", "s"),
            node("Add", "s be3"),
        ],
        {
            "there": ints(0, groups, *(rest or (-1,))), "back": ints(-1, C, 6, 6), "one": np.ones(groups, np.float32),
            "zero": np.zeros(groups, np.float32), "g3": random(C, 1, 1), "be3": random(C, 1, 1),
        },
    )  # fmt: skip


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


MIXED: dict[str, tuple[Chain, str]] = {
    "layer norm": (
        Chain([node("LayerNormalization", "h g be")], SCALE, "rows", "rows"), f"LayerNormalization 'm' {SEVERAL}"),
    "layer norm of images": (
        Chain([node("LayerNormalization", "h w", axis=1)], {"w": random(C, 6, 6)}),
        f"LayerNormalization 'm' {SEVERAL}"),
    "rms norm": (
        Chain([node("RMSNormalization", "h g")], SCALE, "rows", "rows", opset=23), f"RMSNormalization 'm' {SEVERAL}"),
    "lrn": (Chain([node("LRN", "h", size=3)]), f"LRN 'm' {SEVERAL}"),
    "lp norm": (Chain([node("LpNormalization", "h", axis=1)]), f"LpNormalization 'm' {SEVERAL}"),
    "mean variance norm": (
        Chain([node("MeanVarianceNormalization", "h", axes=[1, 2, 3])]), f"MeanVarianceNormalization 'm' {SEVERAL}"),
    "group norm of one": (group_norm(1), f"InstanceNormalization 'n' {SEVERAL}"),
    "group norm of one, whole": (
        Chain([node("GroupNormalization", "h g be", num_groups=1)], SCALE, opset=21),
        f"GroupNormalization 'm' {SEVERAL}"),
    "layer norm in pieces": (
        Chain([*layer_norm(), node("Mul", "q g", "s"), node("Add", "s be")], {**PIECES, **SCALE}, "rows", "rows"),
        f"ReduceMean 'mean' {SEVERAL}"),
    "layer norm in pieces, of images": (
        Chain([*layer_norm(axes=[1]), node("Mul", "q g3")], {**PIECES, "g3": random(C, 1, 1)}),
        f"ReduceMean 'mean' {SEVERAL}"),
    "rms norm in pieces": (
        Chain([node("Pow", "h two", "sq"), node("ReduceMean", "sq", "ms", axes=[-1]), node("Add", "ms eps", "me"),
               node("Sqrt", "me", "rms"), node("Reciprocal", "rms", "inv"), node("Mul", "h inv")],
              PIECES, "rows", "rows"),
        f"ReduceMean 'ms' {SEVERAL}"),
    "rms norm in other pieces": (
        Chain([node("Mul", "h h", "sq"), node("ReduceMean", "sq", "ms", axes=[1]), node("Add", "ms eps", "me"),
               node("Sqrt", "me", "rms"), node("Div", "one rms", "inv"), node("Mul", "h inv")],
              {**PIECES, "one": scalar(1)}),
        f"ReduceMean 'ms' {SEVERAL}"),
    "l2 norm in pieces": (
        Chain([node("ReduceL2", "h", "l", axes=[1]), node("Clip", "l eps", "c"), node("Shape", "h", "s"),
               node("Expand", "c s", "e"), node("Div", "h e")], PIECES),
        f"ReduceL2 'l' {SEVERAL}"),
    "mean of channels": (
        Chain([node("ReduceMean", "h", "a", axes=[1]), node("Sigmoid", "a", "b"), node("Conv", "b W2", "c"),
               node("Add", "h c")], {"W2": random(1, 1, 1, 1)}),
        "ReduceMean 'a' mixes channels: it reduces over their axis"),
    "computed scale": (
        Chain([node("Relu", "g", "g2"), node("InstanceNormalization", "h g2 be")], SCALE),
        "InstanceNormalization 'm' scales its channels by computed values"),
    "sum over channels": (
        Chain([node("CumSum", "h axis")], {"axis": np.array(1)}), "CumSum 'm' adds up channels"),
    "triangle of channels": (
        Chain([node("Trilu", "h")], {}, "rows", "rows"), "Trilu 'm' keeps other positions of every channel"),
}  # fmt: skip
"""What mixes channels, and what is said of it."""


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
    assert {item.name: item.reason for item in result.report.left_alone}["h"] == f"ReduceMean 'mean' {SEVERAL}"


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
