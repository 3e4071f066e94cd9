"""What a budget may limit: costs of the model, and what it may lose. A row says all there is to know of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pcns_onnx.dependency.layers import Layer, Unsolved
    from pcns_onnx.graph import Graph
    from pcns_onnx.rewrite.canonical import Canonical


@dataclass(frozen=True)
class Counter:
    """How a cost adds up: of a layer's weights, of its bias, of a node that is not solved for.

    `totals`: what the graph that is solved holds in all, and the original; where None, that is the sum of its nodes.
    """

    weights: Callable[[Layer], float]
    bias: Callable[[Layer], int]
    node: Callable[[Unsolved], int]
    totals: Callable[[Canonical, Graph], tuple[float, float]] | None = None


@dataclass(frozen=True)
class Resource:
    """One row: `name` as budgets write it, `label` as tables show it, `example` as messages do.

    `most` is the largest limit. A cost is a fraction of the original's that may be left; it adds up over the layers
    (`counter`), or is known only where they were timed on this machine (`is_timed`).
    """

    name: str
    label: str
    example: str
    most: float = 1.0
    counter: Counter | None = None
    is_timed: bool = False

    @property
    def is_cost(self) -> bool:
        """Whether it is a cost, as against something that may be lost."""
        return self.counter is not None or self.is_timed


_WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a stored value."""


def _parameters(form: Canonical, graph: Graph) -> tuple[float, float]:
    """Parameters of what would be written; layers that are put as two have more than their form."""
    added = graph.parameters - form.twin.parameters
    return form.emitted.parameters + added, form.original.parameters


def _file_sizes(form: Canonical, graph: Graph) -> tuple[float, float]:
    """Sizes of the files that would be written, counted in stored values."""
    added = graph.parameters - form.twin.parameters
    width = _WIDTHS[form.original.storage]
    return form.emitted.nbytes / width + added, form.original.nbytes / width


def _weights(layer: Layer) -> int:
    return 0 if layer.is_repeated else layer.parameters - (0 if layer.bias.absent else layer.width)


_STORED = Counter(
    weights=_weights,
    bias=lambda layer: 0 if layer.has_first_bias else layer.width,
    node=lambda node: node.parameters,
    totals=_parameters,
)

_FILED = replace(_STORED, weights=lambda layer: layer.room * _weights(layer), totals=_file_sizes)

RESOURCES: dict[str, Resource] = {
    resource.name: resource
    for resource in (
        Resource(
            "macs",
            "MACs",
            "macs=0.5",
            counter=Counter(lambda layer: layer.macs, lambda layer: 0, lambda node: node.macs),
        ),
        Resource("params", "parameters", "params=0.4", counter=_STORED),
        Resource("size", "bytes of the file", "size=0.5", counter=_FILED),
        Resource("latency", "latency", "latency=0.6", is_timed=True),
    )
}
"""Costs, in the order of the vectors of `cost.model`: what is timed comes last."""

QUALITIES: dict[str, Resource] = {
    resource.name: resource
    for resource in (
        Resource("error", "relative error of an output", "error=0.1 (relative)", most=100.0),
        Resource("drop", "points of accuracy", "drop=1 (points)", most=100.0),
    )
}
"""What may be lost, on samples that were not solved on."""

COUNTED: tuple[str, ...] = tuple(name for name, row in RESOURCES.items() if row.counter is not None)
"""Costs that are added up over the layers."""
TIMED: tuple[str, ...] = tuple(name for name, row in RESOURCES.items() if row.is_timed)
"""Costs that a run takes, as measured."""
