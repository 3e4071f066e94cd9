"""How new weights are solved for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

STEPS = 150
"""Steps of refinement, unless others are asked for."""
STEPS_OF = {"low": 0, "normal": STEPS, "high": 4 * STEPS}
"""By effort."""

Effort = Literal["low", "normal", "high"]
Order = Literal["ascending", "descending"]


@dataclass(frozen=True)
class SolveOptions:
    """The re-fit and what follows it.

    `refit`: whether readers are solved again (None: as the method has it; 'pcns' can do without, the data-free
    methods do unless they are asked). `refine`: so many steps of nonlinear least squares per layer and its reader,
    after the re-fit (None: as many as the `effort` has, where neurons are kept). `order`: pcns in one pass per layer,
    or all from the original's activations, last layer first.
    """

    refit: bool | None = field(
        default=None,
        metadata={
            "commands": "shrink",
            "flag": "--refit/--no-refit",
            "help": "pcns: re-fit the reader (default), or the paper to the letter. "
            "Eigenremove, min-weight: solve the readers again on --data.",
        },
    )
    refine: int | None = field(
        default=None,
        metadata={
            "commands": "shrink",
            "metavar": "N",
            "least": 0,
            "help": "Steps of refinement per layer after its re-fit (150; 0: none).",
        },
    )
    effort: Effort = field(
        default="normal",
        metadata={
            "commands": "shrink",
            "metavar": "low|normal|high",
            "choices": tuple(STEPS_OF),
            "help": "Low: no refinement, no forecast. High: four times as many steps of refinement. "
            "--refine N overrides.",
        },
    )
    order: Order = field(
        default="ascending",
        metadata={
            "commands": "shrink",
            "metavar": "ascending|descending",
            "choices": ("ascending", "descending"),
            "help": "pcns: one pass per layer, or all from the original, last to first.",
        },
    )

    @property
    def steps(self) -> int:
        """Steps of refinement: as asked, else those of the effort."""
        return STEPS_OF[self.effort] if self.refine is None else self.refine
