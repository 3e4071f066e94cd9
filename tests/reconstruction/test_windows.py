"""Windows: what is gathered for refinement is what onnxruntime computes, whatever the layers are."""

from __future__ import annotations

from collections.abc import Callable

import array_api_strict
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.chains import CHAINS, Chain, node
from builders.layer_pairs import MODELS, POOLED
from builders.models import Array, run
from builders.pieces import Hidden
from builders.surgery import sample, tensor
from builders.topologies import Sketch, residual, squeeze_excite
from pcns_onnx import shrink
from pcns_onnx.dependency.dependency_graph import build_dependency_graph
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.ops import LinearOp
from pcns_onnx.reconstruction.nonlinearity import Nonlinearity
from pcns_onnx.reconstruction.refine import Pair
from pcns_onnx.reconstruction.windows import Piece, Windows, route
from pcns_onnx.rewrite.explicit_bias import explicit_biases


def share_missed(hidden: Hidden, pieces: list[Piece]) -> float:
    """What the original's own two layers miss of the pieces' targets, as a share of these."""
    size = sum(float(np.sum(np.asarray(piece.y, dtype=np.float64) ** 2)) for piece in pieces)
    return Pair(Nonlinearity(hidden.sigma)).error(hidden.weights, pieces) / size


@pytest.mark.parametrize("places", [None, 5], ids=["all", "a few"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_original_weights_make_what_onnxruntime_makes(model: onnx.ModelProto, places: int | None) -> None:
    hidden = Hidden.of(model)
    pieces = hidden.windows(hidden.samples(8), places, batches=2)
    assert sum(len(piece.x) for piece in pieces) == 8
    assert share_missed(hidden, pieces) < 1e-10


@pytest.mark.parametrize("name", ["conv2d stride", "max pool padded", "matmul 3d"])
def test_other_arrays_give_the_same_pieces(name: str) -> None:
    hidden = Hidden.of(MODELS[name])
    x = hidden.samples(6)
    ours, theirs = hidden.windows(x, 4), hidden.windows(x, 4, array_api_strict)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine.x, to_numpy(other.x))
        np.testing.assert_array_equal(mine.y, to_numpy(other.y))
        np.testing.assert_array_equal(mine.taps, other.taps)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4))
def test_positions_are_neighbours_and_no_more_than_wanted(places: int, batches: int) -> None:
    hidden = Hidden.of(MODELS["conv2d"])
    pieces = hidden.windows(hidden.samples(8), places, batches=batches)
    drawn = {piece.taps.shape[0] for piece in pieces}
    side = int(places**0.5)
    assert drawn == {side * side}  # a box of the reader's 15 x 15 outputs
    # neighbours share what they read: a box of side s under a 3 x 2 kernel sees (s + 2)(s + 1) places
    assert {piece.x.shape[1] for piece in pieces} == {(side + 2) * (side + 1)}


def test_every_batch_has_a_box_of_its_own() -> None:
    hidden = Hidden.of(MODELS["conv2d"])
    x = np.repeat(hidden.samples(1), 4, axis=0)
    boxes = {piece.y.tobytes() for piece in hidden.windows(x, 9, batches=4)}
    assert len(boxes) > 1


def test_a_batch_of_another_size_is_left_out() -> None:
    hidden = Hidden.of(MODELS["conv2d"])
    windows = Windows(hidden.route, hidden.dependencies, np.arange(4), 2, (0,))
    windows.update(0, np.zeros((2, 3, 25, 25), np.float32), np.zeros((2, 4, 21, 23), np.float32), None)
    assert not windows.pieces


def test_targets_are_what_a_sum_still_lacks() -> None:
    """Of the outputs that stay; the shrunk model's other operand has no more than these."""
    hidden, draw = Hidden.of(MODELS["conv2d"]), np.random.default_rng(0)
    x, y, had = (draw.standard_normal(shape) for shape in ((2, 3, 19, 17), (2, 4, 15, 15), (2, 2, 15, 15)))
    windows = Windows(hidden.route, hidden.dependencies, np.array([3, 1]), 2, (0,))
    windows.update(0, x, y, had)
    lacking = (y[:, [3, 1]] - had).reshape(2, 2, -1)
    np.testing.assert_allclose(windows.pieces[0].y, np.moveaxis(lacking, 1, 2), rtol=1e-6)


