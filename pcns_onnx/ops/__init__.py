"""Facts about operators, one entry per operator; importing the package fills the table."""

from __future__ import annotations

from pcns_onnx.ops import barriers, intact, joining, linear, movement, norms, pointwise, pooling, transposed
from pcns_onnx.ops.facts import (
    Bilinear,
    Flow,
    Heads,
    Kind,
    Labels,
    Linear,
    LinearOp,
    Pick,
    Ride,
    Site,
    Size,
    Window,
    axes_of,
    flow_of,
    rules,
)

__all__ = [
    "Bilinear", "Flow", "Heads", "Kind", "Labels", "Linear", "LinearOp", "Pick", "Ride", "Site", "Size",
    "Window", "axes_of", "barriers", "flow_of", "intact", "joining", "linear", "movement", "norms", "pointwise",
    "pooling", "rules", "transposed",
]  # fmt: skip
