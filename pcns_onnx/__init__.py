"""pcns-onnx: trained networks made narrower after export, from an ONNX file and samples.

from pcns_onnx import shrink
result = shrink("model.onnx", "samples.npz", "small.onnx", budget="macs=0.5")
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing's own costs milliseconds in which Ctrl-C would show a traceback
if TYPE_CHECKING:
    from typing import Any

    from pcns_onnx.api.advise import advise
    from pcns_onnx.api.compare import compare
    from pcns_onnx.api.diff import Difference, diff
    from pcns_onnx.api.explore.exploration import explore
    from pcns_onnx.api.heal import HealResult, heal
    from pcns_onnx.api.inspect import inspect
    from pcns_onnx.api.plan import PlanResult, plan
    from pcns_onnx.api.quantize import QuantizeResult, quantize
    from pcns_onnx.api.shrink import ShrinkResult, shrink
    from pcns_onnx.api.training.design import DesignResult, design, ungrouped
    from pcns_onnx.api.training.expand import ExpandResult, expand
    from pcns_onnx.data.conform import Normalize
    from pcns_onnx.errors import GateError, InputError, NothingToShrinkError, PcnsError, UnsupportedError
    from pcns_onnx.report.advice.record import Advice
    from pcns_onnx.report.explore.record import Exploration
    from pcns_onnx.report.schema import Inspection, Report

# OpenBLAS's idle threads spin for milliseconds after each product and take the cores from
# onnxruntime; read when NumPy is first imported, so it helps wherever this package comes first.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
# onnxruntime 1.32 queues telemetry as soon as it is imported, by whomever: its own tools, a worker, the user. Whoever
# sets the variable, to 0 too, has decided otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "shrink": "api.shrink", "inspect": "api.inspect", "compare": "api.compare", "ShrinkResult": "api.shrink",
    "design": "api.training.design", "ungrouped": "api.training.design", "DesignResult": "api.training.design",
    "plan": "api.plan", "PlanResult": "api.plan",
    "advise": "api.advise", "Advice": "report.advice.record",
    "explore": "api.explore.exploration", "Exploration": "report.explore.record",
    "quantize": "api.quantize", "QuantizeResult": "api.quantize",
    "diff": "api.diff", "Difference": "api.diff",
    "expand": "api.training.expand", "ExpandResult": "api.training.expand",
    "heal": "api.heal", "HealResult": "api.heal",
    "Inspection": "report.schema", "Report": "report.schema", "Normalize": "data.conform",
    "PcnsError": "errors", "InputError": "errors", "UnsupportedError": "errors",
    "NothingToShrinkError": "errors", "GateError": "errors",
}  # fmt: skip

__all__ = [
    "Advice", "DesignResult", "Difference", "ExpandResult", "Exploration", "GateError", "HealResult", "InputError",
    "Inspection", "Normalize", "NothingToShrinkError", "PcnsError", "PlanResult", "QuantizeResult", "Report",
    "ShrinkResult", "UnsupportedError", "advise", "compare", "design", "diff", "expand", "explore", "heal", "inspect",
    "plan", "quantize", "shrink", "ungrouped",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import on first use: onnx and onnxruntime take a second that `--help` should not."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'pcns_onnx' has no attribute '{name}'")
    return getattr(import_module(f"pcns_onnx.{_HOMES[name]}"), name)
