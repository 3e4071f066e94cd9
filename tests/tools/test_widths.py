"""The benchmark of widths: every layer runs, and its tables say what was measured."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.widths import LAYERS, measured, steps_table, times_table
from pcns_onnx.runtime.targets.registry import ONNXRUNTIME


@pytest.mark.parametrize("layer", LAYERS)
def test_every_width_is_timed(layer: str) -> None:
    seconds = measured(ONNXRUNTIME.name, layer, 3, 0.01)
    assert seconds.shape == (3,) and (seconds > 0).all()


def test_tables_say_times_and_the_multiple_that_pays() -> None:
    steps = np.ceil(np.arange(1, 33) / 16)
    times = {(ONNXRUNTIME.name, layer): 1e-5 * steps**2 for layer in LAYERS}
    assert "| 16 | 10 (1.0) |" in times_table(times, "Conv 3 x 3", [ONNXRUNTIME.name])
    assert "| 17 | 40 " in times_table(times, "Conv 3 x 3", [ONNXRUNTIME.name])
    assert "| onnxruntime | Conv 1 x 1 | 4 | 8 |" in steps_table(times, 32)
