"""Which samples are used, and how files become what a model takes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pcns_onnx.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from pcns_onnx.data.conform import Normalize
    from pcns_onnx.data.dataset import Feeding
    from pcns_onnx.data.formats.preprocess import Preprocess
    from pcns_onnx.data.sources import DataSource
    from pcns_onnx.graph import Layout, TensorSpec

_ALL = "inspect shrink plan expand compare design heal advise quantize explore"


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
            "commands": "shrink plan heal advise quantize explore",
            "interval": "[0, 0.5]",
            "help": "Share of the samples kept from the solve for the check (0.1).",
        },
    )
    eval: DataSource | None = field(
        default=None,
        metadata={
            "commands": "shrink heal advise quantize explore",
            "metavar": "DATA",
            "help": {
                "": "Check on this data, not on samples held out.",
                "advise": "Judge candidates on this data, not on --data.",
            },
            "described": False,
        },
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
    seed: int = field(default=0, metadata={"commands": _ALL, "least": 0, "help": "Seed of all random choices (0)."})

    def __post_init__(self) -> None:
        self.preparing()

    def preparing(self, near: Sequence[Path] = ()) -> Preprocess:
        """How files of images and texts become arrays; `near` are the folders of the model. Raises `InputError`."""
        from pcns_onnx.data.formats.preprocess import Preprocess

        return replace(Preprocess() if self.preprocess is None else Preprocess.parse(self.preprocess), near=tuple(near))


@dataclass(frozen=True)
class InputOptions:
    """Inputs without one row per sample.

    `constant` gives inputs that are the same in every run ('sr=16000'), or a mapping of names to values; a number
    fills the input's shape. `batch_axis` ('state=1') says where samples lie that the names of sizes do not tell.
    `carry` ('stateN=state'): within a sequence an output is fed back as the next step's input; consecutive samples of
    a file or a source are one sequence, or the second axis of arrays that have one more than the input. `decode`: each
    sample is a prompt, from which a decoder goes on by so many tokens of its own.
    `mask` names the input (samples, positions) of 0 and 1 that says what is no padding (None: the only one that is
    called a mask).
    """

    constant: str | Sequence[str] | Mapping[str, Any] = field(
        default=(),
        metadata={
            "commands": _ALL,
            "metavar": "NAME=VALUE|FILE",
            "help": "An input that is the same in every run: a number, [1, 2], .npy or .npz.",
        },
    )
    batch_axis: str | Sequence[str] = field(
        default=(),
        metadata={
            "commands": f"{_ALL} diff",
            "metavar": "NAME=1",
            "help": "The axis of an input that counts samples; NAME=none for none.",
        },
    )
    carry: str | Sequence[str] = field(
        default=(),
        metadata={
            "commands": _ALL,
            "metavar": "OUTPUT=INPUT",
            "help": "Within a sequence, an output is the next step's input; * stands for the same in both names.",
        },
    )
    decode: int | None = field(
        default=None,
        metadata={
            "commands": _ALL,
            "least": 1,
            "help": "Samples are prompts: the original goes on from each by N tokens, greedily, behind its own cache.",
        },
    )
    mask: str | None = field(
        default=None,
        metadata={
            "commands": _ALL,
            "metavar": "NAME",
            "help": "The input of 0 and 1 by which padding counts for nothing (the one called a mask).",
        },
    )

    def __post_init__(self) -> None:
        self.axes()
        self.carries()
        self.constants()

    def axes(self) -> dict[str, int | None]:
        """The axis of the samples by input, None for an input without: 'state=1' -> {'state': 1}."""
        stated = dict[str, int | None]()
        for text in self.batch_axis:
            name, _, axis = text.rpartition("=")
            if not name or not (axis.isdecimal() or axis == "none"):
                raise InputError(f"--batch-axis {text} is not understood: write a name and an axis, as in state=1")
            stated[name] = None if axis == "none" else int(axis)
        return stated

    def carries(self) -> dict[str, str]:
        """Input -> the output that is fed back to it: 'stateN=state' -> {'state': 'stateN'}."""
        fed_back = dict[str, str]()
        for text in self.carry:
            output, _, name = text.rpartition("=")
            if not output or not name or name in fed_back:
                raise InputError(f"--carry {text} is not understood: write an output and its input, as in stateN=state")
            fed_back[name] = output
        return fed_back

    def matching(self, inputs: Sequence[str], outputs: Sequence[str]) -> InputOptions:
        """The same for a model with these inputs and outputs: 'present.*=past.*' is written out, pair by pair.

        Raises InputError for a pattern that no pair matches.
        """
        texts = list[str]()
        for name, output in self.carries().items():
            if "*" not in output + name:
                texts.append(f"{output}={name}")
                continue
            pairs = list(_pairs(output, name, outputs, inputs))
            if not pairs:
                raise InputError(f"--carry {output}={name} matches no output with an input of the model")
            texts += [f"{a}={b}" for a, b in pairs]
        return replace(self, carry=tuple(texts))

    def feeding(self, inputs: Sequence[TensorSpec], layout: Layout, shapes: Mapping[str, Sequence[int]]) -> Feeding:
        """How a model with these inputs is fed; `shapes` are sizes that it leaves open. Raises `InputError`."""
        from pcns_onnx.data.conform import settled_constants
        from pcns_onnx.data.dataset import Feeding

        values = {name: value for name, value in self.constants().items() if name not in layout.stored}
        arrays, layout = settled_constants(values, inputs, layout, shapes)
        return Feeding(layout, arrays, tuple(self.carries()))

    def constants(self) -> dict[str, Any]:
        """By input, what `constant` says of it."""
        if isinstance(self.constant, Mapping):
            return dict(self.constant)
        texts = dict[str, Any]()
        for text in self.constant:
            name, _, value = text.partition("=")
            if not name or not value:
                raise InputError(f"--constant {text} is not understood: write a name and a value, as in sr=16000")
            texts[name] = value
        return texts


def _pairs(output: str, name: str, outputs: Sequence[str], inputs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Outputs with inputs in whose names the stars of both patterns stand for the same."""
    pattern = re.compile("(.*)".join(map(re.escape, output.split("*"))))
    parts, known = name.split("*"), set(inputs)
    for candidate in outputs:
        match = pattern.fullmatch(candidate)
        if match is None or len(match.groups()) != len(parts) - 1:
            continue
        other = "".join(text for pair in zip(parts, (*match.groups(), ""), strict=True) for text in pair)
        if other in known:
            yield candidate, other
