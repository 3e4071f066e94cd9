"""Limits that make a run a gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pcns_onnx.calibration.output_weight import OutputWeight, output_weights

if TYPE_CHECKING:
    from pcns_onnx.evaluation.metric import Metric

_COMMANDS = "shrink compare heal advise quantize"


@dataclass(frozen=True)
class GateOptions:
    """What may be lost at most.

    `max_error`: the relative error of any output, each channel in its own scale; `max_drop`: points of accuracy, or of
    the `metric`. `output_weight`: how much an output counts ('boxes=2'), or some of its channels ('y[4:84]=3'), in
    what is planned as in what is checked; all count 1.
    """

    max_error: float | None = field(
        default=None,
        metadata={
            "commands": _COMMANDS,
            "interval": "0 or more",
            "help": {
                "": "Gate: largest relative error of any output, each channel in its own scale.",
                "advise": "Recommend what errs by so much at most, where outputs decide nothing (0.1).",
            },
            "described": False,
        },
    )
    max_drop: float | None = field(
        default=None,
        metadata={
            "commands": _COMMANDS,
            "interval": "0 or more",
            "help": {
                "": "Gate: most points of accuracy (or metric) that may be lost.",
                "advise": "Recommend what loses so many points of accuracy (or metric) at most (a hundredth of them).",
            },
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
    output_weight: str | Sequence[str] = field(
        default=(),
        metadata={
            "commands": "shrink plan compare heal advise quantize explore",
            "metavar": "NAME[3:8]=W",
            "help": "How much an output (or some of its channels) counts.",
        },
    )

    def weights(self, outputs: Sequence[str]) -> tuple[OutputWeight, ...]:
        """What counts more or less than 1, of a model with these outputs; raises `InputError`."""
        texts = (self.output_weight,) if isinstance(self.output_weight, str) else self.output_weight
        return output_weights(texts, outputs)
