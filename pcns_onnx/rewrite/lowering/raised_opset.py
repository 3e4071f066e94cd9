"""The operator set that int8 needs: an older model is converted, and refused where that changes what it computes."""

from __future__ import annotations

from typing import Any

import numpy as np

from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph, at_least_opset
from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples

OPSET = 13
"""The first in which a DequantizeLinear has a scale per channel."""

ROUNDING = 1e-3
"""Of an output, between two versions of a float32 model that mean the same."""


def raised(small: Graph, calibration: Samples, engine: Engine) -> Graph:
    """The model at the opset that int8 needs; raises `InputError` where onnx makes another model of it."""
    raised = at_least_opset(small, OPSET)
    if raised is not small:
        batch = next(iter(calibration))
        before, after = (engine.session(graph.program()).run(batch.feeds) for graph in (small, raised))
        for name, value in before.items():
            if not _is_close(value, after[name]):
                raise InputError(
                    f"onnx's version converter makes another model of it: at opset {OPSET}, which int8 needs, output "
                    f"'{name}' differs; export the model at opset {OPSET} or later"
                )
    return raised


def _is_close(a: Any, b: Any) -> bool:
    """Whether two arrays (or texts, or sequences) are the same but for the rounding of float32."""
    if isinstance(a, list):
        return len(a) == len(b) and all(_is_close(*pair) for pair in zip(a, b, strict=True))
    one, other = (to_numpy(value) for value in (a, b))
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.kind != "f":
        return bool((one == other).all())
    largest = np.abs(one[np.isfinite(one)]).max(initial=0)
    return bool(np.allclose(one, other, rtol=ROUNDING, atol=ROUNDING * largest, equal_nan=True))
