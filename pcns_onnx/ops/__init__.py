"""Facts about operators, one entry per operator; importing the package fills the table."""

from __future__ import annotations

from pcns_onnx.ops import barriers, linear, movement, pointwise, pooling
from pcns_onnx.ops.facts import Flow, Kind, Labels, Linear, LinearOp, Ride, Site, Size, flow_of, rules

__all__ = [
    "Flow", "Kind", "Labels", "Linear", "LinearOp", "Ride", "Site", "Size",
    "barriers", "flow_of", "linear", "movement", "pointwise", "pooling", "rules",
]  # fmt: skip
