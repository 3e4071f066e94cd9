"""OpenVINO as a target: its own API, float32, the latency hint, inputs held (as its `benchmark_app` does).

With one thread a run is the caller's, so its own processor time counts. Counters of kernels are means over all runs by
the wall's clock, cut off to the microsecond: the first run is taken out of them, and what a run lost to other processes
is taken off the kernel that grew by it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.errors import InputError
from pcns_onnx.graph import Program
from pcns_onnx.numerics.arrays import Array, to_numpy
from pcns_onnx.runtime.engine import Engine, Kernel

_WISHES = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
"""Where the processor has bfloat16, float32 models would be computed in it."""
_OPS = {"FullyConnected": "MatMul", "MatMul": "MatMul", "Convolution": "Conv", "Reorder": "Reorder"}
_RECURRENT = ("LSTM", "GRU", "RNN")
"""Operators that lose their nodes' names."""
_LOST = 1e-4
"""Seconds by which a run's time by the wall may exceed its own, for it not to have been interrupted."""
_WHERE = ("Exception from", "Check '", "While validating", "FrontEnd API failed", "Model wasn't fully", "-- ")
"""How lines of an error begin that say where it was noticed."""
_TICK = 1e-6
"""Counters are whole multiples of it, cut off."""


@cache
def _core() -> Any:
    return import_module("openvino").Core()


class RequestTimer:
    """A compiled model with one infer request."""

    def __init__(
        self, engine: Engine, program: Program, feeds: Mapping[str, Array], spinning: bool, profiled: bool
    ) -> None:
        wishes = _WISHES | ({"INFERENCE_NUM_THREADS": engine.threads} if engine.threads else {})
        content = program.packed({name: tuple(array.shape) for name, array in feeds.items()})
        try:
            compiled = _core().compile_model(_core().read_model(content), "CPU", wishes | {"PERF_COUNT": profiled})
            self._request = compiled.create_infer_request()
            for port in compiled.inputs:
                value = to_numpy(feeds[port.any_name]).astype(port.element_type.to_dtype(), copy=False)
                self._request.set_tensor(port, import_module("openvino").Tensor(np.asarray(value, order="C")))
        except Exception as error:  # OpenVINO raises RuntimeError for everything
            raise InputError(f"OpenVINO cannot load the model: {_reason(error)}") from None
        self._clock = time.thread_time if engine.threads == 1 else time.perf_counter
        self._counters = Counters() if profiled else None

    @staticmethod
    def version() -> str | None:
        """OpenVINO's version, without the hash of its build."""
        try:
            return str(import_module("openvino").__version__).partition("-")[0]
        except (ImportError, OSError):  # not there, or its libraries do not load
            return None

    def seconds(self) -> float:
        """Of one run, its inputs in place."""
        wall, own = time.perf_counter(), self._clock()
        try:
            self._request.infer()
        except Exception as error:
            raise InputError(f"OpenVINO failed on a batch: {_reason(error)}") from None
        own = self._clock() - own
        if self._counters is not None:
            self._counters.ran(self._request, time.perf_counter() - wall - own)
        return own

    def kernels(self) -> tuple[Kernel, ...]:
        """The nodes of the compiled model by the names of ONNX's, each with its mean for every run."""
        assert self._counters is not None, "only a profiled one keeps time"
        return self._counters.kernels(self._request)

    def close(self) -> None:
        """Nothing: a request goes with its last reader."""


class Counters:
    """Totals of a request's kernels without the first run and without what was lost to other processes."""

    def __init__(self) -> None:
        self._runs, self._read = 0, 0
        self._base: NDArray[np.float64] = np.zeros(0)
        self._totals: NDArray[np.float64] = np.zeros(0)
        self._lost: NDArray[np.float64] = np.zeros(0)

    def ran(self, request: Any, lost: float) -> None:
        """Take note of a run that took `lost` seconds more by the wall's clock than by its own."""
        self._runs += 1
        if self._runs == 1:
            self._totals = self._base = self._now(request)
            self._lost, self._read = np.zeros(len(self._base)), 1
        elif lost > max(_LOST, 2 * _TICK * self._runs):
            now = self._now(request)
            usual = (self._totals - self._lost) / self._read * (self._runs - self._read)
            more = now - self._totals - usual
            at = int(np.argmax(more))  # none of them, where it was between two kernels
            self._lost[at] += max(min(lost, float(more[at])), 0.0)
            self._totals, self._read = now, self._runs

    def kernels(self, request: Any) -> tuple[Kernel, ...]:
        """The kernels, by the names of ONNX's nodes."""
        sums = self._now(request) - self._base - self._lost
        means = np.maximum(sums, 0.0) / max(self._runs - 1, 1) + _TICK / 2
        rows = zip(request.get_profiling_info(), self._base, means, strict=True)
        return tuple(
            Kernel(info.node_name.removesuffix("/WithoutBiases"), _op(info), (float(mean),) * self._runs)
            for info, first, mean in rows
            if first > 0  # what was no constant, and not optimised away
        )

    def _now(self, request: Any) -> NDArray[np.float64]:
        """Seconds of each kernel in all runs so far."""
        return np.array([info.real_time.total_seconds() * self._runs for info in request.get_profiling_info()])


def _op(info: Any) -> str:
    """ONNX's operator where a kernel may be named after what was fused to it, or by a number; '' where its name says
    what it is."""
    recurrent, is_numbered, _ = info.node_name.partition("Sequence_")
    if is_numbered and recurrent in _RECURRENT:
        return str(recurrent)
    return _OPS.get(info.node_type, "")


def _reason(error: Exception) -> str:
    """The line of an error of OpenVINO's that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(_WHERE)]
    return (telling or lines or [type(error).__name__])[0]
