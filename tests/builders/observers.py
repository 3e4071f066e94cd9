"""Observers that worker processes can import: a test module has no name there."""

from __future__ import annotations

from pcns_onnx.numerics.moments import Moments
from pcns_onnx.runtime.executor import Sides


class OutputMoments:
    """Moments of the model's output, and the numbers of the batches that were seen, in order."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.moments = Moments(10, 0)
        self.batches: list[int] = []

    def begin(self, sides: Sides) -> None:
        self.first = float(sides[0]["logits"][0, 0])

    def update(self, index: int, sides: Sides) -> None:
        assert self.first is not None, "every shard starts from what the first batch settled"
        self.moments.update(sides[0]["logits"])
        self.batches.append(index)

    def merge(self, other: OutputMoments) -> None:
        self.first = other.first
        self.moments.merge(other.moments)
        self.batches += other.batches
