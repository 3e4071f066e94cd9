"""Einsum as a layer and as a product: it is narrowed where it is a MatMul in disguise, and named where it is not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from builders.attention import RANK, Attention, D, E, H, S, einsum, einsum_to_heads, separate
from builders.chains import C, K, node, random
from builders.contract import holds, nothing_lost, surveyed
from builders.models import Array, build, relative, run
from builders.surgery import bias_of, permuted, sample, tensor, twins, weight_of
from pcns_onnx import UnsupportedError, design, expand, shrink
from pcns_onnx.cost.layer_latency import Sliced
from pcns_onnx.graph import Graph
from pcns_onnx.methods.registry import EXPANSIONS
from pcns_onnx.ops.einsum import EinsumOp
from pcns_onnx.ops.unsupported import MIXES
from pcns_onnx.rewrite.channels import narrow
from pcns_onnx.rewrite.layer_weights import set_layer
from pcns_onnx.rewrite.patch import apply
from pcns_onnx.runtime.engine import Engine

LENGTH = 4
HEADS = 3


def pair(
    first: str, second: str, shape: tuple[int, ...], weights: tuple[Array, Array], bias: tuple[int, ...] | None = (C,),
    *, weight_first: bool = False, opset: int = 17,
) -> onnx.ModelProto:  # fmt: skip
    """Two layers with a Relu between, both spelled as Einsum."""
    names = ("W0 x", "W1 r") if weight_first else ("x W0", "r W1")
    nodes = [node("Einsum", names[0], "h", name="first", equation=first)]
    stored = dict(zip(("W0", "W1"), weights, strict=True))
    if bias is not None:
        nodes.append(node("Add", "h b0", "hb"))
        stored["b0"] = random(*bias)
    nodes += [
        node("Relu", "h" if bias is None else "hb", "r"),
        node("Einsum", names[1], "y", name="second", equation=second),
    ]
    return build(nodes, stored, ("N", *shape), opset=opset)


LAYERS: dict[str, onnx.ModelProto] = {
    "rows": pair("bi,io->bo", "bi,io->bo", (5,), (random(5, C), random(C, K))),
    "transposed": pair("bi,oi->bo", "bi,oi->bo", (5,), (random(C, 5), random(K, C))),
    "sequence": pair("nlc,co->nlo", "nlc,co->nlo", (LENGTH, 5), (random(5, C), random(C, K))),
    "sequence without bias": pair("nlc,co->nlo", "nlc,oc->nlo", (LENGTH, 5), (random(5, C), random(K, C)), None),
    "long bias": pair("nlc,co->nlo", "nlc,co->nlo", (LENGTH, 5), (random(5, C), random(C, K)), (1, 1, C)),
    "spaces": pair(" n l c , c o -> n l o ", "n l c,c o->n l o", (LENGTH, 5), (random(5, C), random(C, K))),
    "implicit": pair("abc,cd", "abc,cd", (LENGTH, 5), (random(5, C), random(C, K))),
    "ellipsis": pair("...c,cd->...d", "...c,dc->...d", (LENGTH, 5), (random(5, C), random(K, C))),
    "implicit ellipsis": pair("...c,cd", "...c,cd", (LENGTH, 5), (random(5, C), random(C, K))),
    "ellipsis of nothing": pair("b...i,i...o->b...o", "b...i,...io->b...o", (5,), (random(5, C), random(C, K))),
    "weight first": pair("oc,nlc->nlo", "co,nlc->nlo", (LENGTH, 5), (random(C, 5), random(C, K)), weight_first=True),
    "capitals": pair("BTc,cD->BTD", "BTD,De->BTe", (LENGTH, 5), (random(5, C), random(C, K))),
    "opset 12": pair("nlc,co->nlo", "nlc,co->nlo", (LENGTH, 5), (random(5, C), random(C, K)), opset=12),
    "channels first": pair(
        "nchw,oc->nohw", "nchw,oc->nohw", (5, 3, 2), (random(C, 5), random(K, C)), (C, 1, 1)
    ),
    "channels first without bias": pair("ncl,oc->nol", "ncl,co->nlo", (5, 3), (random(C, 5), random(C, K)), None),
    "moved": pair("nlmc,co->nmlo", "nmlc,co->nlmo", (3, 2, 5), (random(5, C), random(C, K))),
    "time first": pair("nlc,co->lno", "lnc,co->nlo", (LENGTH, 5), (random(5, C), random(C, K))),
    "to heads and back": pair(
        "abc,cde->abde", "abcd,cde->abe", (LENGTH, 5), (random(5, HEADS, C), random(HEADS, C, K)), (HEADS, C)
    ),
    "to heads and back, no bias": pair(
        "nld,dhk->nlhk", "...hk,hkd->...d", (LENGTH, 5), (random(5, HEADS, C), random(HEADS, C, K)), None
    ),
    "to heads in front": pair(
        "nld,hdk->nhlk", "nhlk,khd->nld", (LENGTH, 5), (random(HEADS, 5, C), random(C, HEADS, K)), (HEADS, 1, C)
    ),
}  # fmt: skip
"""Each kind stands twice in its model, as writer and as reader."""
NAMES = pytest.mark.parametrize("name", LAYERS)


@NAMES
def test_the_contract_of_layers_holds(name: str) -> None:
    holds(LAYERS[name], C)


@NAMES
def test_a_layers_algebra_is_what_onnxruntime_computes(name: str) -> None:
    graph, dependencies = surveyed(LAYERS[name])
    x = sample(graph.proto)
    assert [layer.kind for layer in dependencies.layers] == ["Einsum", "Einsum"]
    for layer in dependencies.layers:
        op, weight = layer.linear.op, weight_of(graph, layer)
        source, output = tensor(graph, layer.source, x), tensor(graph, layer.output, x)
        rows = op.inputs(source, None) @ op.matrix(weight).T + bias_of(graph, layer)
        np.testing.assert_allclose(op.outputs(output, None), rows, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(op.weight(op.matrix(weight), weight), weight)
        positions = op.positions(source.shape)
        assert positions == op.positions_of(output.shape) and (op.mixed or len(rows) == len(x) * positions)
        if not op.mixed:
            assert np.prod(op.grid(source.shape)) == positions
            at = np.unique([0, positions // 2, positions - 1])
            some = rows.reshape(len(x), positions, -1)[:, at].reshape(-1, rows.shape[1])
            np.testing.assert_allclose(op.outputs(output, at), some, rtol=1e-4, atol=1e-5)
            assert len(op.inputs(source, at)) == len(some)
        ramp = np.arange(1, layer.width + 1) / 10  # no value is like another: their order counts
        matrix = op.matrix(weight.astype(np.float64))
        changed = apply(graph, set_layer(graph, layer, matrix * ramp[:, None], bias_of(graph, layer) + ramp))
        changed.check(full=True)
        new = op.outputs(tensor(changed, layer.output, x), None)
        np.testing.assert_allclose(
            new, op.inputs(source, None) @ (matrix * ramp[:, None]).T + bias_of(graph, layer) + ramp,
            rtol=1e-3, atol=1e-4,
        )  # fmt: skip


@pytest.mark.parametrize("method", sorted(EXPANSIONS))
@NAMES
def test_an_expanded_model_computes_the_same(name: str, method: str) -> None:
    model, x = LAYERS[name], sample(LAYERS[name])
    wide = expand(model, layer="first", by=1.5, method=method).model
    assert Graph.load(wide).parameters > Graph.load(model).parameters
    assert relative(run(model, x), run(wide, x)) < 1e-4


@NAMES
def test_a_narrow_program_to_be_timed_is_the_layer_on_fewer_channels(name: str) -> None:
    """Run with the first channels alone it computes what the layer does where the others are zero."""
    graph, dependencies = surveyed(LAYERS[name])
    x = sample(graph.proto)
    engine = Engine("cpu", 1)
    for layer in dependencies.layers:
        source, linear = tensor(graph, layer.source, x), layer.linear
        sliced = Sliced(engine, graph, layer, source.shape, (True, True))
        sizes = [weight_of(graph, layer).shape[axis] for axis in linear.weight_axes[::-1]]
        assert sliced.full == tuple(sizes)
        read, written = (-(-size // 2) for size in sizes)
        job = sliced.job(read, written)
        fed = np.zeros(source.shape, np.float32)
        np.moveaxis(fed, linear.op.axis, -1)[..., :read] = np.moveaxis(job.feeds[layer.source], linear.op.axis, -1)
        whole = engine.session(graph.extract([layer.source], [layer.key]).program()).run({layer.source: fed})
        narrow_ = engine.session(job.program).run(job.feeds)[layer.key]
        assert isinstance(linear.op, EinsumOp)
        axis = linear.op.y[-1]
        assert relative(np.take(whole[layer.key], np.arange(written), axis=axis), narrow_) < 1e-5


def doubled(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every other channel of the hidden layer becomes a copy of the one before it (in every head)."""
    _, dependencies = surveyed(model)
    layer = dependencies.layers[0]
    axis, bias_axis = layer.linear.weight_axes[0], layer.linear.bias_axes[-1]
    copies = np.arange(C) // 2 * 2
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    for tensor_ in twin.graph.initializer:
        at = {"W0": axis, "b0": bias_axis}.get(tensor_.name)
        if at is not None:
            value = np.take(numpy_helper.to_array(tensor_), copies, axis=at)
            tensor_.CopyFrom(numpy_helper.from_array(value, tensor_.name))
    return twin


