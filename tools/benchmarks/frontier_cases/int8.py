"""onnxruntime's static quantisation as is usual on CPU: QDQ, uint8 activations by min-max, int8 weights per channel.

python -m benchmarks.frontier_cases.int8 MODEL DATA OUT
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pcns_onnx  # noqa: F401  # isort: skip  # before onnxruntime, whose telemetry it switches off
import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

BATCH = 64


class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped library
    """Batches of the calibration samples."""

    def __init__(self, data: Path) -> None:
        samples = np.load(data)["input"]
        self._batches: Iterator[dict[str, Any]] = iter(
            [{"input": samples[i : i + BATCH]} for i in range(0, len(samples), BATCH)]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


def main() -> None:
    model, data, out = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.onnx"
        quant_pre_process(model, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            out,
            Reader(data),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )


if __name__ == "__main__":
    main()
