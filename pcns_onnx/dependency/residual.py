"""Residual blocks: what the last layer of one is solved for, and which can go as a whole.

A layer whose output goes straight into a sum is solved for what the sum lacks. Where such a layer
reads one group alone, that group may go altogether: what the layer then adds is a constant, the
mean of what the sum lacks, and the layers of the block are gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.graph import Graph


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
