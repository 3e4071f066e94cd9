"""The targets: a record each, with what holds of a runtime wherever it runs.

`multiples` are measured (`tools/benchmarks/widths.py`, docs/runtimes.md), not guessed. How models are timed there is
in the module of the same name as the record's `module`, which is imported when it is asked for: it offers `version`
(None where the runtime is not installed) and `open_timer`. A new target is a record here and such a module.
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
class Target:
    """A runtime: its `name` as options write it, its `title`, its `multiples`, and how to `install` it.

    `threads`: so many whatever is asked for; 0: as many as are asked for.
    """

    name: str
    title: str
    multiples: Multiples
    module: str
    install: str = ""
    threads: int = 0


ONNXRUNTIME = Target("onnxruntime", "onnxruntime", Multiples(conv=((1, 4), (32, 8), (128, 16))), "onnxruntime")
"""What models are run with here; by the names of its devices."""

_OTHERS = (
    Target(
        "openvino",
        "OpenVINO",
        Multiples(conv=((1, 4), (32, 8), (128, 16))),
        "openvino",
        "`pip install 'pcns-onnx[openvino]'`",
    ),
    Target(
        "onnxruntime-web",
        "onnxruntime-web",
        Multiples(conv=((1, 4),)),
        "onnxruntime_web",
        "`npm install onnxruntime-web` in this folder, with Node 20 or later",
        threads=1,
    ),
)

TARGETS = {target.name: target for target in (ONNXRUNTIME, *_OTHERS)}
DEVICES = ("auto", "cpu", "cuda")
CHOICES = (*DEVICES, *(target.name for target in _OTHERS))
"""What `--target` takes: a device of onnxruntime, or another runtime."""


def target_named(name: str) -> Target:
    """The record of a choice, or of an engine's `target`."""
    return ONNXRUNTIME if name in DEVICES else TARGETS[name]
