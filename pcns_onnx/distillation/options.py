"""How the small model learns from its original."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Literal

LossChoice = Literal["auto", "kl", "mse", "cosine", "outputs", "states"]
AugmentChoice = Literal["auto", "none", "mirror", "shift"]
AcceptChoice = Literal["auto", "agreement", "strict"]

_BOTH = "shrink heal"


@dataclass(frozen=True)
class HealOptions:
    """Healing: the small model learns from its original.

    `heal` (of `shrink`) and `updates` (of the command `heal`): so many samples are shown to the student, in steps of
    `heal_batch`; 0, or None in `updates`: as many as suit the model (`distillation.schedule`). `rounds` (of `shrink`):
    in how many steps it shrinks, with healing after each. `freeze`: layers and initializers, as globs, whose weights
    stay. `resume`: go on where a killed run wrote its last checkpoint.
    """

    heal: int | None = field(
        default=None,
        metadata={
            "commands": "shrink",
            "metavar": "[N]",
            "least": 0,
            "optional": 0,
            "help": "Let the result learn from the original, N samples shown (as --updates) (extra: heal).",
        },
    )
    updates: int | None = field(
        default=None,
        metadata={
            "commands": "heal",
            "metavar": "N",
            "least": 0,
            "help": "Samples shown in all, each time counted; by itself up to 240,000, by the model's cost, and none "
            "over 100 times.",
        },
    )
    heal_batch: int | None = field(
        default=None,
        metadata={
            "commands": _BOTH,
            "metavar": "N",
            "least": 1,
            "help": "Samples per step of healing (64, fewer where that leaves few steps).",
        },
    )
    heal_loss: LossChoice = field(
        default="auto",
        metadata={
            "commands": _BOTH,
            "choices": ("auto", "kl", "mse", "cosine", "outputs", "states"),
            "help": "What the student minimises at each output (auto: by what the output is); with states also at what "
            "residual blocks hand on, with outputs not (auto: where outputs are embeddings).",
        },
    )
    heal_augment: AugmentChoice = field(
        default="auto",
        metadata={
            "commands": _BOTH,
            "choices": ("auto", "none", "mirror", "shift"),
            "help": "Show both models mirrored or shifted images, too (auto: where that cannot be wrong).",
        },
    )
    heal_accept: AcceptChoice = field(
        default="auto",
        metadata={
            "commands": _BOTH,
            "choices": ("auto", "agreement", "strict"),
            "help": "Take the healed model by labels or --metric (auto, where there are any), by its agreement with "
            "the original, or only if the loss falls, too.",
        },
    )
    rounds: int | None = field(
        default=None,
        metadata={
            "commands": "shrink",
            "metavar": "K",
            "least": 1,
            "help": "Shrink in K steps and heal after each: the budget is divided over them; most of N is "
            "for the last.",
        },
    )
    freeze: str | Sequence[str] = field(
        default=(),
        metadata={"commands": _BOTH, "metavar": "GLOB", "help": "Layers or initializers that healing leaves alone."},
    )
    heal_curve: bool = field(
        default=False,
        metadata={
            "commands": _BOTH,
            "help": "Heal on a quarter and a half of the samples, too: what would more bring? (Three times as long.)",
        },
    )
    resume: bool = field(
        default=False,
        metadata={
            "commands": "heal",
            "help": "Go on from the checkpoint beside OUT that a killed run has left.",
            "described": False,
        },
    )

    @property
    def unread(self) -> str | None:
        """An option that is given, though `shrink` is not to heal: nothing would come of it."""
        if self.heal is not None:
            return None
        own = [item for item in fields(self) if item.metadata["commands"] == _BOTH or item.name == "rounds"]
        return next((item.name for item in own if getattr(self, item.name) != item.default), None)

    def matching_none(self, names: Collection[str]) -> str | None:
        """The first glob of `freeze` that matches none of the names."""
        globs = (self.freeze,) if isinstance(self.freeze, str) else self.freeze
        return next((glob for glob in globs if not any(fnmatchcase(name, glob) for name in names)), None)

    @property
    def shown(self) -> int | None:
        """Samples shown in all as asked for; None or 0: as many as suit the model."""
        return (self.heal if self.updates is None else self.updates) or None
