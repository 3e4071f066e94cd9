"""The targets: a record each, with what holds of a runtime wherever it runs.

`multiples` are measured (`tools/benchmarks/widths.py`, docs/runtimes.md), not guessed. How models are timed there is
said by a class (`timer`: module and name), which is imported when it is asked for. A new target is a record here and
such a class in a module of its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Multiples:
    """Multiples that widths are held to where nothing is timed: (from so many channels, multiple), ascending.

    `conv` is for Conv and ConvTranspose, `other` for Gemm, MatMul and what is computed by them.
    """

    conv: tuple[tuple[int, int], ...]
    other: tuple[tuple[int, int], ...] = ((1, 1),)

    def at(self, kind: str, channels: int) -> int:
        """The multiple for a layer of this kind with so many channels."""
        rows = self.conv if kind.startswith("Conv") else self.other
        return max((row for row in rows if row[0] <= channels), default=(1, 1))[1]


@dataclass(frozen=True)
class TargetRuntime:
    """A runtime: its `name` as options write it, its `title`, its `multiples`, and how to `install` it.

    `threads`: so many whatever is asked for; 0: as many as are asked for.
    """

    name: str
    title: str
    multiples: Multiples
    timer: str
    install: str = ""
    threads: int = 0


ONNXRUNTIME = TargetRuntime(
    "onnxruntime", "onnxruntime", Multiples(conv=((1, 4), (32, 8), (128, 16))), "onnxruntime.SessionTimer"
)
"""What models are run with here; by the names of its devices. From 64 channels on multiples of 16 pay, of MatMul, too:
finer ones are offered all the same, since most models that are planned without timings are not timed afterwards."""

_OTHERS = (
    TargetRuntime(
        "openvino",
        "OpenVINO",
        Multiples(conv=((1, 1), (64, 16)), other=((1, 1), (96, 16))),
        "openvino.RequestTimer",
        "`pip install 'pcns-onnx[openvino]'`",
    ),
    TargetRuntime(
        "onnxruntime-web",
        "onnxruntime-web",
        Multiples(conv=((1, 1),), other=((1, 1), (32, 8), (64, 16))),
        "onnxruntime_web.WebTimer",
        "`npm install onnxruntime-web` in this folder, with Node 20 or later",
        threads=1,
    ),
)

TARGETS = {target.name: target for target in (ONNXRUNTIME, *_OTHERS)}
DEVICES = ("auto", "cpu", "cuda")
CHOICES = (*DEVICES, *(target.name for target in _OTHERS))
"""What `--target` takes: a device of onnxruntime, or another runtime."""


def target_named(name: str) -> TargetRuntime:
    """The record of a choice, or of an engine's `target`."""
    return ONNXRUNTIME if name in DEVICES else TARGETS[name]
