"""Which groups PCNS can rebuild, and why not the others."""

from __future__ import annotations

import numpy as np

from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.graph import Graph, Node
from pcns_onnx.methods.pcns.activations import IDENTITY, Activation, activation

_TRIVIAL = ("Identity", "Dropout", "Cast")


def activation_of(graph: Graph, dependencies: DependencyGraph, group: Group) -> Activation | str:
    """The activation behind a group's writer, or why PCNS cannot solve through it."""
    acting = [node for node in activation_nodes(graph, dependencies, group).values() if node.op not in _TRIVIAL]
    if not acting:
        return IDENTITY
    if len(acting) > 1:
        return "its activation is made of several operators (" + ", ".join(sorted({n.op for n in acting})) + ")"
    node = acting[0]
    sigma = activation(node.op, dict(node.attrs), _slope(graph, node), _bounds(graph, node))
    return sigma or f"{node.op} has no inverse that PCNS could solve through"


def _slope(graph: Graph, node: Node) -> float | None:
    """A PRelu's mean slope."""
    slope = graph.constant(node.inputs[1]) if node.op == "PRelu" else None
    return None if slope is None else float(np.mean(slope.astype(np.float64)))


def _bounds(graph: Graph, node: Node) -> tuple[float, float] | None:
    """A Clip's bounds, from attributes (opset 6) or inputs; None where they are computed."""
    bounds = []
    for position, (name, default) in enumerate((("min", float("-inf")), ("max", float("inf"))), start=1):
        source = node.inputs[position] if len(node.inputs) > position else ""
        value = graph.constant(source) if source else np.asarray(node.attrs.get(name, default))
        if value is None:
            return None
        bounds.append(float(value.reshape(-1)[0]))
    return bounds[0], bounds[1]


def refusal(graph: Graph, dependencies: DependencyGraph, group: Group, *, refit: bool) -> str | None:
    """Why PCNS must leave a group alone, None if it need not."""
    if group.recurrent:
        return (
            "a recurrent layer makes its units of their own past, and for new neurons there are no gates to solve for"
        )
    if group.states:
        return f"the caller carries its channels along as '{group.states[0]}', and new neurons are others"
    if len(group.writers) > 1 or group.unit > 1 or group.products:
        return "several layers (or blocks of one) share its channels, and new neurons can replace one layer's only"
    for layer in (dependencies.layer(name) for name in group.readers):
        if dependencies.is_bound(layer):
            return f"'{layer.name}' reads it with a weight that is stored for others, too"
        if layer.linear.op.conv_groups > 1 or not np.isin(layer.linear.reads, group.labels).all():
            return f"'{layer.name}' reads it beside other channels, or in blocks"
        if not np.isin(group.labels, layer.linear.reads).all():
            return f"'{layer.name}' reads some of its channels only"
    sigma = activation_of(graph, dependencies, group)
    if isinstance(sigma, str):
        return sigma
    inside = activation_nodes(graph, dependencies, group)
    rest = [graph.node(key) for key in group.path if key not in inside]
    constant_keys = {key for key, _ in dependencies.per_channel}
    for node in rest:
        kind = dependencies.kinds[node.key]
        if kind == "select":
            return f"{node.op} '{node.label}' takes some of its channels, which new neurons do not match"
        if kind == "affine" or node.key in constant_keys:
            return f"{node.op} '{node.label}' has per-channel constants, which new neurons do not match"
        if kind not in ("linear", "move", "pointwise") and not refit:
            return f"{node.op} '{node.label}' does not commute with the projection: re-fit the reader instead"
        if kind == "pointwise" and node.op not in _TRIVIAL and not refit:
            return f"{node.op} '{node.label}' is a second nonlinearity: re-fit the reader instead"
    padded = any(dependencies.layer(name).linear.op.padded for name in group.readers)
    if padded and sigma.handling == "range" and not refit:
        return "its targets need an offset, which a zero-padded Conv cannot take: re-fit the reader instead"
    return None


def activation_nodes(graph: Graph, dependencies: DependencyGraph, group: Group) -> dict[str, Node]:
    """The nodes that make up the activation, by key."""
    nodes, pending = dict[str, Node](), [group.activation]
    while pending:
        name = pending.pop()
        node = graph.producers.get(name)
        if node is not None and name != dependencies.layer(group.name).output and node.key not in nodes:
            nodes[node.key] = node
            pending += [i for i in node.inputs if i in dependencies.labels]
    return nodes
