"""Where a model runs, by whom, and in how much memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pcns_onnx.errors import InputError
from pcns_onnx.runtime.memory import MemoryBudget, parse_bytes
from pcns_onnx.runtime.targets.registry import CHOICES, DEVICES

_ALL = "inspect shrink plan expand compare design heal advise quantize explore"


@dataclass(frozen=True)
class RuntimeOptions:
    """The device and its limits.

    `target`: the runtime that the result is meant for: latency is measured in it, and widths are multiples that it
    likes; a device is onnxruntime's, and that of the run, too. `workers` more processes,
    or those of a Dask `scheduler` ('tcp://host:8786'), take over what gathers moments.
    `memory` ('4GB'): what is gathered at once keeps to shares of it. `custom_ops`: libraries of operators that
    onnxruntime registers. `batch_latency`: the batch that latency is measured at (None: `batch`).
    """

    device: str = field(
        default="auto",
        metadata={
            "commands": _ALL.replace(" advise", ""),  # which has --target
            "choices": ("auto", "cpu", "cuda"),
            "help": "Where to run (auto: CUDA where there is a GPU).",
        },
    )
    target: str = field(
        default="auto",
        metadata={
            "commands": "shrink plan advise explore compare",
            "choices": CHOICES,
            "metavar": "|".join(CHOICES),
            "help": {
                "": "The runtime that latency is measured in; widths are multiples that it likes (auto: onnxruntime).",
                "compare": "The runtime that latency is measured in (auto: onnxruntime).",
            },
        },
    )
    threads: int = field(
        default=0,
        metadata={
            "commands": _ALL,
            "least": 0,
            "help": "Threads of onnxruntime and of the linear algebra (0: their default).",
        },
    )
    workers: int | None = field(
        default=None,
        metadata={
            "commands": "shrink plan",
            "metavar": "N",
            "least": 1,
            "help": "Share the passes over the data among N processes (Dask).",
            "described": False,
        },
    )
    scheduler: str | None = field(
        default=None,
        metadata={
            "commands": "shrink plan",
            "metavar": "ADDRESS",
            "help": "Share them among the workers of this Dask scheduler.",
            "described": False,
        },
    )
    memory: str | int | None = field(
        default=None,
        metadata={
            "commands": _ALL,
            "metavar": "4GB",
            "help": "Stay within so much memory, by more passes over the data; an error where that cannot be done.",
            "described": False,
        },
    )
    custom_ops: str | Path | Sequence[str] = field(
        default=(),
        metadata={
            "commands": _ALL,
            "metavar": "LIB",
            "help": "A library of operators for onnxruntime.",
            "described": False,
        },
    )
    batch_latency: int | None = field(
        default=None,
        metadata={
            "commands": "shrink plan advise quantize explore",
            "metavar": "N",
            "least": 1,
            "help": {
                "": "Measure latency at batches of N (as --batch).",
                "advise": "Measure latency at batches of N (1).",
            },
            "described": False,
        },
    )

    def __post_init__(self) -> None:
        if self.target in DEVICES and self.target != "auto":
            if self.device not in ("auto", self.target):
                raise InputError(
                    f"--target {self.target} and --device {self.device} contradict each other: give one of them"
                )
            object.__setattr__(self, "device", self.target)
        if self.workers is not None and self.scheduler is not None:
            raise InputError("--workers and --scheduler both say who runs the batches: give one of the two")
        if self.memory is not None:
            parse_bytes(self.memory)

    @property
    def budget(self) -> MemoryBudget:
        """How much may be gathered at once."""
        return MemoryBudget.of(None if self.memory is None else parse_bytes(self.memory))

    @property
    def libraries(self) -> tuple[str, ...]:
        """Paths of the libraries of custom operators."""
        paths = (self.custom_ops,) if isinstance(self.custom_ops, str | os.PathLike) else self.custom_ops
        return tuple(os.fspath(path) for path in paths)
