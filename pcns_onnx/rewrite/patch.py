"""A patch is a list of printable edits, applied to a copy.

Edits address nodes by key and inputs by position, never initializers by name, so shared
weights and shared biases come apart by themselves. The same patch is applied to the float32
graph that is captured from and to the stored one, whose types are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from pcns_onnx.graph import Array, Graph
from pcns_onnx.graph.quantized_weights import take_input
from pcns_onnx.numerics.quantization import Takes


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
class TakeInput:
    """Input `position` of node `key` keeps some places along its axes: (axis, places), in this order."""

    key: str
    position: int
    takes: Takes = field(repr=False)

    def apply(self, graph: Graph) -> None:
        """Make the edit."""
        take_input(graph, self.key, self.position, self.takes)

    def __str__(self) -> str:
        taken = ", ".join(f"{len(places)} places of axis {axis}" for axis, places in self.takes)
        return f"input {self.position} of '{self.key}' := {taken}"


@dataclass(frozen=True)
class SetAttributes:
    """Attributes of node `key`; None takes one away."""

    key: str
    attributes: tuple[tuple[str, float | list[int] | None], ...]

    def apply(self, graph: Graph) -> None:
        """Make the edit."""
        graph.set_attributes(self.key, **dict(self.attributes))

    def __str__(self) -> str:
        return f"attributes of '{self.key}' := {dict(self.attributes)}"


@dataclass(frozen=True)
class SetNumbers:
    """Some elements of a 1-d input that is put together in the graph: (element, value)."""

    key: str
    position: int
    numbers: tuple[tuple[int, int], ...]

    def apply(self, graph: Graph) -> None:
        """Make the edit."""
        graph.set_numbers(self.key, self.position, dict(self.numbers))

    def __str__(self) -> str:
        return f"elements of input {self.position} of '{self.key}' := {dict(self.numbers)}"


class Edit(Protocol):
    """One change of one node, `key`, that can be printed."""

    @property
    def key(self) -> str:
        """The node that is changed."""

    def apply(self, graph: Graph) -> None:
        """Make the edit, in place."""


Patch = tuple[Edit, ...]


def apply(graph: Graph, patch: Patch) -> Graph:
    """A copy of `graph` with all edits made, in order."""
    result = graph.copy()
    edit(result, patch)
    return result


def edit(graph: Graph, patch: Patch) -> None:
    """Make all edits in order, in place."""
    for change in patch:
        change.apply(graph)
