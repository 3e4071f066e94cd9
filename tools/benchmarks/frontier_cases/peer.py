"""What every peer is asked: the model, the samples, the MACs that may be left, a setting, and where to write."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from benchmarks.frontier_cases.counting import cost

BATCH = 64


@dataclass
class Job:
    """One question; `target` is in MACs of the original."""

    model: Path
    data: Path
    out: Path
    macs: float
    method: str
    setting: str

    @property
    def target(self) -> float:
        return self.macs * cost(onnx.load(self.model)).macs

    def samples(self) -> npt.NDArray[np.float32]:
        """All calibration samples, float32, as the model reads them."""
        loaded: npt.NDArray[np.float32] = np.load(self.data)["input"]
        return loaded

    def finish(self, model: onnx.ModelProto, searched: float) -> None:
        """Write the model, and say how many seconds went into the search for matched MACs."""
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, self.out)
        print(json.dumps({"search_seconds": searched}))


def asked() -> Job:
    """The job on the command line."""
    parser = argparse.ArgumentParser()
    for name in ("model", "data", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--macs", type=float, required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--setting", required=True)
    return Job(**vars(parser.parse_args()))


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start
