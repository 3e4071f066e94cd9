"""Residual blocks: what the last layer of one is solved for, and which can go as a whole.

A layer whose output goes straight into a sum is solved for what the sum lacks. Where such a layer
reads one group alone, that group may go altogether: what the layer then adds is a constant, the
mean of what the sum lacks, and the layers of the block are gone.

What a block hands on is what the next block's sum reads as it is: the sum itself (norms inside the blocks), or what a
norm makes of it (norms behind the sums). These are the hidden states that a whole model can be compared at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.graph import Graph, Node


class RegressionTarget(NamedTuple):
    """What a layer is solved for: a tensor of the original less, for a sum, what its other operand has already."""

    tensor: str
    already: str = ""


def regression_target(graph: Graph, dependencies: DependencyGraph, layer: Layer) -> RegressionTarget:
    """The layer's output, or the sum that it goes straight into if the other operand is made before the layer.

    Both operands must have the sum's shape: where one is spread over the other's positions, the
    layer's rows are not the sum's.
    """
    alone = RegressionTarget(layer.output)
    readers = graph.consumers.get(layer.output, ())
    exposed = any(output.name == layer.output for output in graph.outputs)
    if len(readers) != 1 or readers[0].op not in ("Add", "Sum") or len(readers[0].inputs) != 2 or exposed:
        return alone
    sum_, other = readers[0].key, next((name for name in readers[0].inputs if name != layer.output), "")
    shapes = {dependencies.shapes.get(name, (None,)) for name in (layer.output, other, sum_)}
    if not other or graph.is_constant(other) or len(shapes) > 1 or None in shapes.pop():
        return alone
    order = {node.key: at for at, node in enumerate(graph.nodes)}
    maker = graph.producers.get(other)
    is_known = maker is None or order[maker.key] < order[layer.key]
    return RegressionTarget(sum_, other) if is_known else alone


@dataclass(frozen=True)
class ResidualBlock:
    """A group whose only reader `layer` adds to a sum: input `position` of node `sum`."""

    group: Group
    layer: Layer
    sum: str
    position: int


def residual_blocks(graph: Graph, dependencies: DependencyGraph) -> Mapping[str, ResidualBlock]:
    """By group, the blocks that can be left out."""
    blocks = {}
    for group in dependencies.shrinkable:
        if group.coupled or group.products or group.states or len(group.readers) != 1:
            continue
        layer = dependencies.layer(group.readers[0])
        goal = regression_target(graph, dependencies, layer)
        if not goal.already or not np.isin(layer.linear.reads, group.labels).all() or layer.linear.op.conv_groups > 1:
            continue
        writes = dependencies.labels.get(layer.output)
        if writes is None or sum(size > 1 for size in writes.shape) != 1:
            continue
        position = list(graph.node(goal.tensor).inputs).index(layer.output)
        blocks[group.name] = ResidualBlock(group, layer, goal.tensor, position)
    return blocks


_MATRICES = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN"})
"""What a block's branch has and a mere function of a tensor, such as x + x^3, has not."""
_SUMS = frozenset({"Add", "Sum", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})


def block_ends(graph: Graph) -> list[str]:
    """What every residual block hands on, by the names of the tensors, in the order of the graph."""
    order = {node.key: at for at, node in enumerate(graph.nodes)}
    sums = {node.key: skip for node in graph.nodes if (skip := _skip_of(graph, node, order))}
    ends, skips = dict[str, None](), dict.fromkeys(sums.values())
    for key in sums:
        node = graph.node(key)
        carried = _carried(graph, [name for name in node.outputs if name], sums)
        ends.setdefault(next((name for name in skips if name in carried), node.outputs[0]))
    return list(ends)


def _skip_of(graph: Graph, node: Node, order: Mapping[str, int]) -> str:
    """The operand of a sum that the other one is made from, by way of a matrix; '' where it is no residual sum."""
    if node.op not in _SUMS or len(node.inputs) < 2 or (node.op == "Sum" and len(node.inputs) > 2):
        return ""
    for skip, branch in (node.inputs[:2], node.inputs[1::-1]):
        maker = graph.producers.get(skip)
        first = order[maker.key] if maker else -1
        if _sums_of(graph, skip) == 1 and _passes_matrix(graph, skip, branch, first, order):
            return skip
    return ""


def _sums_of(graph: Graph, name: str) -> int:
    """How many sums read a tensor beside another that is no constant: a mask is added to the scores of all layers."""
    sums = [node for node in graph.consumers.get(name, ()) if node.op in _SUMS]
    return sum(all(other == name or not graph.is_constant(other) for other in node.inputs[:2]) for node in sums)


def _passes_matrix(graph: Graph, skip: str, branch: str, first: int, order: Mapping[str, int]) -> bool:
    """Whether `branch` is made from `skip`, which node number `first` makes, by a matrix among other things."""
    between, left = dict[int, Node](), [branch]
    while left:
        maker = graph.producers.get(left.pop())
        if maker is None or order[maker.key] <= first or order[maker.key] in between or maker.op in ("Shape", "Size"):
            continue
        between[order[maker.key]] = maker
        left.extend(maker.inputs)
    reached, mixed = {skip}, set[str]()
    for at in sorted(between):
        node = between[at]
        if reached.intersection(node.inputs):
            reached.update(node.outputs)
            if node.op in _MATRICES or mixed.intersection(node.inputs):
                mixed.update(node.outputs)
    return branch in mixed


def _carried(graph: Graph, names: Iterable[str], sums: Mapping[str, str]) -> set[str]:
    """These tensors, and what is made of them without a matrix and without another residual sum."""
    carried, left = set[str](), list(names)
    while left:
        name = left.pop()
        if name not in carried:
            carried.add(name)
            for reader in graph.consumers.get(name, ()):
                if reader.key not in sums and reader.op not in _MATRICES:
                    left.extend(output for output in reader.outputs if output)
    return carried
