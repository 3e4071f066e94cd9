"""What counts more at the outputs, by the user's word: `NAME=W`, or `NAME[3:8]=W` for some of an output's channels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pcns_onnx.errors import InputError

if TYPE_CHECKING:  # the command line reads options without NumPy
    import numpy as np
    from numpy.typing import NDArray

_FORM = re.compile(r"(?P<name>.+?)(\[(?P<start>\d*):(?P<stop>\d*)\])?=(?P<weight>[^=]+)")


@dataclass(frozen=True)
class OutputWeight:
    """How much the squared error of an output counts, or of its channels from `start` to before `stop`."""

    output: str
    weight: float
    start: int = 0
    stop: int | None = None

    @classmethod
    def parse(cls, text: str) -> OutputWeight:
        """From `NAME=W` or `NAME[A:B]=W`; raises `InputError`."""
        match = _FORM.fullmatch(text.strip())
        try:
            weight = float(match["weight"]) if match else -1.0
        except ValueError:
            weight = -1.0
        if match is None or not 0 <= weight < float("inf"):
            raise InputError(f"--output-weight '{text}' is not NAME=W or NAME[3:8]=W, with W a number of 0 or more")
        start, stop = int(match["start"] or 0), int(match["stop"]) if match["stop"] else None
        if stop is not None and stop <= start:
            raise InputError(f"--output-weight '{text}' names no channel: {start}:{stop} is empty")
        return cls(match["name"], weight, start, stop)

    def holds(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which channels, by their places along the output's feature axis, are meant; raises `InputError` if none."""
        stop = len(places) if self.stop is None else self.stop
        chosen = (places >= self.start) & (places < max(stop, places.max(initial=0) + 1 if self.stop is None else stop))
        if not chosen.any() or stop > len(places):
            meant = f"{self.output}[{self.start}:{stop}]"
            raise InputError(f"--output-weight '{meant}' names no channel: '{self.output}' has {len(places)}")
        return chosen


def output_weights(texts: Iterable[str], outputs: Sequence[str]) -> tuple[OutputWeight, ...]:
    """All of --output-weight; raises `InputError` for what is no output, or where nothing would count."""
    weights = tuple(OutputWeight.parse(text) for text in texts)
    unknown = next((item.output for item in weights if item.output not in outputs), None)
    if unknown is not None:
        names = ", ".join(f"'{name}'" for name in outputs)
        raise InputError(f"--output-weight names '{unknown}', which is no output: the model has {names}")
    ignored = {item.output for item in weights if not item.weight and not item.start and item.stop is None}
    if ignored >= set(outputs) and outputs:
        raise InputError("--output-weight leaves nothing that counts: give one output a weight above 0")
    return weights