@NAMES
def test_copies_go_without_a_trace(name: str) -> None:
    result = nothing_lost(doubled(LAYERS[name]), 0.5)
    assert result.plan.groups["first"].width == C // 2
    assert result.report.after.macs == result.report.before.macs // 2
    assert {item.op_type for item in result.model.graph.node} <= {"Einsum", "Add", "Relu"}
    before = {t.name: t.dims for t in LAYERS[name].graph.initializer}
    for tensor_ in result.model.graph.initializer:
        if tensor_.name in before:
            assert len(tensor_.dims) == len(before[tensor_.name])
    long = [1, *sample(LAYERS[name]).shape[1:]]
    assert np.isfinite(run(result.model, np.ones(long, np.float32))).all()


def test_other_batches_and_lengths_run() -> None:
    model = doubled(LAYERS["to heads and back"])
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[1].dim_param = "L"
    x = np.random.default_rng(0).standard_normal((60, LENGTH, 5)).astype(np.float32)
    small = shrink(model, x, width=0.5, multiple="1", refine=0).model
    for rows, length in ((1, 1), (3, 9)):
        other = np.random.default_rng(1).standard_normal((rows, length, 5)).astype(np.float32)
        assert relative(run(model, other), run(small, other)) < 1e-4


@pytest.mark.parametrize("name", ["sequence", "channels first", "weight first", "to heads in front"])
def test_refinement_takes_it(name: str) -> None:
    model = LAYERS[name]
    x = np.random.default_rng(0).standard_normal((300, *sample(model).shape[1:])).astype(np.float32)
    errors = [shrink(model, x, width=0.5, multiple="1", refine=r).report.agreement.error for r in (0, 100)]
    assert errors[1] <= errors[0]


