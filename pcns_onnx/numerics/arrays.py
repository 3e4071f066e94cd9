"""NumPy or CuPy behind one name: the array namespace `xp` that all numeric code is handed.

CuPy is imported here and nowhere else, and only when the CUDA provider is in use. Numeric
code asks an array for its namespace (`namespace_of`) instead of importing one, so the same
lines run on the host, on the GPU and, in the tests, under array-api-strict.
"""

from __future__ import annotations

import importlib
import platform
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.errors import UnsupportedError

Array = Any  # a NumPy, CuPy or array-api-strict array
_UNIT = 1e-3
"""How far the length of a unit row may be from 1."""


def array_module(device: str) -> Any:
    """The array namespace for `device` ('cpu' or 'cuda')."""
    if device == "cpu":
        return np
    try:
        cupy = importlib.import_module("cupy")
        namespace = importlib.import_module("array_api_compat.cupy")
    except ImportError:
        raise UnsupportedError(
            "device 'cuda' needs CuPy: install the extra with `pip install 'pcns-onnx[cuda]'`, or use --device cpu"
        ) from None
    if not cupy.cuda.is_available():
        raise UnsupportedError("device 'cuda' was asked for but no CUDA device is visible; use --device cpu")
    return namespace


def processor(device: str) -> str:
    """What `device` is, as far as it tells: two machines of one name run the same code equally fast."""
    if device == "cuda":
        cupy = importlib.import_module("cupy")
        return str(cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode())
    try:
        text = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "cpu family", "model", "stepping", "cache size", "flags", "CPU part", "Features")
    pairs = (line.partition(":") for line in text.splitlines())
    return "; ".join(value.strip() for name, _, value in pairs if name.strip() in wanted) or platform.machine()


def namespace_of(*arrays: Array) -> Any:
    """The namespace that the arrays belong to; NumPy if all are NumPy."""
    for array in arrays:
        if array is not None and not isinstance(array, np.ndarray):
            module = type(array).__module__.partition(".")[0]
            return array_module("cuda") if module == "cupy" else array.__array_namespace__()
    return np


def to_numpy(array: Array) -> NDArray[Any]:
    """A host copy of an array of any backend (no copy for NumPy)."""
    if isinstance(array, np.ndarray):
        return array
    get = getattr(array, "get", None)
    return np.asarray(get() if get is not None else array)


def synchronize() -> None:
    """Wait for the GPU's queued work, before another library reads the same memory."""
    importlib.import_module("cupy").cuda.get_current_stream().synchronize()


def wrap_device_memory(pointer: int, nbytes: int, shape: tuple[int, ...], dtype: Any, owner: object) -> Array:
    """A CuPy array over memory that onnxruntime's CUDA provider owns: no copy is made.

    `owner` is kept alive by the array.
    """
    cupy = importlib.import_module("cupy")
    memory = cupy.cuda.UnownedMemory(pointer, nbytes, owner)
    return cupy.ndarray(shape, dtype=dtype, memptr=cupy.cuda.MemoryPointer(memory, 0))


def without_common_infinities(a: Array, b: Array) -> tuple[Array, Array]:
    """Two arrays of floats with zeros where both hold the same infinity or NaN: a mask that a model puts out."""
    xp = namespace_of(a)
    finite = xp.isfinite(a)
    if bool(xp.all(finite)):
        return a, b
    common = ~finite & ((a == b) | (xp.isnan(a) & xp.isnan(b)))
    return xp.where(common, xp.zeros_like(a), a), xp.where(common, xp.zeros_like(b), b)


def has_unit_rows(values: NDArray[Any]) -> bool:
    """Whether the last axis holds directions: vectors of length 1, of more than one number and with signs."""
    if values.ndim < 2 or values.shape[-1] < 2 or not values.size:
        return False
    with np.errstate(all="ignore"):  # a damaged model gives any number
        lengths = np.linalg.norm(values.astype(np.float64), axis=-1)
        return bool(np.all(np.abs(lengths - 1) < _UNIT) and (values < 0).any())
