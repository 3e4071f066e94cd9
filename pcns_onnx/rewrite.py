"""From decisions to a graph: a patch is a list of printable edits, applied to a copy.

Edits address nodes by key and inputs by position, never initializers by name, so shared
weights and shared biases come apart by themselves. The same patch is applied to the float32
graph that is captured from and to the stored one, whose types are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.graph import Array, Graph
from pcns_onnx.groups import Census, Layer
from pcns_onnx.ops import Labels


@dataclass(frozen=True)
class SetInput:
    """Input `position` of node `key` becomes the constant `value`."""

    key: str
    position: int
    value: Array = field(repr=False)

    def apply(self, graph: Graph) -> None:
        """Make the edit."""
        graph.set_input(self.key, self.position, self.value)

    def __str__(self) -> str:
        return f"input {self.position} of '{self.key}' := {self.value.dtype} {tuple(self.value.shape)}"


@dataclass(frozen=True)
class SetAttributes:
    """Attributes of node `key`."""

    key: str
    attributes: tuple[tuple[str, float], ...]

    def apply(self, graph: Graph) -> None:
        """Make the edit."""
        graph.set_attributes(self.key, **dict(self.attributes))

    def __str__(self) -> str:
        return f"attributes of '{self.key}' := {dict(self.attributes)}"


Edit = SetInput | SetAttributes
Patch = tuple[Edit, ...]


def apply(graph: Graph, patch: Patch) -> Graph:
    """A copy of `graph` with all edits made, in order."""
    result = graph.copy()
    for edit in patch:
        edit.apply(result)
    return result


def narrow(graph: Graph, census: Census, keep: Mapping[str, Labels]) -> Patch:
    """Slice everything that carries a channel not in `keep` (group name -> labels that stay)."""
    kept = _mask(census, keep)
    biases = {layer.bias.key for layer in census.layers}
    edits: list[Edit] = []
    for layer in census.layers:
        edits += _narrow_layer(graph, layer, kept)
    for key, ride in census.rides:
        if key in biases:
            continue
        value = graph.constant(graph.node(key).inputs[ride.position])
        assert value is not None, "rules let only constants ride"
        sliced = _slice(value, ride.labels, kept)
        if sliced.shape != value.shape:
            edits.append(SetInput(key, ride.position, sliced))
    sizes: dict[tuple[str, int], NDArray[np.int64]] = {}
    for size in census.sizes:
        value = graph.constant(graph.node(size.key).inputs[size.position])
        assert value is not None, "rules state sizes of constants only"
        if not kept[size.labels].all():
            target = sizes.setdefault((size.key, size.position), value.reshape(-1).astype(np.int64))
            target[size.element] = int(kept[size.labels].sum())
    for (key, position), target in sizes.items():
        value = graph.constant(graph.node(key).inputs[position])
        assert value is not None, "rules state sizes of constants only"
        edits.append(SetInput(key, position, target.reshape(value.shape)))
    return tuple(edits)


def set_layer(graph: Graph, layer: Layer, matrix: NDArray[np.float64], bias: NDArray[np.float64]) -> Patch:
    """Give a layer new weights V (K, n) and bias (K,), in its own layout.

    A layer that has no bias gets one only if `bias` is not zero.
    """
    old = graph.constant(graph.node(layer.key).inputs[layer.linear.weight])
    assert old is not None, "layers have stored weights"
    edits: list[Edit] = [SetInput(layer.key, layer.linear.weight, layer.linear.op.weight(matrix, old))]
    if layer.linear.resets:
        edits.append(SetAttributes(layer.key, layer.linear.resets))
    if layer.bias.absent:
        return (*edits, SetInput(layer.key, layer.bias.position, bias)) if bias.any() else tuple(edits)
    stored = graph.constant(graph.node(layer.bias.key).inputs[layer.bias.position])
    lead = (1,) * (stored.ndim - 1) if stored is not None else ()
    return (*edits, SetInput(layer.bias.key, layer.bias.position, bias.reshape(*lead, -1)))


def _mask(census: Census, keep: Mapping[str, Labels]) -> NDArray[np.bool_]:
    """Whether each label stays; the last element answers for -1, which always does."""
    top = max((int(g.labels[-1]) for g in census.groups), default=-1)
    kept = np.ones(top + 2, dtype=np.bool_)
    for group in census.groups:
        if group.name in keep:
            kept[group.labels] = False
            kept[keep[group.name]] = True
    return kept


def _slice(value: Array, labels: Labels, kept: NDArray[np.bool_]) -> Array:
    """`value` without the channels that go; labels have its rank."""
    for axis, size in enumerate(labels.shape):
        if size > 1:
            stays = kept[np.moveaxis(labels, axis, 0).reshape(size, -1)[:, 0]]
            value = value if stays.all() else np.compress(stays, value, axis=axis)
    return value


def _narrow_layer(graph: Graph, layer: Layer, kept: NDArray[np.bool_]) -> list[Edit]:
    linear = layer.linear
    rows, columns = kept[linear.writes], kept[linear.reads]
    if rows.all() and columns.all():
        return []
    weight = graph.constant(graph.node(layer.key).inputs[linear.weight])
    assert weight is not None, "layers have stored weights"
    for axis, mask in zip(linear.weight_axes, (rows, columns), strict=True):
        weight = weight if mask.all() else np.compress(mask, weight, axis=axis)
    edits: list[Edit] = [SetInput(layer.key, linear.weight, weight)]
    if not layer.bias.absent and not rows.all():
        bias = graph.constant(graph.node(layer.bias.key).inputs[layer.bias.position])
        assert bias is not None, "a bias is stored"
        if bias.shape and bias.shape[-1] == len(rows):
            edits.append(SetInput(layer.bias.key, layer.bias.position, np.compress(rows, bias, axis=-1)))
    return edits