@pytest.mark.parametrize("name", ["to heads and back", "to heads in front"])
def test_whole_heads_go_where_that_is_asked_for(name: str) -> None:
    """One of three heads is a copy of another."""
    model = onnx.ModelProto()
    model.CopyFrom(LAYERS[name])
    for tensor_ in model.graph.initializer:
        if tensor_.name in ("W0", "b0"):
            value = numpy_helper.to_array(tensor_).copy()
            axis = value.shape.index(HEADS)
            np.moveaxis(value, axis, 0)[2] = np.moveaxis(value, axis, 0)[0]
            tensor_.CopyFrom(numpy_helper.from_array(value, tensor_.name))
    x = np.random.default_rng(0).standard_normal((200, LENGTH, 5)).astype(np.float32)
    result = shrink(model, x, width=0.7, multiple="1", heads="whole", refine=0)
    assert result.plan.groups["first"].width == HEADS - 1
    assert relative(run(model, x), run(result.model, x)) < 1e-4
    onnx.checker.check_model(result.model, full_check=True)


# -- products --------------------------------------------------------------------------------


def attention_samples(seed: int = 0, count: int = 120) -> Array:
    return np.random.default_rng(seed).standard_normal((count, S, E)).astype(np.float32)


@pytest.mark.parametrize("key_first", [False, True])
@pytest.mark.parametrize("planted", [False, True])
def test_attention_narrows_as_it_does_with_matmul(planted: bool, key_first: bool) -> None:
    models = separate(planted), einsum(planted, key_first=key_first)
    x = attention_samples()
    results = [shrink(model, x, width=0.5, multiple=1, refine=0) for model in models]
    plans = [{name: group.width for name, group in result.plan.groups.items()} for result in results]
    assert plans[0] == plans[1] and set(plans[0].values()) == {D // 2}
    assert results[0].report.after.macs == results[1].report.after.macs
    other = attention_samples(1, 7)
    assert relative(run(models[0], other), run(models[1], other)) < 1e-5
    assert relative(run(results[0].model, other), run(results[1].model, other)) < 1e-4
    onnx.checker.check_model(results[1].model, full_check=True)


@pytest.mark.parametrize("bias", [False, True])
def test_attention_with_weights_of_three_axes(bias: bool) -> None:
    """A planted rank is the rank of what comes out, and a bias adds one dimension."""
    model, needed = einsum_to_heads(bias=bias), RANK + bias
    result = shrink(model, attention_samples(), width=needed / D, multiple=1, refine=0)
    onnx.checker.check_model(result.model, full_check=True)
    dims = {t.name: tuple(t.dims) for t in result.model.graph.initializer}
    assert {dims[f"{name}.w"] for name in "qkv"} == {(E, H, needed)} and dims["o.w"] == (H, needed, 5)
    assert not bias or {dims[f"{name}.b"] for name in "qkv"} == {(H, needed)}
    assert {group.width for group in result.plan.groups.values()} == {needed}
    x = attention_samples(1, 9)
    assert relative(run(model, x), run(result.model, x)) < 2e-3


def test_attention_with_weights_of_three_axes_is_that_with_reshapes() -> None:
    """The same numbers, the same plan and the same model, to rounding."""
    model = einsum_to_heads(False)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    twin = separate(False)
    for stored in twin.graph.initializer:
        if stored.name in ("q.w", "k.w", "v.w", "o.w"):
            value = weights[stored.name].reshape(stored.dims)
            stored.CopyFrom(numpy_helper.from_array(value, stored.name))
    x, other = attention_samples(), attention_samples(1, 9)
    results = [shrink(one, x, width=0.5, multiple=1, refine=0) for one in (twin, model)]
    assert relative(run(twin, other), run(model, other)) < 1e-5
    assert results[0].report.after.macs == results[1].report.after.macs
    assert relative(*(run(result.model, other) for result in results)) < 1e-4


@pytest.mark.parametrize("make", [einsum, einsum_to_heads])
def test_the_order_of_channels_inside_of_heads_does_not_matter(make: Callable[[bool], onnx.ModelProto]) -> None:
    graph, dependencies = surveyed(make(False))
    generator, order = np.random.default_rng(2), dict[int, int]()
    for labels in twins(dependencies):
        order |= zip(labels.tolist(), generator.permutation(labels).tolist(), strict=True)
    moved, x = permuted(graph, dependencies, order), attention_samples(count=5)
    assert moved.serialize() != graph.serialize()
    assert relative(run(graph.proto, x), run(moved.proto, x)) < 1e-5
    assert narrow(graph, dependencies, {group.name: group.labels for group in dependencies.groups}) == ()


def several_queries(positions: bool) -> onnx.ModelProto:
    """Heads of Q share one of K and V, of which RANK dimensions are used; Q has `positions`, or only the first."""
    s = Attention(False)
    q, k, v = s.project("x", "q"), s.project("x", "k", 1), s.project("x", "v", 1)
    for name in ("k.w", "v.w"):
        s.weights[name][:, RANK:] = 0
    q, i = s.split(q, "qh", [0, 2, 1, 3]), "i" if positions else ""
    if not positions:
        q = s.op("Gather", f"{q} {s.keep('first', np.asarray(0))}", "q1", axis=2)
    s.op("Einsum", f"{q} {k}", "scores", equation=f"bh{i}d,bjd->bh{i}j")
    s.op("Softmax", "scores", "weights", axis=-1)
    s.op("Einsum", f"weights {v}", "context", equation=f"bh{i}j,bjd->b{i}hd")
    s.keep("o.w", random(H, D, 5))
    s.op("Einsum", "context o.w", "y", name="o", equation=f"b{i}hd,hde->b{i}e")
    return s.model()


@pytest.mark.parametrize("positions", [True, False])
def test_heads_may_share_keys_and_values(positions: bool) -> None:
    model = several_queries(positions)
    result = shrink(model, attention_samples(), width=RANK / D, multiple=1, refine=0)
    onnx.checker.check_model(result.model, full_check=True)
    dims = {t.name: tuple(t.dims) for t in result.model.graph.initializer}
    assert (dims["q.w"], dims["k.w"], dims["v.w"]) == ((E, H * RANK), (E, RANK), (E, RANK))
    assert dims["o.w"] == (H, RANK, 5)
    x = attention_samples(1, 9)
    assert relative(run(model, x), run(result.model, x)) < 1e-4


def test_attention_with_weights_of_three_axes_loses_whole_heads() -> None:
    result = shrink(einsum_to_heads(False), attention_samples(), width=0.67, multiple=1, heads="whole", refine=0)
    dims = {t.name: tuple(t.dims) for t in result.model.graph.initializer}
    assert {dims[f"{name}.w"] for name in "qkv"} == {(E, H - 1, D)} and dims["o.w"] == (H - 1, D, 5)
    assert np.isfinite(run(result.model, attention_samples(1, 9))).all()


# -- what is neither --------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, Array | str, str]] = {
    "diagonal": ("nll,lo->no", random(LENGTH, 6), MIXES),
    "of each channel": ("nlc,c->nlc", random(C), MIXES),
    "to a single value": ("nlc,c->nl", random(C), MIXES),
    "a batch of weights": ("nlc,lco->nlo", random(LENGTH, C, 6), MIXES),
    "sum over positions": ("nlc,co->no", random(C, 6), MIXES),
    "sum of the weight": ("nlc,cok->nlo", random(C, 6, 2), MIXES),
    "outer product": ("nlc,od->nlcod", random(2, 3), MIXES),
    "weights of positions": ("nlc,lo->noc", random(LENGTH, 6), "reads channels along another axis"),
    "in front of an ellipsis": ("...c,co->o...", random(C, 6), MIXES),
    "two sums": ("nlc,mlc->nm", "h", MIXES),
    "three operands": ("nlc,co,op->nlp", "W V", MIXES),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_neither_is_named(name: str) -> None:
    equation, other, why = REFUSED[name]
    width = LENGTH if name == "diagonal" else C
    stored = {"W": random(C, 6), "V": random(6, 3)} if isinstance(other, str) else {"W": other}
    nodes = [
        node("MatMul", "x A", "a", name="a"),
        node("Relu", "a", "r"),
        node("MatMul", "r B", "h", name="h"),
        node("Einsum", f"h {other}" if isinstance(other, str) else "h W", "y", name="mix", equation=equation),
    ]
    model = build(nodes, {"A": random(5, C), "B": random(C, width), **stored}, ("N", LENGTH, 5))
    _, dependencies = surveyed(model)
    reason = f"Einsum 'mix' {why}"
    assert {group.name: group.frozen for group in dependencies.groups} == {"a": None, "h": reason}
    assert [(item.reason, item.macs > 0) for item in dependencies.unsolved] == [(reason, True)]


def test_design_says_that_it_takes_no_einsum() -> None:
    x = np.random.default_rng(0).standard_normal((60, LENGTH, 5)).astype(np.float32)
    with pytest.raises(UnsupportedError, match="Einsum 'first' is no layer of a chain"):
        design(LAYERS["sequence"], x)
