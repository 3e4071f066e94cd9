"""What a run writes beside the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Outputs:
    """Files beside the model, and the model in fewer bits.

    `html`: a page to read, beside the `report` for programs; `command` is what it says was run. `int8` and `fp16`:
    make these of the shrunk model, too; for int8 `multiple` auto leaves a Conv 16 channels.
    """

    plan_out: str | Path | None = field(
        default=None,
        metadata={"commands": "shrink", "metavar": "PLAN.json", "help": "Write the plan.", "described": False},
    )
    report: str | Path | None = field(
        default=None,
        metadata={
            "commands": "shrink compare heal quantize",
            "metavar": "FILE",
            "help": "Write the report as JSON.",
            "described": False,
        },
    )
    html: str | Path | None = field(
        default=None,
        metadata={
            "commands": "shrink compare heal advise quantize",
            "metavar": "FILE.html",
            "help": "Write the report as a page to read (extra: html).",
            "described": False,
        },
    )
    command: str | None = field(default=None, metadata={"commands": "", "help": "", "described": False})
    int8: bool = field(
        default=False,
        metadata={
            "commands": "shrink",
            "help": "Quantise the result, too (static, on DATA): OUT.int8.onnx beside OUT.onnx.",
            "described": False,
        },
    )
    fp16: bool = field(
        default=False,
        metadata={
            "commands": "shrink quantize",
            "help": {
                "": "Write the result in float16, too: OUT.fp16.onnx beside OUT.onnx.",
                "quantize": "Write float16, not int8.",
            },
            "described": False,
        },
    )

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that are made of the shrunk model."""
        return tuple(kind for kind, asked in (("int8", self.int8), ("fp16", self.fp16)) if asked)
