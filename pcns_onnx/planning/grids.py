"""The widths that a group may take."""

from __future__ import annotations

from math import gcd

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.dependency.groups import Group


def grid(group: Group, kind: str, multiple: str, step: int | None = None) -> NDArray[np.int64]:
    """Widths (numbers of classes) that a group may take, ascending, its own included.

    'auto' is what this machine likes (`step`, see `timing`) where that was measured, and else what
    onnxruntime's CPU kernels like: Conv channels in sixteens (eights or fours in narrow layers),
    any width for Gemm and MatMul.
    """
    channels = group.width * group.unit
    liked = (16 if channels >= 64 else 8 if channels >= 32 else 4) if kind.startswith("Conv") else 1
    wanted = (liked if step is None else step) if multiple == "auto" else int(multiple)
    step = wanted // gcd(wanted, group.unit)
    return np.unique(np.append(np.arange(step, group.width, step), group.width))


def snap(width: float, widths: NDArray[np.int64]) -> int:
    """The width of the grid nearest to `width`, the smaller one on a tie."""
    return int(widths[int(np.argmin(np.abs(widths - width)))])
