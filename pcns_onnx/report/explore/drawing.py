"""The graph as boxes and edges: every node of a small one, the groups of channels of a large one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pcns_onnx.dependency.groups import Group
from pcns_onnx.graph import Graph, Node
from pcns_onnx.planning.plan import SkippedLayer
from pcns_onnx.planning.problem import Problem
from pcns_onnx.report.explore.layout import depths_of, placed
from pcns_onnx.report.explore.record import Box, Drawing

MOST = 150
"""Nodes that are drawn one by one."""
_ENDS = "input", "output"


def drawing_of(problem: Problem, skipped: Sequence[SkippedLayer]) -> Drawing:
    """The graph that is solved: what is constant is left out, batch norms are part of their layers."""
    reasons = {name: item.reason for item in skipped for name in (item.name, *item.layers)}
    nodes = [node for node in problem.whole.nodes if not problem.whole.is_constant(node.key) and node.op != "Constant"]
    if len(nodes) <= MOST:
        return _of_nodes(problem, nodes, reasons)
    return _of_groups(problem, reasons)


def _of_nodes(problem: Problem, nodes: Sequence[Node], reasons: Mapping[str, str]) -> Drawing:
    graph, groups = problem.whole, _group_of_nodes(problem)
    names = {layer.key: layer.name for layer in problem.whole_dependencies.layers}
    first = len(graph.inputs)
    makers = {spec.name: at for at, spec in enumerate(graph.inputs)}
    makers |= {name: first + at for at, node in enumerate(nodes) for name in node.outputs if name}
    labels = [(spec.name, _ENDS[0], -1, "") for spec in graph.inputs]
    for node in nodes:
        name = names.get(node.key, node.label)
        labels.append((name, node.op, groups.get(node.key, -1), reasons.get(name, "")))
    edges = [
        (makers[name], first + at)
        for at, node in enumerate(nodes)
        for name in dict.fromkeys((*node.inputs, *node.captures))
        if name in makers
    ]
    edges += [(makers[spec.name], len(labels) + at) for at, spec in enumerate(graph.outputs) if spec.name in makers]
    labels += [(spec.name, _ENDS[1], -1, "") for spec in graph.outputs]
    places = placed(len(labels), edges)
    boxes = [Box(*label[:3], *place, reason=label[3]) for label, place in zip(labels, places, strict=True)]
    return Drawing(boxes, list(dict.fromkeys(edges)))


def _group_of_nodes(problem: Problem) -> dict[str, int]:
    """By node the group that it makes or carries; of several the one that it makes, or the last."""
    layers, owner = problem.whole_dependencies, dict[str, int]()
    for at, group in enumerate(problem.groups):
        owner |= dict.fromkeys(group.path, at)
    for at, group in enumerate(problem.groups):
        owner |= {layers.layer(name).key: at for name in group.writers if name not in problem.factors}
    return owner


def _of_groups(problem: Problem, reasons: Mapping[str, str]) -> Drawing:
    dependencies, narrowed = problem.whole_dependencies, {group.name: at for at, group in enumerate(problem.groups)}
    kinds = {layer.name: layer.kind for layer in dependencies.layers}
    order = {layer.name: at for at, layer in enumerate(dependencies.layers)}
    groups = sorted(dependencies.groups, key=lambda group: min(order[name] for name in group.writers))
    writers = {name: at for at, group in enumerate(groups) for name in group.writers}
    edges = list(dict.fromkeys(_between(groups, writers)))
    depths = _depths(problem.whole)
    keys = {layer.name: layer.key for layer in dependencies.layers}
    places = placed(len(groups), edges, [min(depths[keys[name]] for name in group.writers) for group in groups])
    boxes = [
        Box(
            group.name, kinds[group.writers[0]], narrowed.get(group.name, -1), *place,
            reason=reasons.get(group.name, group.frozen or ""), nodes=len(group.writers),
        )
        for group, place in zip(groups, places, strict=True)
    ]  # fmt: skip
    return Drawing(boxes, edges, collapsed=True)


def _depths(graph: Graph) -> dict[str, int]:
    """By the key of a node how deep it stands."""
    makers = {name: at for at, node in enumerate(graph.nodes) for name in node.outputs if name}
    before = [
        [makers[name] for name in (*node.inputs, *node.captures) if makers.get(name, at) < at]
        for at, node in enumerate(graph.nodes)
    ]
    return {node.key: depth for node, depth in zip(graph.nodes, depths_of(before), strict=True)}


def _between(groups: Sequence[Group], writers: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """From a group to those that the layers that read it write."""
    for at, group in enumerate(groups):
        for name in group.readers:
            if writers.get(name, at) != at:
                yield at, writers[name]
