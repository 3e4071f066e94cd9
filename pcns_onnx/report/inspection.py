"""What `inspect` lists: every layer with multiply-adds, and the groups that would be narrowed together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.layers import Layer, Unsolved
from pcns_onnx.report.schema import GroupRow, LayerInfo


def layer_rows(
    dependencies: DependencyGraph, dimensions: Mapping[str, dict[str, int]], per_neuron: Mapping[str, float]
) -> list[LayerInfo]:
    """Every layer, those that are not solved for last; `dimensions` and `per_neuron` by name, where there was data."""
    rows = [
        LayerInfo(
            layer.name,
            layer.kind,
            layer.width,
            layer.macs or None,
            layer.parameters,
            (group := dependencies.writes(layer)).frozen,
            dimensions.get(layer.name),
            per_neuron.get(layer.name),
            group.name if len(group.writers) > 1 else None,
        )
        for layer in dependencies.layers
    ]
    return rows + [
        LayerInfo(node.name, node.kind, node.width, node.macs or None, node.parameters, _why_not(dependencies, node))
        for node in dependencies.unsolved
    ]


def group_rows(dependencies: DependencyGraph) -> list[GroupRow]:
    """Every group, frozen ones included."""
    return [
        GroupRow(g.name, list(g.writers), g.width, g.unit, list(g.readers), g.coupled, g.frozen)
        for g in dependencies.groups
    ]


def shrinkable_share(dependencies: DependencyGraph) -> float | None:
    """The share of the known MACs in layers that write, read or follow a group that can be narrowed; None without."""
    items: list[Layer | Unsolved] = [*dependencies.layers, *dependencies.unsolved]
    macs = sum(item.macs for item in items)
    return sum(item.macs for item in within_reach(dependencies)) / macs if macs else None


def within_reach(dependencies: DependencyGraph) -> list[Layer | Unsolved]:
    """What writes, reads or follows a group that can be narrowed: its cost is what widths change."""
    free = [group.frozen is None for group in dependencies.groups] + [False]
    items: list[Layer | Unsolved] = [*dependencies.layers, *dependencies.unsolved]
    return [item for item in items if any(free[owner] for owner in _owners(dependencies, item))]


def _owners(dependencies: DependencyGraph, item: Layer | Unsolved) -> list[int]:
    if isinstance(item, Layer):
        ends = np.concatenate([item.linear.reads, item.linear.writes])
    else:
        ends = np.zeros(0, dtype=np.int64) if item.scales is None else item.scales
    return [int(owner) for owner in np.unique(dependencies.owner[ends])]


def _why_not(dependencies: DependencyGraph, node: Unsolved) -> str | None:
    """Why a node that is not solved for keeps its cost, None where it follows a group that can be narrowed."""
    followed = [*dependencies.groups, None]
    reasons = [None if (g := followed[owner]) is None else g.frozen for owner in _owners(dependencies, node)]
    if node.scales is None:
        return node.reason
    return next((reason for reason in reasons if reason is not None), None)
