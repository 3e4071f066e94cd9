"""Limits that make a run a gate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pcns_onnx.evaluation.metric import Metric

_COMMANDS = "shrink compare"


@dataclass(frozen=True)
class GateOptions:
    """What may be lost at most.

    `max_error`: the relative L2 error of any output; `max_drop`: points of accuracy, or of the `metric`.
    """

    max_error: float | None = field(
        default=None,
        metadata={
            "commands": _COMMANDS,
            "interval": "0 or more",
            "help": "Gate: largest relative L2 error of any output.",
            "described": False,
        },
    )
    max_drop: float | None = field(
        default=None,
        metadata={
            "commands": _COMMANDS,
            "interval": "0 or more",
            "help": "Gate: most points of accuracy (or metric) that may be lost.",
            "described": False,
        },
    )
    metric: str | Metric | None = field(
        default=None,
        metadata={
            "commands": _COMMANDS,
            "metavar": "MODULE:FUNCTION",
            "help": "A score: (outputs of a batch, labels) -> float, or pcns_onnx.metrics:yolo and the like.",
            "described": False,
        },
    )
