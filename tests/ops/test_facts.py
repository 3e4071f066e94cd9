"""The contract of every operator's rule, checked in onnxruntime on a small chain around it.

Full width is a no-op, zeroed channels slice exactly, permuting channels is a no-op, and a
layer's own algebra (`LinearOp`) is what onnxruntime computes.
"""

from __future__ import annotations

import numpy as np
import pytest

from builders.chains import LAYERS, C
from builders.chains import MODELS as CHAINS
from builders.models import relative, run
from builders.surgery import (
    bias_of,
    narrowed,
    permuted,
    removed_labels,
    sample,
    taken,
    tensor,
    twins,
    unread,
    weight_of,
)
from builders.topologies import TOPOLOGIES
from pcns_onnx import shrink
from pcns_onnx.cost.model import Costs
from pcns_onnx.dependency.dependency_graph import DependencyGraph, build_dependency_graph, kept_classes
from pcns_onnx.graph import Graph
from pcns_onnx.ops.reshape import reshape_labels
from pcns_onnx.rewrite.channels import narrow
from pcns_onnx.rewrite.explicit_bias import explicit_biases
from pcns_onnx.rewrite.layer_weights import set_layer
from pcns_onnx.rewrite.patch import apply

MODELS = {**CHAINS, **{name: make() for name, make in TOPOLOGIES.items()}}


def surveyed(name: str) -> tuple[Graph, DependencyGraph]:
    graph, _ = explicit_biases(Graph.load(MODELS[name]))
    return graph, build_dependency_graph(graph)


# -- the contract ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_full_width_is_a_no_op(name: str) -> None:
    graph, dependencies = surveyed(name)
    assert dependencies.groups[0].frozen is None
    assert narrow(graph, dependencies, {group.name: group.labels for group in dependencies.groups}) == ()


@pytest.mark.parametrize("name", MODELS)
def test_zeroed_channels_slice_exactly(name: str) -> None:
    graph, dependencies = surveyed(name)
    gone = np.concatenate([removed_labels(group.labels) for group in dependencies.shrinkable])
    keep = narrowed(dependencies, gone)
    assert len(keep) == len(dependencies.shrinkable) > 0
    zeroed = unread(graph, dependencies, gone)
    small = apply(zeroed, narrow(zeroed, dependencies, keep))
    small.prune()
    small.check(full=True)

    x = sample(graph.proto)
    expected = run(zeroed.proto, x)
    assert np.isfinite(expected).all() and expected.std() > 0
    assert relative(expected, run(small.proto, x)) < 1e-5

    after = build_dependency_graph(small)
    for old, new in zip(dependencies.layers, after.layers, strict=True):
        shape = list(weight_of(graph, old).shape)
        for axis, labels in zip(old.linear.weight_axes, (old.linear.writes, old.parts[0].reads), strict=True):
            shape[axis] = int(np.sum(~np.isin(labels, gone)))
        assert list(weight_of(small, new).shape) == shape
        assert old.linear.op.conv_groups == new.linear.op.conv_groups
    for group, same in zip(dependencies.groups, after.groups, strict=True):
        kept = len(keep.get(group.name, group.labels))
        assert (same.width, same.writers, same.readers) == (kept, group.writers, group.readers)
        assert same.unit == group.unit
        assert group.name not in keep or kept == 1 or same.frozen is None
    assert small.parameters < graph.parameters

    costs = Costs(dependencies, {"params": graph.parameters}, {"params": graph.parameters})
    macs, parameters = left = costs.of_classes(kept_classes(dependencies, keep))[:2]
    if name != "half read":  # there the width alone does not say it
        fractions = {group.name: len(keep[group.name]) / group.width for group in dependencies.shrinkable}
        assert costs(fractions)[:2] == pytest.approx(left)
    counted = sum(layer.macs for layer in after.layers) + sum(node.macs for node in after.unsolved)
    assert macs == pytest.approx(counted, abs=len(after.layers))  # a sample's share of each may be rounded
    assert parameters - ridden(zeroed, small, dependencies) == pytest.approx(small.parameters + unbiased(small, after))


def ridden(before: Graph, after: Graph, dependencies: DependencyGraph) -> int:
    """What constants per channel have lost, which costs leave out of account: other than biases and weights."""
    counted = {layer.bias.key for layer in dependencies.layers} | {node.name for node in dependencies.unsolved}
    places = {(key, ride.position) for key, ride in dependencies.per_channel if key not in counted}
    assert len({before.node(key).inputs[position] for key, position in places}) == len(places)
    lost = 0
    for key, position in places:
        old, new = (graph.constant(graph.node(key).inputs[position]) for graph in (before, after))
        assert old is not None and new is not None
        lost += old.size - new.size
    return lost


def unbiased(graph: Graph, dependencies: DependencyGraph) -> int:
    """How many biases are stored fewer than there are neurons: costs count one for each."""
    stored = 0
    for layer in dependencies.layers:
        value = None if layer.bias.absent else graph.constant(graph.node(layer.bias.key).inputs[layer.bias.position])
        stored += 0 if value is None else value.size
    return sum(layer.width for layer in dependencies.layers) - stored


@pytest.mark.parametrize("name", MODELS)
def test_permuting_channels_is_a_no_op(name: str) -> None:
    graph, dependencies = surveyed(name)
    generator, order = np.random.default_rng(2), dict[int, int]()
    for labels in twins(dependencies):
        order |= zip(labels.tolist(), generator.permutation(labels).tolist(), strict=True)
    x = sample(graph.proto)
    moved = permuted(graph, dependencies, order)
    assert moved.serialize() != graph.serialize()
    assert relative(run(graph.proto, x), run(moved.proto, x)) < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_a_layers_algebra_is_what_onnxruntime_computes(name: str) -> None:
    graph, dependencies = surveyed(name)
    x = sample(graph.proto)
    for layer, block, part in ((one, *item) for one in dependencies.layers for item in enumerate(one.parts)):
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
        mine = np.split(np.arange(1, width + 1), layer.linear.op.conv_groups)[block]
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
    graph, dependencies = surveyed(name)
    x = sample(graph.proto)
    for layer in dependencies.layers:
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


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_chains_are_shrunk_end_to_end(name: str) -> None:
    model = MODELS[name]
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    x = np.random.default_rng(0).standard_normal((40 * fixed, *sample(model).shape[1:])).astype(np.float32)
    result = shrink(model, x, width=0.5, multiple="1", refine=0)
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
