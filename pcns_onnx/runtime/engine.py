"""onnxruntime behind a small door: sessions, providers, device arrays.

This is the only module that imports onnxruntime (but for its quantiser, see `rewrite.lowering.quantize`); the package's
`__init__` has switched its telemetry off before. On CUDA, inputs and outputs are bound to
device memory and handed over as CuPy arrays, so activations never cross to the host.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pcns_onnx.errors import InputError, UnsupportedError, first_line
from pcns_onnx.files import Scratch
from pcns_onnx.graph import Program
from pcns_onnx.numerics.arrays import Array, array_module, synchronize, to_numpy, wrap_device_memory

_KERNEL = "_kernel_time"


class _Event(msgspec.Struct):
    """One line of onnxruntime's profile."""

    name: str = ""
    cat: str = ""
    dur: float = 0
    args: dict[str, Any] = {}


def _onnxruntime() -> Any:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError:
        raise UnsupportedError(
            "onnxruntime is not installed: `pip install 'pcns-onnx[cpu]'` for CPU or `pip install 'pcns-onnx[cuda]'` "
            "for NVIDIA GPUs (one of the two, never both)"
        ) from None


@dataclass(frozen=True)
class Kernel:
    """One kernel of an optimised model: its node's name, its operator, and seconds for every run, in order."""

    name: str
    op: str
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Engine:
    """Where models run: `device` is 'cpu' or 'cuda', `threads` 0 means onnxruntime's default.

    `libraries` are paths of custom operators that every session registers. `target`: the runtime that models are
    timed in (`runtime.targets`); all else runs here.
    """

    device: str = "cpu"
    threads: int = 0
    libraries: tuple[str, ...] = ()
    target: str = "onnxruntime"

    @property
    def xp(self) -> Any:
        """The array namespace that captured tensors live in."""
        return array_module(self.device)

    @property
    def provider(self) -> str:
        """The onnxruntime execution provider's name."""
        return "CUDAExecutionProvider" if self.device == "cuda" else "CPUExecutionProvider"

    @property
    def clock(self) -> Callable[[], float]:
        """What to time runs with, in seconds.

        A single thread on the CPU is the caller's: its own time counts, not that in which the
        machine does something else.
        """
        return time.thread_time if self.device == "cpu" and self.threads == 1 else time.perf_counter

    def session(self, program: Program, *, spinning: bool = False, profiled: bool = False) -> Session:
        """Compile a program; raises `InputError` if onnxruntime refuses it.

        Between runs onnxruntime's threads spin by default: right for a server, and for timings,
        but here they would take the cores from the linear algebra in between. A `profiled` one
        keeps time of every kernel, for `Session.kernels`.
        """
        return Session(program, self, spinning, profiled)


def choose_engine(device: str, threads: int = 0, libraries: tuple[str, ...] = ()) -> Engine:
    """Resolve 'auto', 'cpu' or 'cuda' to an engine that this machine can really run; try the `libraries`."""
    ort = _onnxruntime()
    # A bare name would be looked for by the loader, everywhere but in the current folder.
    libraries = tuple(os.path.abspath(path) for path in libraries)
    _register(ort.SessionOptions(), libraries)
    available = "CUDAExecutionProvider" in ort.get_available_providers()
    if device == "auto":
        if not available:
            return Engine("cpu", threads, libraries)
        try:
            array_module("cuda")
        except UnsupportedError:
            return Engine("cpu", threads, libraries)
        return Engine("cuda", threads, libraries)
    if device == "cuda":
        if not available:
            raise UnsupportedError(
                "device 'cuda' was asked for but this onnxruntime has no CUDA provider: install the extra with "
                "`pip install 'pcns-onnx[cuda]'` (and uninstall onnxruntime first), or use --device cpu"
            )
        array_module("cuda")
    return Engine(device, threads, libraries)


def providers() -> list[str]:
    """The execution providers of this onnxruntime; raises `UnsupportedError` where there is none."""
    return [str(name) for name in _onnxruntime().get_available_providers()]


def versions() -> dict[str, str]:
    """Version of onnxruntime, for reports."""
    return {"onnxruntime": str(_onnxruntime().__version__)}


@contextmanager
def silenced() -> Iterator[None]:
    """Without warnings on stderr by sessions that others open, whatever level they forget to set; after that they warn
    as by default."""
    ort = _onnxruntime()
    ort.set_default_logger_severity(4)
    try:
        yield
    finally:
        ort.set_default_logger_severity(2)


