"""What must hold for every operator that channels pass, checked on one model in onnxruntime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from builders.chains import Chain, node
from builders.models import relative, run
from builders.surgery import narrowed, permuted, removed_labels, sample, twins, unread, weight_of
from pcns_onnx import ShrinkResult, shrink
from pcns_onnx.dependency.dependency_graph import DependencyGraph, build_dependency_graph
from pcns_onnx.graph import Graph
from pcns_onnx.rewrite.channels import narrow
from pcns_onnx.rewrite.explicit_bias import explicit_biases
from pcns_onnx.rewrite.patch import apply
from pcns_onnx.rewrite.shared_constants import store_once


def surveyed(model: onnx.ModelProto) -> tuple[Graph, DependencyGraph]:
    """The graph as it is solved, and what is found in it."""
    graph, _ = explicit_biases(Graph.load(model))
    return graph, build_dependency_graph(graph)


def stood_in(chain: Chain) -> onnx.ModelProto:
    """The model of a chain behind which onnx infers no shapes: those of a Relu stand in."""
    model = replace(chain, middle=[node("Relu", "h")], weights={}).build()
    nodes = [part for item in model.graph.node for part in (chain.middle if item.op_type == "Relu" else [item])]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in chain.weights.items())
    return model


def holds(model: onnx.ModelProto, width: int | None = None) -> None:
    """Full width and any order change nothing; channels that nothing reads go without a trace.

    `width` is that of the first group, where it is asked for.
    """
    graph, dependencies = surveyed(model)
    assert dependencies.shrinkable and (width is None or dependencies.groups[0].width == width)
    assert narrow(graph, dependencies, {group.name: group.labels for group in dependencies.groups}) == ()
    x = sample(graph.proto)

    generator, order = np.random.default_rng(2), dict[int, int]()
    for labels in twins(dependencies):
        order |= zip(labels.tolist(), generator.permutation(labels).tolist(), strict=True)
    moved = permuted(graph, dependencies, order)
    assert moved.serialize() != graph.serialize()
    assert relative(run(graph.proto, x), run(moved.proto, x)) < 1e-5

    gone = np.concatenate([removed_labels(group.labels) for group in dependencies.shrinkable])
    keep = narrowed(dependencies, gone)
    zeroed = unread(graph, dependencies, gone)
    small = apply(zeroed, narrow(zeroed, dependencies, keep))
    store_once(small, graph)
    small.prune()
    small.check(full=True)
    assert small.parameters < graph.parameters
    expected = run(zeroed.proto, x)
    assert np.isfinite(expected).all() and expected.std() > 0
    assert relative(expected, run(small.proto, x)) < 1e-5
    after = build_dependency_graph(small)
    for old in dependencies.layers:
        for axis, labels in zip(old.linear.weight_axes, (old.linear.writes, old.linear.reads), strict=True):
            before = weight_of(graph, old).shape[axis]
            assert weight_of(small, after.layer(old.name)).shape[axis] == np.sum(~np.isin(labels[:before], gone))


def halved(model: onnx.ModelProto, samples: int = 60) -> ShrinkResult:
    """Every group at half its width, solved on random data: it runs and does less."""
    rows = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    x = np.random.default_rng(0).standard_normal((samples * rows, *sample(model).shape[1:])).astype(np.float32)
    result = shrink(model, x, width=0.5, multiple="1", refine=0)
    onnx.checker.check_model(result.model, full_check=Graph.load(model).passes_check(full=True))
    assert result.report.after.macs < result.report.before.macs
    assert result.report.agreement.error < 1
    return result


def nothing_lost(model: onnx.ModelProto, width: float, samples: int = 200) -> ShrinkResult:
    """What is planted to be superfluous goes, and the outputs stay what they were."""
    x = np.random.default_rng(0).standard_normal((samples, *sample(model).shape[1:])).astype(np.float32)
    result = shrink(model, x, width=width, multiple="1", refine=0)
    onnx.checker.check_model(result.model, full_check=True)
    assert result.report.after.macs < result.report.before.macs
    assert relative(run(model, x[:50]), run(result.model, x[:50])) < 1e-4
    return result
