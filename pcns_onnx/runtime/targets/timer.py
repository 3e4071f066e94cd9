"""A model opened in the runtime that it is meant for, and timed there run by run.

Whatever times models goes through `open_timer`, with the engine that models run with here: its `target` says in which
runtime time is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

from pcns_onnx.errors import UnsupportedError
from pcns_onnx.graph import Program
from pcns_onnx.numerics.arrays import Array
from pcns_onnx.runtime.engine import Engine, Kernel
from pcns_onnx.runtime.targets.registry import ONNXRUNTIME, TargetRuntime, target_named


class Timer(Protocol):
    """A compiled model that holds what it is fed."""

    @staticmethod
    def version() -> str | None:
        """The runtime's version, None where it is not installed."""

    def seconds(self) -> float:
        """Seconds of one run, by the runtime's own clock; raises `InputError` where it fails."""

    def kernels(self) -> tuple[Kernel, ...]:
        """What the kernels of a profiled one took in each run so far; it keeps no more time after that."""

    def close(self) -> None:
        """Let go of the model."""


def open_timer(
    engine: Engine,
    program: Program,
    feeds: Mapping[str, Array],
    *,
    spinning: bool = False,
    profiled: bool = False,
) -> Timer:
    """Compile a program for these feeds; raises `InputError` where the runtime refuses it.

    `spinning`: threads may spin between runs; `profiled`: kernels are timed, too.
    """
    timer: Timer = _timer(target_of(engine))(engine, program, feeds, spinning, profiled)
    return timer


def target_of(engine: Engine) -> TargetRuntime:
    """The runtime that this engine's models are timed in."""
    return target_named(engine.target)


def can_profile(engine: Engine) -> bool:
    """Whether the runtime says what each kernel takes."""
    return target_of(engine) is not ONNXRUNTIME or engine.device == "cpu"


def version_of(target: TargetRuntime) -> str | None:
    """The version that is installed here, None where there is none."""
    version: str | None = _timer(target).version()
    return version


def timed_in(engine: Engine) -> str:
    """The runtime, as reports name it: onnxruntime's provider, or name and version of another."""
    target = target_of(engine)
    return engine.provider if target is ONNXRUNTIME else f"{target.title} {version_of(target)}"


def timed_on(engine: Engine) -> str:
    """The device that models are timed on: 'cpu' or 'cuda'."""
    return engine.device if target_of(engine) is ONNXRUNTIME else "cpu"


def timed_threads(engine: Engine) -> int:
    """With how many threads models are timed, 0 for the runtime's default."""
    return target_of(engine).threads or engine.threads


def missing(target: TargetRuntime) -> str | None:
    """What to install to time with it, None where nothing is missing."""
    if version_of(target) is not None:
        return None
    return f"{target.title} is not installed here: {target.install}"


def require(target: TargetRuntime) -> None:
    """Raise `UnsupportedError` where the runtime is not installed."""
    message = missing(target)
    if message is not None:
        raise UnsupportedError(f"--target {target.name} measures latency in that runtime, but {message}")


def _timer(target: TargetRuntime) -> Any:
    """The class of a target's timers."""
    module, _, name = target.timer.partition(".")
    return getattr(import_module(f"pcns_onnx.runtime.targets.{module}"), name)