class Session:
    """One compiled model on one engine."""

    def __init__(self, program: Program, engine: Engine, spinning: bool, profiled: bool = False) -> None:
        ort = _onnxruntime()
        options = ort.SessionOptions()
        self._folder = Scratch() if profiled else None
        if self._folder is not None:
            options.enable_profiling = True
            options.profile_file_prefix = os.path.join(self._folder.name, "kernels")
        options.log_severity_level = 4
        _register(options, engine.libraries)
        options.use_deterministic_compute = True
        options.add_session_config_entry("session.force_spinning_stop", "0" if spinning else "1")
        if engine.threads:
            options.intra_op_num_threads = engine.threads
        providers = [engine.provider]
        if engine.device == "cuda":
            providers.append("CPUExecutionProvider")
        # onnxruntime reads contents where they lie, so they have to live as long as the session does.
        self._weights = [_ort_value(ort, value) for value in program.weights.values()]
        options.add_external_initializers(list(program.weights), self._weights)
        self._session = _compiled(ort, program.model, options, providers)
        if engine.provider not in self._session.get_providers():
            raise UnsupportedError(f"onnxruntime could not start its {engine.provider}; use --device cpu")
        self._engine = engine
        self.inputs = tuple(i.name for i in self._session.get_inputs())
        self._half = {i.name for i in self._session.get_inputs() if i.type == "tensor(float16)"}
        self.kinds = {o.name: str(o.type) for o in self._session.get_outputs()}  # as onnxruntime writes types
        self.outputs = tuple(o.name for o in self._session.get_outputs())  # one may be there twice
        plain = all(k.startswith("tensor(") and "string" not in k for k in self.kinds.values())
        self._is_bound = engine.device == "cuda" and plain  # sequences and texts do not lie on a device

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs for one batch, as arrays of the engine's namespace; float16 inputs are cast."""
        wanted = {name: feeds[name] for name in self.inputs}
        wanted.update({name: wanted[name].astype(np.float16) for name in self._half})
        try:
            if self._is_bound:
                return self._run_bound(wanted)
            if self._engine.device == "cuda":
                wanted = {name: to_numpy(array) if hasattr(array, "shape") else array for name, array in wanted.items()}
            return dict(zip(self.outputs, self._session.run(None, wanted), strict=True))
        except UnsupportedError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{n} {tuple(a.shape)}" for n, a in wanted.items())
            raise InputError(f"onnxruntime failed on a batch of {shapes}: {first_line(error)}") from None

    def kernels(self) -> tuple[Kernel, ...]:
        """What the kernels of a profiled session took, to the microsecond; it keeps no more time after that."""
        assert self._folder is not None, "only a profiled session keeps time"
        with self._folder:
            return kernels_in(Path(self._session.end_profiling()).read_bytes())

    def _run_bound(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        ort = _onnxruntime()
        binding = self._session.io_binding()
        kept = []
        for name, array in feeds.items():
            if isinstance(array, np.ndarray) and array.dtype.hasobject:
                binding.bind_cpu_input(name, array)  # texts stay on the host
            elif isinstance(array, np.ndarray):
                value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", 0)
                binding.bind_ortvalue_input(name, value)
                kept.append(value)
            else:
                array = self._engine.xp.asarray(array, order="C")
                kept.append(array)
                binding.bind_input(name, "cuda", 0, array.dtype.type, array.shape, array.data.ptr)
        if any(not isinstance(array, np.ndarray) for array in feeds.values()):
            synchronize()
        for name in self.outputs:
            binding.bind_output(name, "cuda", 0)
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return {name: _wrap(value) for name, value in zip(self.outputs, binding.get_outputs(), strict=True)}


def kernels_in(profile: bytes) -> tuple[Kernel, ...]:
    """The kernels of a profile as onnxruntime writes it."""
    durations: dict[tuple[str, str], list[float]] = {}
    for event in msgspec.json.decode(profile, type=list[_Event]):
        if event.cat == "Node" and event.name.endswith(_KERNEL):
            key = event.name.removesuffix(_KERNEL), str(event.args.get("op_name", ""))
            durations.setdefault(key, []).append(event.dur * 1e-6)
    return tuple(Kernel(name, op, tuple(seconds)) for (name, op), seconds in durations.items())


def _compiled(ort: Any, model: bytes, options: Any, providers: list[str]) -> Any:
    """A session, less optimised where the optimiser cannot make one; raises `InputError` if there is none at all.

    Outputs in the middle of a model are what its fusions do not expect: of a Transpose, a Gemm and a Transpose they
    make one Gemm, though the one between is an output. Without fallback: that one prints to stdout, and tries again
    without the contents beside the model, whose error speaks of a file that is none.
    """
    levels, first = ort.GraphOptimizationLevel, ""
    for level in (None, levels.ORT_ENABLE_BASIC, levels.ORT_DISABLE_ALL):
        if level is not None:
            options.graph_optimization_level = level
        try:
            return ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
        except Exception as error:  # onnxruntime raises its own untyped family
            first = first or first_line(error)
    raise InputError(f"onnxruntime cannot load the model: {first}")


def _register(options: Any, libraries: tuple[str, ...]) -> None:
    for path in libraries:
        if not os.path.isfile(path):
            raise InputError(f"--custom-ops '{path}' does not exist: give the path of a shared library")
        try:
            options.register_custom_ops_library(path)
        except Exception as error:
            raise InputError(f"--custom-ops '{path}' cannot be registered: {first_line(error)}") from None


def _ort_value(ort: Any, value: Array) -> Any:
    """An array as onnxruntime holds it, not copied."""
    if value.dtype.name == "bfloat16":  # NumPy has no name for it: it goes by its number in ONNX
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(value.view(np.uint16), 16)
    return ort.OrtValue.ortvalue_from_numpy(value)


_ELEMENT_TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def _wrap(value: Any) -> Array:
    kind = value.data_type()
    shape = tuple(value.shape())
    if kind not in _ELEMENT_TYPES or value.device_name() != "cuda" or 0 in shape:
        return array_module("cuda").asarray(value.numpy())
    dtype = np.dtype(_ELEMENT_TYPES[kind])
    return wrap_device_memory(value.data_ptr(), int(np.prod(shape)) * dtype.itemsize, shape, dtype, value)


Tensors = dict[str, Array]
