"""Which samples are used, and how files become what a model takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pcns_onnx.data.conform import Normalize
    from pcns_onnx.data.preprocess import Preprocess
    from pcns_onnx.data.sources import DataSource

_ALL = "inspect shrink plan expand compare design"


@dataclass(frozen=True)
class DataOptions:
    """Samples, batches and preprocessing.

    `holdout` is the share of the samples kept from the solve for the check, unless `eval` gives others. `trials`: how
    many batches of every size `inspect` draws.
    """

    normalize: Normalize | None = field(
        default=None,
        metadata={
            "commands": _ALL,
            "metavar": "MEAN STD",
            "help": "uint8 images to float: (x/255 - MEAN) / STD; comma-separated per channel.",
        },
    )
    preprocess: str | None = field(
        default=None,
        metadata={
            "commands": _ALL,
            "metavar": "KEY=VALUE,...",
            "help": "Images: resize=256,crop=224,mean=...,std=...,layout=NCHW,channels=RGB. "
            "Texts: tokenizer=tokenizer.json,length=128,text=COLUMN.",
        },
    )
    samples: int | None = field(
        default=None, metadata={"commands": _ALL, "least": 1, "help": "Use so many samples of the data (seeded)."}
    )
    batch: int = field(
        default=64,
        metadata={
            "commands": _ALL,
            "least": 1,
            "help": "Samples per run, 64 by default; a model's fixed batch wins. Latency is measured at it.",
        },
    )
    holdout: float = field(
        default=0.1,
        metadata={
            "commands": "shrink plan",
            "interval": "[0, 0.5]",
            "help": "Share of the samples kept from the solve for the check (0.1).",
        },
    )
    eval: DataSource | None = field(
        default=None,
        metadata={"commands": "shrink", "metavar": "DATA", "help": "Check on this data instead.", "described": False},
    )
    trials: int | None = field(
        default=None,
        metadata={
            "commands": "inspect",
            "metavar": "N",
            "least": 1,
            "help": "Run PCNS on N batches of every size: error there and elsewhere.",
            "described": False,
        },
    )
    seed: int = field(
        default=0, metadata={"commands": _ALL, "least": 0, "help": "Seed of everything that is drawn (0)."}
    )

    def __post_init__(self) -> None:
        self.preparing()

    def preparing(self) -> Preprocess | None:
        """How files of images and texts become arrays; raises `InputError`."""
        if self.preprocess is None:
            return None
        from pcns_onnx.data.preprocess import Preprocess

        return Preprocess.parse(self.preprocess)
