"""The widths that a group may take."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.dependency.groups import Group
from pcns_onnx.runtime.targets.registry import ONNXRUNTIME, Multiples, target_named

INT8_LEAST = 16
"""Channels that a Conv keeps where int8 follows: onnxruntime's integer kernel takes longer for 8 or 12 than for 16."""


@dataclass(frozen=True)
class GridRules:
    """What holds for the grids of all groups.

    Widths are multiples of `multiple` ('auto': as timed, else `multiples`, which the runtime likes), a Conv keeps
    `least_conv` channels, and with `drops` a residual block may go as a whole.
    """

    multiple: str = "auto"
    least_conv: int = 1
    drops: bool = False
    multiples: Multiples = ONNXRUNTIME.multiples

    @classmethod
    def of(cls, multiple: int | str, *, drops: bool, int8: bool = False, target: str = "auto") -> GridRules:
        """The rules where `multiple` was asked for; `int8`: layers become integers afterwards; `target`: for whom."""
        least = INT8_LEAST if int8 and multiple == "auto" else 1
        return cls(str(multiple), least, drops, target_named(target).multiples)

    def widths(self, group: Group, kind: str, step: int | None = None, finer: int = 1) -> NDArray[np.int64]:
        """The grid of a group, whose first writer is a `kind`; `step` is the multiple that pays on this machine.

        What is liked is made `finer` by this factor; a multiple that was asked for is not.
        """
        widths = grid(group, kind, self.multiple, step, finer, self.multiples)
        if not kind.startswith("Conv"):
            return widths
        return widths[widths >= min(self.least_conv // group.unit, group.width)]


def grid(
    group: Group,
    kind: str,
    multiple: str,
    step: int | None = None,
    finer: int = 1,
    multiples: Multiples = ONNXRUNTIME.multiples,
) -> NDArray[np.int64]:
    """Widths (numbers of classes) that a group may take, ascending, its own included.

    'auto' is what this machine likes (`step`, see `cost.latency_model`) where that was measured, and else what the
    kernels of the runtime like (`multiples`).
    """
    channels = group.width * group.unit
    liked = multiples.at(kind, channels)
    wanted = max(1, (liked if step is None else step) // finer) if multiple == "auto" else int(multiple)
    step = lcm(wanted // gcd(wanted, group.unit), group.step)
    return np.unique(np.append(np.arange(step, group.width, step), group.width))


def snap(width: float, widths: NDArray[np.int64]) -> int:
    """The width of the grid nearest to `width`, the smaller one on a tie."""
    return int(widths[int(np.argmin(np.abs(widths - width)))])
