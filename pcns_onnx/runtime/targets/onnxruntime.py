"""onnxruntime as a target: the sessions that models run with here anyway."""

from __future__ import annotations

from collections.abc import Mapping

from pcns_onnx.graph import Program
from pcns_onnx.numerics.arrays import Array
from pcns_onnx.runtime.engine import Engine, Kernel, versions


class SessionTimer:
    """A session with its feeds, timed by the engine's clock."""

    def __init__(
        self, engine: Engine, program: Program, feeds: Mapping[str, Array], spinning: bool, profiled: bool
    ) -> None:
        self._clock, self._feeds = engine.clock, feeds
        self._session = engine.session(program, spinning=spinning, profiled=profiled)

    @staticmethod
    def version() -> str | None:
        """The version, of whichever device."""
        return versions()["onnxruntime"]

    def seconds(self) -> float:
        """Of one run."""
        start = self._clock()
        self._session.run(self._feeds)
        return self._clock() - start

    def kernels(self) -> tuple[Kernel, ...]:
        """What onnxruntime's profile says."""
        return self._session.kernels()

    def close(self) -> None:
        """Nothing: a session goes with its last reader."""
