"""Layers that share a weight are solved as one: one V over the rows of all, and a bias for each that is stored.

    min over V, b_u of  sum over uses u of  E|y_u - V x'_u - b_u|²

Uses with the same stored bias pool their rows as they are; those with biases of their own are centred each
by itself, V is solved on what is left, and b_u = mean(y_u) - V mean(x'_u).

A unit can be solved when the inputs of all its uses are: its nodes are put in that order (a head on every level of a
pyramid comes after all levels). A cell that is used again on what it made itself has no such order. It is solved on
what the shrunk model makes with the weights that it has so far, twice.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import Array
from pcns_onnx.numerics.ridge import AnyEvidence, Fit, fit_jointly
from pcns_onnx.ops import Labels
from pcns_onnx.reconstruction.targets import TargetObserver
from pcns_onnx.runtime.executor import Sides

Unit = tuple[Layer, ...]
"""All layers that have one stored weight, in order."""

ROUNDS = 2
"""How often a cell is solved whose inputs depend on its own outputs."""


def solving_order(graph: Graph, units: Sequence[Unit]) -> tuple[list[str], frozenset[str]]:
    """The nodes of `graph` such that all inputs of a unit come before its first use, else as they are.

    Also the names (of the first layers) of units for which there is no such order.
    """
    unit_of = {layer.key: unit for unit in units if len(unit) > 1 for layer in unit}
    keys, circular = [node.key for node in graph.nodes], set[str]()
    position = {key: at for at, key in enumerate(keys)}
    made_by = {name: node.key for node in graph.nodes for name in node.outputs if name}
    needs = {
        node.key: {made_by[name] for name in (*node.inputs, *node.captures) if name in made_by} for node in graph.nodes
    }
    own = {key: set(sources) for key, sources in needs.items()}
    for key, unit in unit_of.items():
        needs[key] = set().union(*(own[layer.key] for layer in unit))
    readers: dict[str, list[str]] = {}
    for key, sources in needs.items():
        for source in sources:
            readers.setdefault(source, []).append(key)
    waiting, done = {key: len(sources) for key, sources in needs.items()}, set[str]()
    ready, order = [position[key] for key in keys if not waiting[key]], list[str]()
    heapq.heapify(ready)
    while len(order) < len(keys):
        if not ready:  # every unit that is left depends on itself: the first one goes as it is
            stuck = next(key for key in keys if key in unit_of and key not in done and own[key] <= done)
            circular.add(unit_of[stuck][0].name)
            for layer in unit_of[stuck]:
                needs[layer.key] = own[layer.key]
                waiting[layer.key] = len(own[layer.key] - done)
                if not waiting[layer.key] and layer.key not in done:
                    heapq.heappush(ready, position[layer.key])
            continue
        key = keys[heapq.heappop(ready)]
        done.add(key)
        order.append(key)
        for reader in readers.get(key, ()):
            if key in needs[reader]:
                waiting[reader] -= 1
                if not waiting[reader] and reader not in done:
                    heapq.heappush(ready, position[reader])
    return order, frozenset(circular)


class JointObserver:
    """What is known of each block of a unit, by bias: `members` gather for the bias of their number in `biases`."""

    def __init__(self, members: Sequence[TargetObserver], biases: Sequence[int]) -> None:
        self._members, self._biases = list(members), list(biases)

    def begin(self, sides: Sides) -> None:
        """Choose what to keep, by how many rows the first inputs give together."""
        rows = sum(member.expected_rows(sides) for member in self._members)
        for bias in sorted(set(self._biases)):
            alike = [member for member, own in zip(self._members, self._biases, strict=True) if own == bias]
            alike[0].begin(sides, rows)
            for member in alike[1:]:
                member.evidence = alike[0].evidence

    def update(self, index: int, sides: Sides) -> None:
        """Take a batch in."""
        for member in self._members:
            member.update(index, sides)

    def merge(self, other: JointObserver) -> None:
        """Add what was gathered of later batches."""
        if not self._members[0].evidence:
            self._members = other._members
            return
        merged = set[int]()
        for member, others, bias in zip(self._members, other._members, self._biases, strict=True):
            if bias not in merged:
                member.merge(others)
                merged.add(bias)

    def fits(self, priors: Sequence[Array], guess: float | None) -> list[Fit]:
        """By member, the fit of all blocks; `priors` are by block."""
        first = {
            bias: member.evidence for member, bias in reversed(list(zip(self._members, self._biases, strict=True)))
        }
        numbers = sorted(first)
        by_block: list[list[Fit]] = []
        for block, prior in enumerate(priors):
            evidence: list[AnyEvidence] = [first[number][block] for number in numbers]
            by_block.append(fit_jointly(evidence, prior, guess))
        joined: Mapping[int, Fit] = {
            number: Fit.joined([fits[at] for fits in by_block]) for at, number in enumerate(numbers)
        }
        return [joined[bias] for bias in self._biases]


def bias_numbers(graph: Graph, unit: Unit) -> list[int]:
    """By use, the number of its bias: that of an earlier use with the same one."""
    stored = [
        ("", 1.0) if use.bias.absent else (graph.node(use.bias.key).inputs[use.bias.position], use.bias.scale)
        for use in unit
    ]
    return [stored.index(bias) for bias in stored]


def layers_behind(graph: Graph, dependencies: DependencyGraph, keep: Mapping[str, Labels]) -> list[Layer]:
    """Layers to be solved: whose inputs differ from the original's, or those of another layer with their weight."""
    narrowed = {name for group in dependencies.groups if group.name in keep for name in group.readers}
    keys = {layer.key: layer for layer in dependencies.layers}
    while True:
        changed: set[str] = set()
        behind: list[Layer] = []
        for node in graph.nodes:
            layer = keys.get(node.key)
            touched = bool(changed.intersection((*node.inputs, *node.captures)))
            if layer is not None and not layer.fixed and (layer.name in narrowed or touched):
                behind.append(layer)
                touched = True
            if touched:
                changed.update(node.outputs)
        together = {use.name for layer in behind for use in dependencies.uses(layer)}
        if together <= {layer.name for layer in behind}:
            return behind
        narrowed |= together
