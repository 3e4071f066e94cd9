"""The contract of every operator's rule, checked in onnxruntime on a small chain around it.

Full width is a no-op, zeroed channels slice exactly, permuting channels is a no-op, and a
layer's own algebra (`LinearOp`) is what onnxruntime computes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from chains import BATCH, LAYERS, C
from chains import MODELS as CHAINS
from conftest import Array, relative, run
from numpy.typing import NDArray
from topologies import TOPOLOGIES

from pcns_onnx import shrink
from pcns_onnx.fold import explicit_biases
from pcns_onnx.graph import Graph
from pcns_onnx.groups import Census, Layer, survey
from pcns_onnx.ops.movement import reshape_labels
from pcns_onnx.plan import Costs
from pcns_onnx.rewrite import apply, narrow, set_layer


MODELS = {**CHAINS, **{name: make() for name, make in TOPOLOGIES.items()}}


def surveyed(name: str) -> tuple[Graph, Census]:
    graph, _ = explicit_biases(Graph.load(MODELS[name]))
    return graph, survey(graph)


def sample(model: onnx.ModelProto) -> Array:
    shape = [d.dim_value or BATCH for d in model.graph.input[0].type.tensor_type.shape.dim]
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def removed_labels(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Some of the classes, more than a third where there are many."""
    return labels[[at for at in (1, 2, 5) if at < len(labels) - 1] if len(labels) > 2 else [1]]


def twins(census: Census) -> list[NDArray[np.int64]]:
    """The classes that can be narrowed, those together that lie in the same tensors: they could change places."""
    carriers = {label: set[str]() for group in census.shrinkable for label in group.labels.tolist()}
    for name, labels in census.labels.items():
        for label in set(np.unique(labels).tolist()) & carriers.keys():
            carriers[label].add(name)
    found: dict[tuple[int, frozenset[str]], list[int]] = {}
    for label, names in carriers.items():
        found.setdefault((int(census.owner[label]), frozenset(names)), []).append(label)
    return [np.array(labels) for labels in found.values()]


def weight_of(graph: Graph, layer: Layer) -> Array:
    weight = graph.constant(graph.node(layer.key).inputs[layer.linear.weight])
    assert weight is not None
    return weight


def bias_of(graph: Graph, layer: Layer) -> Array:
    """The bias that the layer adds, shape (K,)."""
    if layer.bias.absent:
        return np.zeros(layer.width)
    value = graph.constant(graph.node(layer.bias.key).inputs[layer.bias.position])
    assert value is not None
    return np.broadcast_to(value.astype(np.float64).reshape(-1) * layer.bias.scale, (layer.width,))


def taken_from(vector: NDArray[np.int64], source: Mapping[int, int]) -> NDArray[np.int64]:
    """For each place, the place of the same occurrence of the label that replaces its own."""
    places = {label: np.flatnonzero(vector == label) for label in np.unique(vector)}
    result = np.arange(len(vector))
    for label, where in places.items():
        result[where] = places[source.get(int(label), int(label))]
    return result


def permuted(graph: Graph, census: Census, order: Mapping[int, int], *, reads: bool = True) -> Graph:
    """The graph with channel `order[label]` standing where `label` stood, everywhere (or only where it is made)."""
    result = graph.copy()
    biases = {layer.bias.key for layer in census.layers}
    for layer in census.layers:
        weight = weight_of(graph, layer)
        ends = [layer.linear.writes, layer.linear.reads]
        for axis, labels in list(zip(layer.linear.weight_axes, ends, strict=True))[: 1 + reads]:
            weight = np.take(weight, taken_from(labels[: weight.shape[axis]], order), axis=axis)
        result.set_input(layer.key, layer.linear.weight, weight)
        if not layer.bias.absent:
            bias = graph.constant(graph.node(layer.bias.key).inputs[layer.bias.position])
            assert bias is not None
            if bias.shape[-1:] == (layer.width,):
                moved = np.take(bias, taken_from(layer.linear.writes, order), axis=-1)
                result.set_input(layer.bias.key, layer.bias.position, moved)
    for key, ride in census.rides:
        value = graph.constant(graph.node(key).inputs[ride.position])
        assert value is not None
        if key not in biases:
            for axis, size in enumerate(ride.labels.shape):
                if size > 1:
                    value = np.take(value, taken_from(ride.labels.reshape(-1), order), axis=axis)
            result.set_input(key, ride.position, value)
    return result


