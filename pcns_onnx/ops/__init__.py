"""Facts about operators, one entry per operator; importing the package fills the table from all modules here."""

from __future__ import annotations

from importlib import import_module
from pkgutil import walk_packages

from pcns_onnx.ops.computed_shapes import COUNTING, SIZE_INPUTS
from pcns_onnx.ops.facts import (
    MUST_STAY,
    Bilinear,
    Cell,
    ChannelCount,
    ChannelIndex,
    Frozen,
    Heads,
    ImpliedAxes,
    ImpliedNumber,
    Kind,
    Labels,
    Linear,
    LinearOp,
    OpContext,
    OperandPart,
    OpFacts,
    PerChannelConstant,
    Tie,
    Window,
    axes_of,
)
from pcns_onnx.ops.registry import bias_behind, facts_of, rules

for _module in walk_packages(__path__, f"{__name__}."):
    import_module(_module.name)

__all__ = [
    "COUNTING", "MUST_STAY", "SIZE_INPUTS", "Bilinear", "Cell", "ChannelCount", "ChannelIndex", "Frozen", "Heads",
    "ImpliedAxes", "ImpliedNumber", "Kind", "Labels", "Linear", "LinearOp", "OpContext", "OpFacts", "OperandPart",
    "PerChannelConstant", "Tie", "Window", "axes_of", "bias_behind", "facts_of", "rules",
]  # fmt: skip
