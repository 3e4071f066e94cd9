"""What a design says: one record, as JSON and as tables for a terminal."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import msgspec

SCHEMA = 1
Item = int | str


class DesignedLayer(msgspec.Struct, frozen=True):
    """One hidden layer: `filters` that it had, `significant` dimensions of its pre-activations, whether it `stays`.

    `explained` is the paper's PCA graph: the share of the variance in the first 1, 2, ... components.
    `rows` are the samples of the PCA (D), `sensitivity` the area above the graph (see `Spectrum`).
    """

    name: str
    kind: str
    filters: int
    significant: int
    stays: bool
    rows: int
    sensitivity: float
    explained: list[float]

    @property
    def rows_per_filter(self) -> float:
        """D/M; the paper asks for 100."""
        return self.rows / self.filters

    def dimensions(self, share: float) -> int:
        """The significant dimensions at another share of the variance."""
        return min(bisect_left(self.explained, share - 1e-12) + 1, self.filters)


class Architecture(msgspec.Struct, frozen=True):
    """A row of the paper's Table 2; `ops` and `params` are how many times fewer than the first row's."""

    configuration: list[Item]
    macs: int
    parameters: int
    ops: float
    params: float


class Blueprint(msgspec.Struct, frozen=True):
    """A design: the three rows of Table 2, what they come from, and the order in which layers can be pruned.

    `variance` is the share that was asked for, or found for `budget`. `prunable` names the layers from the
    one that can be pruned hardest to the most sensitive.
    """

    model: str
    variance: float
    budget: list[str]
    depth: str
    samples: int
    seed: int
    initial: Architecture
    significant: Architecture
    final: Architecture
    layers: list[DesignedLayer]
    prunable: list[str]
    warnings: list[str]
    schema: int = SCHEMA

    def json(self) -> bytes:
        """The record as indented JSON; the same design gives the same bytes."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


def configuration_text(items: Sequence[Item]) -> str:
    """A configuration as Table 2 writes it."""
    return "[" + ", ".join(str(item) if isinstance(item, int) else f"'{item}'" for item in items) + "]"