def narrowed(census: Census, gone: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Every group that loses some of the classes `gone`, and what stays of it."""
    lost = [group for group in census.groups if np.isin(group.labels, gone).any()]
    return {group.name: np.setdiff1d(group.labels, gone) for group in lost}


def unread(graph: Graph, census: Census, gone: NDArray[np.int64]) -> Graph:
    """The graph in which no layer reads the classes `gone`."""
    zeroed = graph.copy()
    for layer in census.layers:
        weight, axis = weight_of(graph, layer), layer.linear.weight_axes[1]
        reads = layer.linear.reads[: weight.shape[axis]]
        mask = np.expand_dims(~np.isin(reads, gone), [a for a in range(weight.ndim) if a != axis])
        zeroed.set_input(layer.key, layer.linear.weight, weight * mask)
    return zeroed


# -- the contract ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_full_width_is_a_no_op(name: str) -> None:
    graph, census = surveyed(name)
    assert census.groups[0].frozen is None
    assert narrow(graph, census, {group.name: group.labels for group in census.groups}) == ()


@pytest.mark.parametrize("name", MODELS)
def test_zeroed_channels_slice_exactly(name: str) -> None:
    graph, census = surveyed(name)
    gone = np.concatenate([removed_labels(group.labels) for group in census.shrinkable])
    keep = narrowed(census, gone)
    assert len(keep) == len(census.shrinkable) > 0
    zeroed = unread(graph, census, gone)
    small = apply(zeroed, narrow(zeroed, census, keep))
    small.prune()
    small.check(full=True)

    x = sample(graph.proto)
    expected = run(zeroed.proto, x)
    assert np.isfinite(expected).all() and expected.std() > 0
    assert relative(expected, run(small.proto, x)) < 1e-5

    after = survey(small)
    for old, new in zip(census.layers, after.layers, strict=True):
        shape = list(weight_of(graph, old).shape)
        for axis, labels in zip(old.linear.weight_axes, (old.linear.writes, old.parts[0].reads), strict=True):
            shape[axis] = int(np.sum(~np.isin(labels, gone)))
        assert list(weight_of(small, new).shape) == shape
        assert old.linear.op.blocks == new.linear.op.blocks
    for group, same in zip(census.groups, after.groups, strict=True):
        kept = len(keep.get(group.name, group.labels))
        assert (same.width, same.writers, same.readers) == (kept, group.writers, group.readers)
        assert same.unit == group.unit
        assert group.name not in keep or kept == 1 or same.frozen is None
    assert small.parameters < graph.parameters

    costs = Costs(census, graph.parameters, graph.parameters)
    macs, parameters = costs({group.name: len(keep[group.name]) / group.width for group in census.shrinkable})
    assert macs == pytest.approx(sum(item.macs for item in (*after.layers, *after.unsolved)), abs=len(after.layers))
    assert parameters - ridden(zeroed, small, census) == pytest.approx(small.parameters + unbiased(small, after))


def ridden(before: Graph, after: Graph, census: Census) -> int:
    """What constants per channel have lost, which costs leave out of account: other than biases and weights."""
    counted = {layer.bias.key for layer in census.layers} | {node.name for node in census.unsolved}
    places = {(key, ride.position) for key, ride in census.rides if key not in counted}
    names = {before.node(key).inputs[position] for key, position in places}
    lost = 0
    for key, position in places:
        old, new = (graph.constant(graph.node(key).inputs[position]) for graph in (before, after))
        assert old is not None and new is not None
        lost += old.size - new.size
    assert len(names) == len(places)
    return lost


def unbiased(graph: Graph, census: Census) -> int:
    """How many biases are stored fewer than there are neurons: costs count one for each."""
    stored = 0
    for layer in census.layers:
        value = None if layer.bias.absent else graph.constant(graph.node(layer.bias.key).inputs[layer.bias.position])
        stored += 0 if value is None else value.size
    return sum(layer.width for layer in census.layers) - stored


@pytest.mark.parametrize("name", MODELS)
def test_permuting_channels_is_a_no_op(name: str) -> None:
    graph, census = surveyed(name)
    generator, order = np.random.default_rng(2), dict[int, int]()
    for labels in twins(census):
        order |= zip(labels.tolist(), generator.permutation(labels).tolist(), strict=True)
    x = sample(graph.proto)
    moved = permuted(graph, census, order)
    assert moved.serialize() != graph.serialize()
    assert relative(run(graph.proto, x), run(moved.proto, x)) < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_a_layers_algebra_is_what_onnxruntime_computes(name: str) -> None:
    graph, census = surveyed(name)
    x = sample(graph.proto)
    for layer, block, part in ((layer, *item) for layer in census.layers for item in enumerate(layer.parts)):
        op, weight = part.op, weight_of(graph, layer)
        source = tensor(graph, layer.source, x)
        output = tensor(graph, layer.output, x)
        matrix, bias = op.matrix(weight.astype(np.float64)), bias_of(graph, layer)[part.rows]
        rows = op.inputs(source.astype(np.float64), None) @ matrix.T + bias
        np.testing.assert_allclose(op.outputs(output, None), rows, rtol=1e-4, atol=1e-4)

        width = len(layer.linear.reads)
        assert matrix.shape == (len(part.writes), len(part.reads) * op.taps)
        axis = 1 if layer.kind.startswith("Conv") else 0 if graph.node(layer.key).attrs.get("transA") else -1
        numbered = np.moveaxis(
            np.broadcast_to(np.arange(1, width + 1), (*np.moveaxis(source, axis, -1).shape[:-1], width)), -1, axis
        )
        seen = op.inputs(numbered, None)
        mine = np.split(np.arange(1, width + 1), layer.linear.op.blocks)[block]
        np.testing.assert_array_equal(np.where(seen, op.owners(mine), 0), seen)
        assert seen.any(axis=0).all()

        positions = op.positions(source.shape)
        assert positions == op.positions_of(output.shape)
        samples = len(op.inputs(source, None)) // positions
        if samples != len(source):  # transA: samples are not on the first axis
            continue
        at = np.unique(np.array([positions - 1, 0, positions // 2]))
        every = rows.reshape(samples, positions, -1)
        np.testing.assert_array_equal(op.inputs(source, at), taken(op.inputs(source, None), samples, at))
        np.testing.assert_allclose(op.outputs(output, at), taken(every, samples, at), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_takes_its_own_matrix_back(name: str) -> None:
    graph, census = surveyed(name)
    x = sample(graph.proto)
    for layer in census.layers:
        weight = weight_of(graph, layer)
        op = layer.linear.op
        np.testing.assert_array_equal(op.weight(op.matrix(weight), weight).shape, weight.shape)
        if not layer.linear.resets:
            np.testing.assert_array_equal(op.weight(op.matrix(weight), weight), weight)
        same = apply(graph, set_layer(graph, layer, op.matrix(weight.astype(np.float64)), bias_of(graph, layer)))
        same.check(full=True)
        assert relative(run(graph.proto, x), run(same.proto, x)) < 1e-6
        doubled = set_layer(graph, layer, 2 * op.matrix(weight.astype(np.float64)), 2 * bias_of(graph, layer) + 1)
        twice = tensor(apply(graph, doubled), layer.output, x)
        np.testing.assert_allclose(twice, 2 * tensor(graph, layer.output, x) + 1, rtol=1e-4, atol=1e-4)


def tensor(graph: Graph, name: str, x: Array) -> Array:
    """A tensor of the graph in onnxruntime."""
    return x if name == "x" else run(graph.extract(["x"], [name]).proto, x)


def taken(rows: Array, samples: int, at: NDArray[np.int64]) -> Array:
    """Rows at some positions of each sample."""
    width = rows.shape[-1]
    return rows.reshape(samples, -1, width)[:, at].reshape(-1, width)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_chains_are_shrunk_end_to_end(name: str) -> None:
    model = MODELS[name]
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    x = np.random.default_rng(0).standard_normal((40 * fixed, *sample(model).shape[1:])).astype(np.float32)
    result = shrink(model, x, width=0.5, multiple="1")
    assert {group.width for group in result.plan.groups.values()} == {C // 2}
    assert result.report.after.macs == result.report.before.macs // 2
    assert result.report.agreement.error < (1.0 if name == "unary Reciprocal" else 0.8)


@pytest.mark.parametrize(
    ("before", "after", "labels", "expected"),
    [
        ((2, 3, 4), (2, 12), [0, 1, 2], [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
        ((2, 3, 1, 1), (2, 3), [0, 1, 2], [0, 1, 2]),
        ((1, 3, 2), (6,), [0, 1, 2], [0, 0, 1, 1, 2, 2]),
        ((2, 3), (2, 1, 3, 1), [0, 1, 2], [0, 1, 2]),
        ((2, 3, 4), (5, 5), [0, 1, 2], None),
        ((2, 3, 0), (0, 6), [0, 1, 2], None),
    ],
)
def test_labels_are_reshaped_like_data(
    before: tuple[int, ...], after: tuple[int, ...], labels: list[int], expected: list[int] | None
) -> None:
    start = np.array(labels).reshape(1, -1, *(1,) * (len(before) - 2))
    moved = reshape_labels(start, before, after)
    if expected is None:
        assert moved is None
    else:
        assert moved is not None and moved.ndim == len(after)
        np.testing.assert_array_equal(moved.ravel(), expected)
        full = np.broadcast_to(start, before).reshape(after)
        np.testing.assert_array_equal(np.broadcast_to(moved, after), full)
