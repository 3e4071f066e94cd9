"""What of a model may be narrowed, and the sizes that it leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from pcns_onnx.errors import InputError

if TYPE_CHECKING:
    from pcns_onnx.ops import Heads

Contract = Literal["keep", "narrow"]
"""Whether what a caller carries from run to run keeps its shape."""


@dataclass(frozen=True)
class Scope:
    """Which layers and which kinds of width.

    `include` and `exclude` are globs on layer names (one or a list). `coupled` false leaves channels alone
    that several blocks share. `depth` false keeps all blocks, however little they do. `low_rank`: layers whose outputs
    cannot get fewer may become two of lower rank, where that was measured to pay. `heads`: take the same dimensions
    from all attention heads ('width') or whole heads ('whole'). `states`, `caches`: what a caller carries from run to
    run keeps its shape ('keep'), or gets narrower at both ends ('narrow'): states of recurrent layers, K and V of
    attention. `shape`: sizes of inputs that the model leaves open ('input=1x3x224x224').
    """

    include: str | Sequence[str] = field(
        default=(),
        metadata={
            "commands": "inspect shrink plan advise explore",
            "metavar": "GLOB",
            "help": {"": "Only layers of these names.", "inspect": "Trials of layers of these names only."},
        },
    )
    exclude: str | Sequence[str] = field(
        default=(),
        metadata={
            "commands": "inspect shrink plan advise explore",
            "metavar": "GLOB",
            "help": {"": "Leave layers of these names alone.", "inspect": "No trials of layers of these names."},
        },
    )
    coupled: bool = field(
        default=True,
        metadata={
            "commands": "shrink plan advise explore",
            "flag": "--no-coupled",
            "help": "Leave channels alone that several blocks share (residual streams, concatenations).",
        },
    )
    depth: bool = field(
        default=True,
        metadata={"commands": "shrink advise explore", "flag": "--keep-blocks", "help": "Drop no residual block."},
    )
    low_rank: bool = field(
        default=False,
        metadata={
            "commands": "shrink plan",
            "help": "Layers that cannot get narrower may become two of lower rank.",
        },
    )
    heads: Heads = field(
        default="width",
        metadata={
            "commands": "inspect shrink plan expand compare advise explore",
            "metavar": "width|whole",
            "choices": ("width", "whole"),
            "help": "Attention: narrow every head (width) or take whole heads.",
        },
    )
    states: Contract = field(
        default="keep",
        metadata={
            "commands": "inspect shrink plan explore",
            "metavar": "keep|narrow",
            "choices": ("keep", "narrow"),
            "help": "States that are inputs and outputs: keep their shape, or narrow both ends (of recurrent layers, "
            "and others that --carry names).",
        },
    )
    caches: Contract = field(
        default="keep",
        metadata={
            "commands": "inspect shrink plan explore",
            "metavar": "keep|narrow",
            "choices": ("keep", "narrow"),
            "help": "Caches of K and V: keep their shape, or narrow past and present, all layers alike.",
        },
    )
    shape: str | Sequence[str] = field(
        default=(),
        metadata={
            "commands": "inspect shrink plan expand compare design diff heal advise quantize explore",
            "metavar": "NAME=1x3x224x224",
            "help": "Sizes of an input that the model leaves open.",
        },
    )

    def __post_init__(self) -> None:
        self.shapes()

    def wants(self, name: str) -> bool:
        """Whether `include` and `exclude` let a layer of this name through."""
        included = not self.include or any(fnmatchcase(name, pattern) for pattern in self.include)
        return included and not any(fnmatchcase(name, pattern) for pattern in self.exclude)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of inputs that the caller states: 'input=1x3x224x224' -> {'input': (1, 3, 224, 224)}."""
        stated = {}
        for text in self.shape:
            name, _, sizes = text.rpartition("=")
            parts = sizes.lower().split("x")
            if not name or not all(part.isdecimal() and int(part) > 0 for part in parts):
                raise InputError(f"--shape {text} is not understood: write a name and sizes, as in input=1x3x224x224")
            stated[name] = tuple(int(part) for part in parts)
        return stated
