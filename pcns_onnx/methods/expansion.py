"""Layers made wider without changing what the model computes: copies of channels, and their shares of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.graph.quantized_weights import unpack_input
from pcns_onnx.rewrite.channels import layout, repeat
from pcns_onnx.rewrite.layer_weights import has_value_per_row, stored, stored_weight
from pcns_onnx.rewrite.patch import Patch, SetInput, apply


class Expanded(msgspec.Struct, frozen=True):
    """One group that was widened: its width before and after, and how many channels have copies."""

    name: str
    writers: list[str]
    readers: list[str]
    before: int
    after: int
    split: int


Copies = NDArray[np.int64]


def widened(
    graph: Graph, dependencies: DependencyGraph, copies: Copies, groups: Sequence[Group], *, zero: bool
) -> Graph:
    """A copy of `graph` in which class c is there copies[c] times, readers weighted so that nothing changes.

    Weights in few bits become floats where they change: shares of them would have to be rounded.
    """
    result = graph.copy()
    for layer in dependencies.layers:
        if any(layer.name in (*group.writers, *group.readers) for group in groups):
            unpack_input(result, layer.key, layer.linear.weight)
            if not layer.bias.absent:
                unpack_input(result, layer.bias.key, layer.bias.position)
    result = apply(result, repeat(graph, dependencies, copies))
    for layer in dependencies.layers:
        writes = any(layer.name in group.writers for group in groups)
        reads = any(layer.name in group.readers for group in groups)
        result = apply(result, _weighted(graph, result, layer, copies, zero=zero) if writes or reads else ())
    return result


def shared_out(
    graph: Graph, dependencies: DependencyGraph, groups: Sequence[Group], widths: dict[str, int]
) -> tuple[Copies, list[Expanded]]:
    """How often each class is there (one more element, 1, answers for -1), and how many were split by group."""
    copies, rows = np.ones(dependencies.born + 1, dtype=np.int64), list[Expanded]()
    for group in groups:
        width = widths[group.name]
        if width <= group.width:
            raise InputError(f"'{group.name}' would keep its {group.width} channels: give a larger factor with --by")
        each, more = divmod(width, group.width)
        strongest = np.argsort(-strength(graph, dependencies, group), kind="stable")
        counts = np.full(group.width, each)
        counts[strongest[:more]] += 1
        copies[group.labels] = counts
        split = int((counts > 1).sum())
        rows.append(Expanded(group.name, list(group.writers), list(group.readers), group.width, width, split))
    return copies, rows


def strength(graph: Graph, dependencies: DependencyGraph, group: Group) -> NDArray[np.float64]:
    """Mean of each channel's outgoing weights, over all layers that read the group, (N,)."""
    total, count = np.zeros(group.width), np.zeros(group.width)
    for layer in (dependencies.layer(name) for name in group.readers):
        weight = stored_weight(graph, layer)
        for part in layer.parts:
            owners, matrix = part.op.owners(part.reads), np.asarray(part.op.matrix(weight))
            in_group = np.isin(owners, group.labels)
            at = np.searchsorted(group.labels, owners[in_group])
            np.add.at(total, at, matrix[:, in_group].sum(axis=0))
            np.add.at(count, at, matrix.shape[0])
    return np.asarray(total / np.maximum(count, 1))


def _weighted(before: Graph, after: Graph, layer: Layer, copies: Copies, *, zero: bool) -> Patch:
    """The edits that share a layer's weights out among the copies of what it reads (`zero`: none to the new ones)."""
    linear, weight = layer.linear, stored(after, layer.key, layer.linear.weight)
    sizes = stored(before, layer.key, linear.weight).shape
    shares = np.ones(1)
    for axis, labels, is_input in zip(linear.weight_axes, (linear.writes, linear.reads), (False, True), strict=True):
        index, number = layout(labels[: sizes[axis]], copies)
        factor = (number == 0) * 1.0 if zero else 1.0 / copies[labels[index]] if is_input else np.ones(len(index))
        shares = shares * factor.reshape([-1 if a == axis else 1 for a in range(weight.ndim)])
    edits: Patch = (SetInput(layer.key, linear.weight, weight * shares),)
    if not zero or layer.bias.absent:
        return edits
    axis, bias_input = linear.bias_axes[-1], (layer.bias.key, layer.bias.position)
    bias, old_bias = stored(after, *bias_input), stored(before, *bias_input)
    if has_value_per_row(old_bias, layer):
        _, number = layout(linear.writes[: old_bias.shape[axis]], copies)
        edits += (SetInput(*bias_input, bias * (number == 0).reshape(-1, *(1,) * (-1 - axis))),)
    return edits
