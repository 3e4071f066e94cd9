"""The dependency graph: which channels go together, and which classes stay when some go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.dependency.groups import Group, form_groups
from pcns_onnx.dependency.layers import Layer, Unsolved, find_layers, find_unsolved
from pcns_onnx.dependency.propagation import Propagation
from pcns_onnx.graph import Graph, Shape
from pcns_onnx.ops import (
    ChannelCount,
    ChannelIndex,
    Heads,
    ImpliedAxes,
    ImpliedNumber,
    Kind,
    Labels,
    PerChannelConstant,
    Window,
)


@dataclass(frozen=True)
class DependencyGraph:
    """Which channels of a model go together. `born` is the number of labels; classes are the smallest of theirs."""

    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    per_channel: tuple[tuple[str, PerChannelConstant], ...]
    sizes: tuple[ChannelCount, ...]
    channel_indices: tuple[ChannelIndex, ...]
    kinds: Mapping[str, Kind]
    labels: Mapping[str, Labels]
    shapes: Mapping[str, Shape]
    unsolved: tuple[Unsolved, ...]
    largest: Mapping[str, Window]
    born: int
    feeds: Mapping[str, Sequence[int]] | None = None
    implied_axes: tuple[ImpliedAxes, ...] = ()
    implied_numbers: tuple[ImpliedNumber, ...] = ()

    @cached_property
    def _layers(self) -> Mapping[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def owner(self) -> NDArray[np.int64]:
        """Class -> index of its group; number of groups for what belongs to none (and for -1)."""
        owner = np.full(self.born + 1, len(self.groups), dtype=np.int64)
        for index, group in enumerate(self.groups):
            owner[group.labels] = index
        return owner

    @cached_property
    def carriers(self) -> Mapping[str, tuple[Labels, ...]]:
        """Group -> the sets of its classes that tensors carry."""
        by_group: dict[str, dict[bytes, Labels]] = {group.name: {} for group in self.groups}
        for labels in self.labels.values():
            classes = np.unique(labels)
            owners = self.owner[classes]
            for index in np.unique(owners[owners < len(self.groups)]):
                members = classes[owners == index]
                by_group[self.groups[index].name][members.tobytes()] = members
        return {name: tuple(sets.values()) for name, sets in by_group.items()}

    def layer(self, name: str) -> Layer:
        """The layer of this name."""
        return self._layers[name]

    @cached_property
    def _uses(self) -> Mapping[str, tuple[Layer, ...]]:
        uses: dict[str, tuple[Layer, ...]] = {}
        for layer in self.layers:
            uses[layer.first_use] = (*uses.get(layer.first_use, ()), layer)
        return uses

    def uses(self, layer: Layer) -> tuple[Layer, ...]:
        """All layers with the stored weight of this one, itself among them, in order."""
        return self._uses[layer.first_use]

    def is_bound(self, layer: Layer) -> bool:
        """Whether a layer's weight is not its own: other layers have it too, or it cannot be solved for."""
        return bool(layer.fixed) or len(self.uses(layer)) > 1

    def reads(self, layer: Layer) -> tuple[Group, ...]:
        """The groups whose channels this layer reads."""
        return tuple(g for g in self.groups if layer.name in g.readers)

    def writes(self, layer: Layer) -> Group:
        """The group whose channels this layer makes."""
        return next(g for g in self.groups if layer.name in g.writers)

    @property
    def shrinkable(self) -> tuple[Group, ...]:
        """Groups that may be narrowed."""
        return tuple(g for g in self.groups if g.frozen is None)


def build_dependency_graph(
    graph: Graph, feeds: Mapping[str, Sequence[int]] | None = None, *, heads: Heads = "width"
) -> DependencyGraph:
    """Propagate labels through `graph`; `feeds` gives the shape of each input where the model leaves it open."""
    propagation = Propagation.over(graph, feeds, heads=heads)
    layers = tuple(find_layers(propagation))
    compact, classes = propagation.classes.compact, propagation.classes.of
    node_facts = propagation.node_facts
    return DependencyGraph(
        layers=layers,
        groups=tuple(form_groups(propagation, layers)),
        per_channel=tuple(
            (n.key, replace(constant, labels=compact(constant.labels)))
            for n, facts in node_facts
            for constant in facts.per_channel
        ),
        sizes=tuple(
            replace(s, labels=classes(s.labels), along=classes(s.labels if s.along is None else s.along))
            for _, facts in node_facts
            for s in facts.sizes
        ),
        channel_indices=tuple(
            replace(index, labels=classes(index.labels)) for _, facts in node_facts for index in facts.channel_indices
        ),
        kinds={node.key: facts.kind for node, facts in node_facts},
        labels={name: compact(labels) for name, labels in propagation.labels.items()},
        shapes=propagation.shapes,
        unsolved=tuple(find_unsolved(propagation)),
        largest={node.key: facts.largest for node, facts in node_facts if facts.largest is not None},
        born=propagation.classes.born,
        feeds=feeds,
        implied_axes=tuple(
            replace(implied, labels=classes(implied.labels))
            for _, facts in node_facts
            for implied in facts.implied_axes
        ),
        implied_numbers=tuple(
            replace(implied, labels=classes(implied.labels))
            for _, facts in node_facts
            for implied in facts.implied_numbers
        ),
    )


def kept_classes(dependencies: DependencyGraph, keep: Mapping[str, Labels]) -> NDArray[np.bool_]:
    """Whether each class stays; the last element answers for -1, which always does."""
    kept = np.ones(dependencies.born + 1, dtype=np.bool_)
    for group in dependencies.groups:
        if group.name in keep:
            kept[group.labels] = False
            kept[keep[group.name]] = True
    return kept