def test_splitting_keeps_all_samples_in_order() -> None:
    hidden = Hidden.of(MODELS["max pool"])
    (piece,) = hidden.windows(hidden.samples(7))
    first, rest = piece.split(3)
    np.testing.assert_array_equal(np.concatenate([first.x, rest.x]), piece.x)
    np.testing.assert_array_equal(np.concatenate([first.y, rest.y]), piece.y)
    assert len(first.x) == len(first.y) == 3


# -- places ----------------------------------------------------------------------------------


def rows_of(op: LinearOp, kind: str, x: Array, reads: int) -> Array:
    """(N, places + 1, C): channels last, a row of zeros at the end."""
    spread = np.moveaxis(x, 1, -1) if kind.startswith("Conv") else x
    rows = spread.reshape(len(x), -1, reads)
    return np.concatenate([rows, np.zeros((len(x), 1, reads), x.dtype)], axis=1)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_places_say_what_inputs_gather(model: onnx.ModelProto) -> None:
    graph, _ = explicit_biases(Graph.load(model))
    x = sample(graph.proto)
    for layer in build_dependency_graph(graph).layers:
        op, source = layer.linear.op, tensor(graph, layer.source, x)
        count = op.positions(source.shape)
        assert count == int(np.prod(op.grid(source.shape)))
        for at in (None, np.arange(count)[::-2]):
            rows = rows_of(op, layer.kind, source, len(layer.linear.reads))
            expected = rows[:, op.places(source.shape, at)]
            found = op.inputs(source, at)
            np.testing.assert_array_equal(np.asarray(found).reshape(expected.shape), expected)


@pytest.mark.parametrize("name", POOLED)
def test_places_of_a_pool_are_those_that_it_takes_the_largest_of(name: str) -> None:
    hidden = Hidden.of(MODELS[name])
    graph, x = hidden.graph, hidden.samples(3)
    pool, window = next(iter(graph.nodes)), hidden.route.largest
    assert window is not None
    pool = next(item for item in graph.nodes if item.op == "MaxPool")
    before = tensor(graph, pool.inputs[0], x)
    after = run(graph.extract(["x"], [pool.key]).proto, x)
    rows = np.moveaxis(before, 1, -1).reshape(3, -1, before.shape[1])
    rows = np.concatenate([rows, np.full_like(rows[:, :1], -np.inf)], axis=1)
    largest = rows[:, window.places(before.shape, None)].max(axis=2)
    np.testing.assert_array_equal(np.moveaxis(largest, 2, 1).reshape(after.shape), after)


# -- routes ----------------------------------------------------------------------------------


def two_readers() -> onnx.ModelProto:
    s = Sketch()
    stem = s.relu(s.conv("x", "stem", (3, 8)))
    s.add(s.conv(stem, "a", (8, 4)), s.conv(stem, "b", (8, 4)), "y")
    return s.model()


MASKED = Chain([node("ReduceMax", "x", "s", axes=[1]), node("Relu", "h", "a"), node("Mul", "a s")])
NO_ROUTE: dict[str, Callable[[], onnx.ModelProto]] = {
    "two readers": two_readers,
    "a stream": residual,
    "a gate": lambda: squeeze_excite("conv"),
    "an average in between": lambda: CHAINS["average pool"].build(),
    "two maxima": lambda: Chain(
        [node("MaxPool", "h", "a", kernel_shape=[2, 2]), node("MaxPool", "a", kernel_shape=[2, 2])]
    ).build(),
    "a norm per channel": lambda: CHAINS["norm behind relu"].build(),
    "a layer that reads all positions at once": lambda: CHAINS["flatten"].build(),
    "a factor per position": lambda: CHAINS["Mul per position"].build(),
    "a mask that is computed": MASKED.build,
}


@pytest.mark.parametrize("name", NO_ROUTE)
def test_what_one_layer_does_not_read_alone_has_no_route(name: str) -> None:
    graph, _ = explicit_biases(Graph.load(NO_ROUTE[name]()))
    dependencies = build_dependency_graph(graph)
    assert route(graph, dependencies, dependencies.layers[0]) is None


@pytest.mark.parametrize("name", ["a factor per position", "a mask that is computed"])
def test_what_differs_between_positions_is_not_refined(name: str) -> None:
    model = NO_ROUTE[name]()
    x = np.random.default_rng(0).standard_normal((40, *sample(model).shape[1:])).astype(np.float32)
    assert not shrink(model, x, width=0.5, multiple="1", refine=2).report.groups[0].refined
