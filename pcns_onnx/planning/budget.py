"""What a caller allows: limits on costs, and on what may be lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pcns_onnx.cost.model import RESOURCES, Resource
from pcns_onnx.errors import InputError

Quality = Literal["error", "drop"]


QUALITIES: tuple[Quality, ...] = ("error", "drop")


@dataclass(frozen=True)
class Budget:
    """A limit that the shrunk model must keep.

    On costs (`RESOURCES`): the fraction of the original's that may be left. On quality
    (`QUALITIES`), on samples that were not solved on: 'error', the relative L2 error of any output, and
    'drop', the points of accuracy (or metric) that may be lost.
    """

    resource: Resource | Quality
    limit: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """'macs=0.5' -> Budget; raises `InputError`."""
        name, _, value = text.partition("=")
        try:
            limit = float(value)
        except ValueError:
            limit = float("nan")
        resource = next((r for r in (*RESOURCES, *QUALITIES) if r == name), None)
        if resource is None or not 0 < limit <= (100 if resource in QUALITIES else 1):
            raise InputError(
                f"budget '{text}' is not understood: write macs=0.5, params=0.4 or latency=0.6, fractions in (0, 1], "
                "error=0.1 (relative) or drop=1 (points)"
            )
        return cls(resource, limit)

    @property
    def is_cost(self) -> bool:
        """Whether it limits a cost, not the quality."""
        return self.resource in RESOURCES
