"""Adam (Kingma and Ba 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pcns_onnx.numerics.arrays import Array, namespace_of

_DECAYS = (0.9, 0.99)


@dataclass
class Adam:
    """First and second moments of the gradients, bias-corrected."""

    mean: list[Array] = field(default_factory=list)
    square: list[Array] = field(default_factory=list)
    count: int = 0

    def directions(self, gradients: Sequence[Array]) -> list[Array]:
        """Steps of about one."""
        xp = namespace_of(gradients[0])
        if not self.mean:
            self.mean = [xp.zeros_like(g) for g in gradients]
            self.square = [xp.zeros_like(g) for g in gradients]
        self.count += 1
        a, b = _DECAYS
        self.mean = [a * m + (1 - a) * g for m, g in zip(self.mean, gradients, strict=True)]
        self.square = [b * s + (1 - b) * g * g for s, g in zip(self.square, gradients, strict=True)]
        lift, root = 1 / (1 - a**self.count), (1 - b**self.count) ** 0.5
        return [m * lift * root / (xp.sqrt(s) + 1e-20) for m, s in zip(self.mean, self.square, strict=True)]
