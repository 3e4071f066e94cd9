"""A weight that is stored once is narrowed once, solved once over all that read it, and stored once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.chains import node
from builders.contract import holds, surveyed
from builders.models import Array, relative, run
from builders.shared import C, Weights, autoencoder, blocks, pyramid, rates, recurrent, rows, siamese, weights_of
from pcns_onnx import NothingToShrinkError, shrink
from pcns_onnx.graph import Graph
from pcns_onnx.reconstruction.joint import solving_order
from pcns_onnx.runtime.engine import Engine


def by_identity(name: str) -> tuple[Sequence[onnx.NodeProto], str]:
    return [node("Identity", name, "again")], "again"


def twice_transposed(name: str) -> tuple[Sequence[onnx.NodeProto], str]:
    return [node("Transpose", name, "flip", perm=[1, 0]), node("Transpose", "flip", "again", perm=[1, 0])], "again"


EXACT: dict[str, Callable[[], onnx.ModelProto]] = {
    "a head on a pyramid": pyramid,
    "with a bias for every level": lambda: pyramid("own"),
    "without biases": lambda: pyramid("none"),
    "separable": lambda: pyramid(separable=True),
    "with a norm for every level": lambda: pyramid("none", norm=True),
    "separable, with a norm for every level": lambda: pyramid("none", separable=True, norm=True),
    "siamese towers": siamese,
    "one kernel at several rates": rates,
    "a cell used on its own output": recurrent,
    "rows without a bias": rows,
    "known by another name": lambda: rows(by_identity),
    "derived to the same": lambda: rows(twice_transposed),
}


def samples(model: onnx.ModelProto, count: int = 150) -> Array:
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    return np.random.default_rng(3).standard_normal((count, *shape)).astype(np.float32)


def shrunk(model: onnx.ModelProto, **choices: Any) -> onnx.ModelProto:
    own = choices if "method" in choices else {"refine": 0, **choices}
    small = shrink(model, samples(model), multiple=1, threads=1, **own).model
    onnx.checker.check_model(small, full_check=True)
    return small


def stored(model: onnx.ModelProto) -> int:
    return sum(weights_of(model))


@pytest.mark.parametrize("make", EXACT.values(), ids=EXACT.keys())
def test_copies_go_and_nothing_is_stored_twice(make: Callable[[], onnx.ModelProto]) -> None:
    model = make()
    x = samples(model, 9)
    for width in (0.5, 0.75):
        small = shrunk(model, width=width)
        assert relative(run(model, x), run(small, x)) < 1e-4
        assert stored(small) < stored(model)
        assert small.ByteSize() < model.ByteSize()
        assert len(list(weights_of(small))) <= len(list(weights_of(model))) + 2  # at most some new biases


@pytest.mark.parametrize("name", ["a head on a pyramid", "siamese towers", "rows without a bias", "separable"])
def test_the_contract_holds_for_all_uses_at_once(name: str) -> None:
    holds(EXACT[name]())


@pytest.mark.parametrize("make", [pyramid, siamese, recurrent, lambda: pyramid("own")])
@pytest.mark.parametrize("budget", ["params=0.55", "size=0.75", "macs=0.6"])
def test_budgets_count_what_is_stored_once_once(make: Callable[[], onnx.ModelProto], budget: str) -> None:
    model, (resource, limit) = make(), budget.split("=")
    x = samples(model)
    report = shrink(model, x, budget=budget, multiple=1, refine=0, threads=1).report
    counts = {"params": "parameters", "size": "bytes", "macs": "macs"}
    ratio = getattr(report.after, counts[resource]) / getattr(report.before, counts[resource])
    assert ratio <= float(limit) + 0.005
    assert ratio > 0.25  # copies cost nothing and all go, half of every width; what else there is stays
    assert report.agreement.error < 1e-3


@pytest.mark.parametrize("method", ["interpolative", "min-weight", "eigenremove"])
def test_no_method_takes_uses_apart(method: str) -> None:
    model = pyramid()
    small = shrunk(model, width=0.5, method=method)
    assert stored(small) < 0.4 * stored(model)
    assert len({name for item in small.graph.node if item.op_type == "Conv" for name in item.input[1:2]}) == 4


def test_pcns_leaves_shared_weights_alone() -> None:
    with pytest.raises(NothingToShrinkError) as caught:
        shrunk(pyramid(), width=0.5, method="pcns")
    assert any("weight that is stored for others" in reason for _, reason in caught.value.reasons)


def test_blocks_in_a_circle_are_solved_better_than_they_are_cut() -> None:
    model = blocks()
    x = samples(model, 50)
    solved, cut = (shrunk(model, width=0.75, **choices) for choices in ({}, {"method": "min-weight"}))
    assert stored(solved) < 0.7 * stored(model)
    assert relative(run(model, x), run(solved, x)) < 0.5 * relative(run(model, x), run(cut, x))


def test_a_weight_that_is_read_transposed_stays_and_the_rest_is_narrowed_around_it() -> None:
    model = autoencoder()
    result = shrink(model, samples(model), width=0.5, multiple=1, refine=0)
    reasons = {name: item.reason for item in result.report.left_alone for name in item.layers}
    assert "its weight 'w1' is stored once, and 'g', in another way, reads it too" in reasons["h"]
    assert [group.name for group in result.report.groups] == ["u"]
    x = samples(model, 9)
    assert relative(run(model, x), run(result.model, x)) < 1e-2
    assert stored(result.model) < stored(model)


def test_embeddings_that_also_make_the_logits_are_stored_once() -> None:
    w, tokens = Weights(), 40
    table, up, down = w.plain("E", tokens, C), w.twins("up", 2 * C, C), w.plain("down", C, 2 * C)
    nodes = [
        node("Gather", f"{table} x", "e"),
        node("Transpose", up, "up.T", perm=[1, 0]),
        node("MatMul", "e up.T", "h"),
        node("Relu", "h", "r"),
        node("Transpose", down, "down.T", perm=[1, 0]),
        node("MatMul", "r down.T", "f"),
        node("Add", "e f", "s"),
        node("Transpose", table, "E.T", perm=[1, 0]),
        node("MatMul", "s E.T", "y", name="logits"),
    ]
    graph = helper.make_graph(
        nodes,
        "tied",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["N", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5, tokens])],
        [numpy_helper.from_array(value, name) for name, value in w.made.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ids = np.random.default_rng(0).integers(0, tokens, (200, 5))
    for width, bound in ((0.5, 1e-4), (0.25, 0.5)):
        result = shrink(model, ids, width=width, multiple=1, refine=0)
        assert relative(run(model, ids[:9]), run(result.model, ids[:9])) < bound
        (kept,) = (tensor for tensor in result.model.graph.initializer if tensor.dims[0] == tokens)
        assert numpy_helper.to_array(kept).tobytes() == w.made[table].tobytes()
        assert stored(result.model) < stored(model)
        reasons = {name: item.reason for item in result.report.left_alone for name in item.layers}
        assert "its weight 'E' is stored once, and Gather 'e' reads it too" in reasons["logits"]


def test_half_precision_is_stored_once_too() -> None:
    model = siamese()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    x = samples(model).astype(np.float16)
    small = shrink(model, x, width=0.5, multiple=1, refine=0).model
    assert small.ByteSize() < model.ByteSize()
    assert len([tensor for tensor in small.graph.initializer if tensor.data_type == TensorProto.FLOAT16]) == 5


# -- the order -------------------------------------------------------------------------------


def test_a_unit_comes_after_all_that_its_uses_read() -> None:
    graph, dependencies = surveyed(pyramid())
    units = [dependencies.uses(layer) for layer in dependencies.layers if not layer.is_repeated]
    order, circular = solving_order(graph, units)
    assert not circular and sorted(order) == sorted(item.key for item in graph.nodes)
    place = {key: at for at, key in enumerate(order)}
    for unit in units:
        first = min(place[use.key] for use in unit)
        assert all(place.get(use.source, -1) < first for use in unit)
    x = samples(graph.proto, 3)
    moved = graph.copy()
    moved.reorder(order)
    moved.check(full=True)
    assert np.array_equal(run(graph.proto, x), run(moved.proto, x))


@pytest.mark.parametrize("make, cells", [(recurrent, {"h1"}), (blocks, {"a0"})])
def test_cells_that_read_what_they_make_are_known(make: Callable[[], onnx.ModelProto], cells: set[str]) -> None:
    graph, dependencies = surveyed(make())
    units = [dependencies.uses(layer) for layer in dependencies.layers if not layer.is_repeated]
    order, circular = solving_order(graph, units)
    assert cells <= circular and order == [item.key for item in graph.nodes]


def test_one_weight_and_a_bias_for_each_use_is_the_least_squares_solution() -> None:
    """What is solved is as good as any other weight: nothing that is near does better."""
    model = pyramid("own", levels=2)
    x, generator = samples(model, 200), np.random.default_rng(0)
    result = shrink(model, x, width=0.25, multiple=1, refine=0, holdout=0, include="a2_0")
    graph = Graph.load(result.model)
    engine = Engine()
    keys = [item.key for item in graph.nodes if item.op == "Conv" and item.inputs[1] == "h3"]
    assert len(keys) == 2

    def missed(candidate: Graph) -> float:
        expected = engine.session(Graph.load(model).extract(["x"], keys).program()).run({"x": x})
        actual = engine.session(candidate.extract(["x"], keys).program()).run({"x": x})
        return float(sum(np.sum((expected[key] - actual[key]) ** 2) for key in keys))

    best = missed(graph)
    weight = graph.constant("h3")
    assert weight is not None and best > 0
    for _ in range(6):
        near = graph.copy()
        moved = weight + 1e-2 * generator.standard_normal(weight.shape).astype(np.float32)
        for key in keys:
            near.set_input(key, 1, moved)
        assert missed(near) > best
