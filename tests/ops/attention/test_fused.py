"""Attention in one operator: what goes through it, what stays and why, and the numbers that count heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders import fused_attention as fused
from builders.attention import RANK, D, E, H, S, low_rank
from builders.chains import ints
from builders.contract import surveyed
from builders.fused_attention import FORMS, Fused, cached, samples
from builders.models import Array, relative, run
from pcns_onnx import ShrinkResult, inspect, shrink
from pcns_onnx.graph import Graph, Program
from pcns_onnx.runtime.engine import Engine

TURNED = [name for name in FORMS if "Rotary" in name]


def outputs(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    return [np.asarray(y) for y in Engine().session(Program(model.SerializeToString())).run(feeds).values()]


def shrunk(model: onnx.ModelProto, data: Any = None, **choices: Any) -> ShrinkResult:
    """The result, whose model loads and checks."""
    result = shrink(model, samples(120) if data is None else data, multiple=1, refine=0, **choices)
    Graph.load(result.model).check(full=True)
    return result


def attributes(model: onnx.ModelProto, op: str) -> dict[str, Any]:
    node = next(node for node in model.graph.node if node.op_type == op)
    return {attr.name: helper.get_attribute_value(attr) for attr in node.attribute}


def sizes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in model.graph.initializer}


def reasons(result: ShrinkResult) -> dict[str, str]:
    return {name: item.reason for item in result.report.left_alone for name in item.layers}


def changed(model: onnx.ModelProto, name: str, change: Callable[[Array], Array]) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            value = change(numpy_helper.to_array(tensor).copy()).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, name))


@pytest.mark.parametrize("name", [name for name in FORMS if name not in TURNED])
def test_dimensions_that_no_head_uses_go_without_a_trace(name: str) -> None:
    model, x = FORMS[name](), samples(9)
    small = shrunk(model, width=RANK / D).model
    assert relative(run(model, x), run(small, x)) < 1e-4
    widths = {key: shape[1] for key, shape in sizes(model).items() if key in ("q.w", "k.w", "v.w")}
    assert {key: sizes(small)[key][1] for key in widths} == {key: width * RANK // D for key, width in widths.items()}


@pytest.mark.parametrize("name", FORMS)
def test_the_scale_is_that_of_the_width_that_was(name: str) -> None:
    small = shrunk(FORMS[name](), width=RANK / D).model
    op = "Attention" if "23" in name else "MultiHeadAttention"
    assert attributes(small, op)["scale"] == pytest.approx(D**-0.5)


@pytest.mark.parametrize("name", TURNED)
def test_pairs_of_dimensions_go_where_angles_are_stored(name: str) -> None:
    """Every second pair of Q and K is dead, and half of V."""
    model, x = FORMS[name](), samples(9)
    pairs = np.array([0, 0, 1, 1]) if "interleaved" in name else np.array([0, 1, 0, 1])
    for layer in "qk":
        changed(model, f"{layer}.w", lambda w: w * (np.tile(pairs, w.shape[1] // D) == 0))
    small = shrunk(model, width=RANK / D).model
    assert relative(run(model, x), run(small, x)) < 1e-4
    assert sizes(small)["cos"] == (S, D // 4) and sizes(small)["q.w"][1] == H * RANK


@pytest.mark.parametrize(
    ("make", "q", "kv", "op"),
    [
        (lambda: fused.standard(4, False, 4), 4, 4, "Attention"),
        (lambda: fused.standard(2, False, 4), 4, 2, "Attention"),
        (lambda: fused.standard_4d(2, False, 4), 4, 2, ""),
        (lambda: fused.grouped_query(2, False), 4, 2, "GroupQueryAttention"),
    ],
    ids=["as many", "shared", "four axes", "GroupQueryAttention"],
)
def test_whole_heads_go_with_those_that_they_serve(
    make: Callable[[], onnx.ModelProto], q: int, kv: int, op: str
) -> None:
    """The second half of the heads are copies of the first, group by group."""
    model, x = make(), samples(9)
    for layer in "qkv":
        changed(model, f"{layer}.w", lambda w: np.concatenate([w[:, : w.shape[1] // 2]] * 2, axis=1))
    small = shrunk(model, width=0.5, heads="whole").model
    assert relative(run(model, x), run(small, x)) < 1e-4
    before, after = sizes(model), sizes(small)
    assert all(after[f"{layer}.w"][1] == before[f"{layer}.w"][1] // 2 for layer in "qkv")
    if op:
        counts = attributes(small, op)
        assert (counts.get("q_num_heads", counts.get("num_heads")), counts["kv_num_heads"]) == (q // 2, kv // 2)


def test_a_mask_for_every_head_follows_whole_heads() -> None:
    s = Fused(False)
    s.opset = 23
    for name in "qkv":
        s.project("x", name, 4)
    mask = np.random.default_rng(1).standard_normal((1, 4, S, S)).astype(np.float32)
    s.keep("mask", mask)
    s.op("Attention", "q k v mask", "joined", q_num_heads=4, kv_num_heads=4)
    model, x = s.done("joined", 4 * D), samples(9)
    changed(model, "o.w", lambda w: w * np.repeat([0, 1, 0, 1], D)[:, None])
    small = shrunk(model, width=0.5, heads="whole").model
    assert relative(run(model, x), run(small, x)) < 1e-4
    kept = next(numpy_helper.to_array(t) for t in small.graph.initializer if t.name == "mask")
    assert np.array_equal(kept, mask[:, [1, 3]])


def test_heads_whose_scores_are_read_stay_whole() -> None:
    """Dimensions of heads go all the same."""
    s = Fused()
    s.opset = 23
    for name in "qkv":
        s.project("x", name)
    s.op("Attention", "q k v", "joined first second scores", q_num_heads=H, kv_num_heads=H)
    s.op("ReduceMean", "scores", "mean", keepdims=0)
    s.op("Mul", "joined mean", "scaled")
    model, x = s.done("scaled"), samples(9)
    assert relative(run(model, x), run(shrunk(model, width=RANK / D).model, x)) < 1e-4
    rows = {row.name: row.reason for row in inspect(model, samples(9), heads="whole").layers}
    assert all(rows[name] is not None for name in "qkv")


@pytest.mark.parametrize("packed", [False, True])
def test_group_query_attention_keeps_the_width_of_its_heads(packed: bool) -> None:
    """Of two groups that are alike one goes, also where Q, K and V lie in one tensor."""
    model, x = fused.grouped_query(2, packed=packed), samples(9)
    if packed:  # four heads of Q, two of K, two of V, of eight dimensions each
        changed(model, "qkv.w", lambda w: w[:, np.r_[:16, :16, 32:40, 32:40, 48:56, 48:56]])
    else:
        for layer in "qkv":
            changed(model, f"{layer}.w", lambda w: np.concatenate([w[:, : w.shape[1] // 2]] * 2, axis=1))
    small = shrunk(model, width=0.5).model
    assert relative(run(model, x), run(small, x)) < 1e-4
    assert attributes(small, "GroupQueryAttention") == {"num_heads": 2, "kv_num_heads": 1}


def test_of_one_head_of_k_and_v_that_all_share_heads_of_q_go() -> None:
    model, x = fused.grouped_query(1), samples(9)
    changed(model, "q.w", lambda w: np.concatenate([w[:, :8]] * 2, axis=1))
    # two heads of Q are too few to take half of: of four that are copies in pairs, two go
    s = Fused(False)
    for name, heads in (("q", 4), ("k", 1), ("v", 1)):
        s.keep(f"{name}.w", (s.rng.standard_normal((E, heads * 8)) / E**0.5).astype(np.float32))
        s.op("MatMul", f"x {name}.w", name, name=name)
    s.op("Shape", "x", "rows", end=1)
    s.op("Expand", f"{s.keep('last', np.array([S - 1], np.int32))} rows", "lengths")
    s.keep("total", np.array(S, np.int32))
    s.contrib("GroupQueryAttention", "q k v - - lengths total", "joined", num_heads=4, kv_num_heads=1)
    model = s.done("joined", 32)
    changed(model, "q.w", lambda w: np.concatenate([w[:, :16]] * 2, axis=1))
    result = shrunk(model, width=0.5)
    assert relative(run(model, x), run(result.model, x)) < 1e-4
    assert attributes(result.model, "GroupQueryAttention")["num_heads"] == 2
    assert "one head of K and V for all of Q" in reasons(result)["k"]


def steps(count: int, kv: int, past: bool) -> dict[str, Array]:
    rng = np.random.default_rng(count)
    caches = {f"past_{name}": rng.standard_normal((count, kv, 3, D)).astype(np.float32) for name in "kv"}
    return {"x": samples(count), **(caches if past else {})}


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("op", ["Attention", "MultiHeadAttention"])
def test_a_cache_keeps_the_widths_of_k_and_v(op: str, past: bool) -> None:
    model, feeds = cached(op, 2, 2, past), steps(9, 2, past)
    result = shrunk(model, steps(120, 2, past), width=0.5)
    assert max(relative(a, b) for a, b in zip(outputs(model, feeds), outputs(result.model, feeds), strict=True)) < 1e-4
    assert set(result.plan.groups) == {"up"}
    first = "past_k" if past else "present_k"
    assert f"the cache '{first}'" in reasons(result)["q"] and "contract" in reasons(result)["k"]
    assert f"the cache '{first.replace('_k', '_v')}'" in reasons(result)["v"]


@pytest.mark.parametrize("past", [False, True])
def test_behind_a_cache_heads_of_q_go_one_in_every_group(past: bool) -> None:
    model, feeds = cached("Attention", 2, 4, past), steps(9, 2, past)
    changed(model, "q.w", lambda w: w[:, np.repeat([0, 2], 2).repeat(D) * D + np.tile(np.arange(D), 4)])
    result = shrunk(model, steps(120, 2, past), width=0.5)
    assert max(relative(a, b) for a, b in zip(outputs(model, feeds), outputs(result.model, feeds), strict=True)) < 1e-4
    assert attributes(result.model, "Attention")["q_num_heads"] == 2
    assert attributes(result.model, "Attention")["kv_num_heads"] == 2
    assert set(reasons(result)) == {"k", "v", "o"}


def test_products_are_counted_with_what_the_cache_holds() -> None:
    model = cached("Attention", 2, 4, True)
    rows = {row.kind: row for row in inspect(model, steps(9, 2, True)).layers}
    assert rows["Attention"].macs == 4 * S * (S + 3) * 2 * D


def test_lengths_may_be_numbers_that_samples_do_not_have() -> None:
    """`total_sequence_length` of GroupQueryAttention is a scalar: given with the samples, or as a constant."""
    s, width = Fused(False), 8
    for name, heads in (("q", 4), ("k", 2), ("v", 2)):
        s.keep(f"{name}.w", (s.rng.standard_normal((E, heads * width)) / E**0.5).astype(np.float32))
        s.op("MatMul", f"x {name}.w", name, name=name)
    for name in "kv":
        s.feed(f"past_{name}", "N", 2, "P", width)
        s.expose(f"present_{name}", "N", 2, None, width)
    s.feed("lengths", "N", kind=TensorProto.INT32)
    s.feed("total", kind=TensorProto.INT32)
    s.contrib("GroupQueryAttention", "q k v past_k past_v lengths total", "joined present_k present_v", num_heads=4,
              kv_num_heads=2)  # fmt: skip
    model = s.done("joined", 32)
    changed(model, "q.w", lambda w: w.reshape(E, 2, 2, width)[:, :, [0, 0]].reshape(E, -1))

    def feeds(count: int) -> dict[str, Array]:
        empty = {f"past_{name}": np.zeros((count, 2, 0, width), np.float32) for name in "kv"}
        return {"x": samples(count), **empty, "lengths": np.full(count, S - 1, np.int32)}

    total = {"total": np.array(S, np.int32)}
    for data, constants in ((feeds(120) | total, {}), (feeds(120), {"total": str(S)})):
        result = shrunk(model, data, width=0.5, constant=constants)
        assert attributes(result.model, "GroupQueryAttention")["num_heads"] == 2
        pairs = zip(outputs(model, feeds(5) | total), outputs(result.model, feeds(5) | total), strict=True)
        assert max(relative(a, b) for a, b in pairs) < 1e-4


@pytest.mark.parametrize(
    ("op", "groups"),
    [("packed", {"qkv": (D, 3 * H)}), ("keys and values", {"q": (D, 3 * H - H)})],
)
def test_packed_tensors_lose_the_same_dimensions_of_all(op: str, groups: dict[str, tuple[int, int]]) -> None:
    """Which onnxruntime runs on GPUs only."""
    s = Fused(False)
    if op == "packed":
        s.project("x", "qkv", 3 * H)
        s.op("Reshape", f"qkv {s.keep('shape', ints(0, 0, H, 3, D))}", "all")
        s.contrib("MultiHeadAttention", "all", "joined", num_heads=H)
    else:
        s.project("x", "q")
        s.project("x", "kv", 2 * H)
        s.op("Reshape", f"kv {s.keep('shape', ints(0, 0, H, 2, D))}", "both")
        s.contrib("MultiHeadAttention", "q both", "joined", num_heads=H)
    _, dependencies = surveyed(s.done("joined"))
    assert {g.name: (g.width, g.unit) for g in dependencies.groups if g.frozen is None} == groups
    assert [(u.name, u.macs) for u in dependencies.unsolved] == [("joined", H * S * S * 2 * D)]


def test_heads_behind_a_norm_are_taken_whole() -> None:
    """Q and K that are normalised head by head keep their widths; without being asked, whole heads go."""
    s = Fused(False)
    s.opset = 23
    for name, heads in (("q", 4), ("k", 2), ("v", 2)):
        s.project("x", name, heads)
    for name, heads in (("q", 4), ("k", 2)):
        s.op("Reshape", f"{name} {s.keep(f'{name}.shape', ints(0, 0, heads, D))}", f"{name}.split")
        s.op("RMSNormalization", f"{name}.split {s.keep(f'{name}.g', np.ones(D, np.float32))}", f"{name}.n", axis=-1)
        s.op("Reshape", f"{name}.n {s.keep(f'{name}.back', ints(0, 0, heads * D))}", f"{name}.m")
    s.op("Attention", "q.m k.m v", "joined", q_num_heads=4, kv_num_heads=2)
    model, x = s.done("joined", 4 * D), samples(9)
    for layer in "qkv":
        changed(model, f"{layer}.w", lambda w: np.concatenate([w[:, : w.shape[1] // 2]] * 2, axis=1))
    small = shrunk(model, width=0.5).model
    assert relative(run(model, x), run(small, x)) < 1e-4
    assert attributes(small, "Attention")["q_num_heads"] == 2


def test_rotary_angles_that_are_computed_leave_whole_heads() -> None:
    s = Fused(False)
    s.opset = 23
    s.angles()
    for name in "qkv":
        s.project("x", name, 4)
    s.op("Cos", "x", "any")
    for name in "qk":
        for table in ("cos", "sin"):  # what is computed from the input's shape is no constant
            s.op("Shape", "x", f"{name}.{table}.rows", end=1)
            s.op("Expand", f"{table} {s.keep(f'{name}.{table}.one', ints(1, S, D // 2))}", f"{name}.{table}.wide")
            s.op("Concat", f"{name}.{table}.rows {s.keep(f'{name}.{table}.tail', ints(S, D // 2))}",
                 f"{name}.{table}.to", axis=0)  # fmt: skip
            s.op("Expand", f"{name}.{table}.wide {name}.{table}.to", f"{name}.{table}")
        s.op("RotaryEmbedding", f"{name} {name}.cos {name}.sin", f"{name}r", num_heads=4)
    s.op("Attention", "qr kr v", "joined", q_num_heads=4, kv_num_heads=4)
    model, x = s.done("joined", 4 * D), samples(9)
    for layer in "qkv":
        changed(model, f"{layer}.w", lambda w: np.concatenate([w[:, : w.shape[1] // 2]] * 2, axis=1))
    small = shrunk(model, width=0.5).model
    assert relative(run(model, x), run(small, x)) < 1e-4
    assert attributes(small, "RotaryEmbedding")["num_heads"] == 2


def test_what_is_quantised_is_named_so() -> None:
    """A model whose every layer is packed into four bits."""
    s = Fused()
    s.keep("B", np.zeros((16, 1, 8), np.uint8))
    s.keep("scales", np.ones(16, np.float32))
    s.contrib("MatMulNBits", "x B scales", "h", K=E, N=16, bits=4, block_size=16)
    model = s.done("h", 16)
    rows = {row.kind: row for row in inspect(model, samples(9)).layers}
    assert "is part of a quantised model" in (rows["MatMulNBits"].reason or "")
    assert rows["MatMulNBits"].macs == S * E * 16


def test_a_bias_inside_comes_out_of_the_solve_as_one() -> None:
    """Q, K and V have one bias in MultiHeadAttention; no Add stands in front of it afterwards."""
    model, x = fused.multi_head(), samples(9)
    small = shrunk(model, width=RANK / D).model
    assert relative(run(model, x), run(small, x)) < 1e-4
    assert [node.op_type for node in small.graph.node][:4] == ["MatMul"] * 3 + ["MultiHeadAttention"]
    assert sizes(small)["b"] == (3 * H * RANK,)


@pytest.mark.parametrize("mask", ["", "lengths", "ones and zeros", "causal", "bias"])
def test_projections_inside_are_layers_like_any_other(mask: str) -> None:
    model, x = packed(mask), samples(9)
    small = shrunk(model, width=RANK / D).model
    assert relative(run(model, x), run(small, x)) < 1e-4
    assert sizes(small)["qkv"] == (E, 3 * H * RANK)
    assert attributes(small, "Attention")["num_heads"] == H
    whole = shrunk(model, width=0.67, heads="whole").model
    assert attributes(whole, "Attention")["num_heads"] == 2
    assert [node.op_type for node in whole.graph.node].count("Attention") == 1


def packed(mask: str) -> onnx.ModelProto:
    s, inputs, choices = Fused(), "x qkv b", {}
    s.keep("qkv", np.concatenate([low_rank(s.rng, E, H) for _ in range(3)], axis=1))
    s.keep("b", np.zeros(3 * H * D, np.float32))
    if mask == "lengths":
        s.op("Expand", f"{s.keep('length', np.array([4], np.int32))} {s.op('Shape', 'x', 'rows', end=1)}", "mask")
        inputs += " mask"
    if mask == "ones and zeros":
        s.op("Shape", "x", "rows", end=2)
        s.op("Expand", f"{s.keep('row', np.array([[1, 1, 1, 1, 0, 0]], np.int32))} rows", "mask")
        inputs += " mask"
    if mask == "causal":
        choices["unidirectional"] = 1
    if mask == "bias":
        inputs += f" - - {s.keep('biases', s.rng.standard_normal((1, H, S, S)).astype(np.float32))}"
    s.contrib("Attention", inputs, "joined", num_heads=H, **choices)
    return s.done("joined")


def test_widths_that_differ_are_written_down() -> None:
    """V loses more than Q and K where it can: two dimensions of three heads, none of Q's and K's."""
    s = Fused()
    s.keep("qkv", np.concatenate([s.rng.standard_normal((E, 2 * H * D)) / 2, low_rank(s.rng, E, H)], axis=1))
    s.contrib("Attention", "x qkv", "joined", num_heads=H)
    model, x = s.done("joined"), samples(9)
    for tensor in model.graph.initializer:
        if tensor.name == "qkv":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), "qkv"))
    small = shrunk(model, width=0.75).model
    assert attributes(small, "Attention")["qkv_hidden_sizes"] == [H * D, H * D, H * RANK]
    assert relative(run(model, x), run(small, x)) < 1e-4


def test_weights_inside_beside_a_cache_stay_and_are_counted() -> None:
    s = Fused()
    s.keep("qkv", (s.rng.standard_normal((E, 3 * H * D)) / 4).astype(np.float32))
    s.vector("b", 3 * H * D)
    s.feed("past", 2, "N", H, "P", D)
    s.expose("present", 2, "N", H, None, D)
    s.contrib("Attention", "x qkv b - past", "joined present", num_heads=H, unidirectional=1)
    model = s.done("joined")
    feeds = {"x": samples(9), "past": np.zeros((2, 9, H, 3, D), np.float32)}
    rows = {row.kind: row for row in inspect(model, feeds).layers}
    assert "has the cache 'past'" in (rows["Attention"].reason or "")
    assert rows["Attention"].macs == S * E * 3 * H * D + S * (S + 3) * 2 * H * D
