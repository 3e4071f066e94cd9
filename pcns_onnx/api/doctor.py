"""Can it run here, and with what? Versions, providers, processors, and what is missing.

What belongs to which extra is read from the package's own metadata, so that nothing can be forgotten.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from importlib import metadata

import msgspec
from threadpoolctl import threadpool_info

from pcns_onnx.errors import UnsupportedError
from pcns_onnx.numerics.arrays import array_module, processor
from pcns_onnx.runtime.engine import providers

_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
_DEVELOPMENT = ("test", "train", "paper")
"""Extras that nobody needs who only uses the tool."""


class Extra(msgspec.Struct, frozen=True):
    """One extra: versions by library, None where it is missing, and how to get it."""

    name: str
    libraries: dict[str, str | None]
    install: str


class Checkup(msgspec.Struct, frozen=True):
    """What is here. `problems` keep the tool from running, or make it run otherwise than one would think."""

    python: str
    system: str
    versions: dict[str, str | None]
    extras: list[Extra]
    providers: list[str]
    gpu: str | None
    no_gpu: str | None
    processor: str
    cpus: int
    usable_cpus: int
    pools: dict[str, int]
    environment: dict[str, str]
    problems: list[str]
    can_run: bool


def examine() -> Checkup:
    """Look at this machine; nothing is changed, and nothing raises."""
    needed = {name: _version(name) for name, extra in _requirements() if extra is None}
    runtimes = {name: _version(name) for name in _RUNTIMES}
    available, problems = list[str](), list[str]()
    try:
        available = providers()
    except (UnsupportedError, OSError) as error:  # a broken library does not even load
        problems.append(str(error))
    problems += [f"{name} is missing: `pip install {name}`" for name, version in needed.items() if version is None]
    if all(runtimes.values()):
        problems.append("onnxruntime and onnxruntime-gpu overwrite each other: uninstall both, then install one")
    gpu, no_gpu = _gpu(available)
    return Checkup(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        versions={"pcns-onnx": _version("pcns-onnx"), **needed, **{n: v for n, v in runtimes.items() if v}},
        extras=list(_extras()),
        providers=available,
        gpu=gpu,
        no_gpu=no_gpu,
        processor=_model_name(),
        cpus=os.cpu_count() or 1,
        usable_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        pools={f"{pool['internal_api']} {pool.get('version') or ''}".strip(): pool["num_threads"] for pool in
               threadpool_info()},
        environment={n: v for n in sorted(os.environ) if n.endswith("_NUM_THREADS") and (v := os.environ[n])},
        problems=problems,
        can_run=bool(available) and all(needed.values()),
    )  # fmt: skip


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> Iterator[tuple[str, str | None]]:
    """Libraries that the package names, each with its extra, None where it cannot do without."""
    for line in metadata.requires("pcns-onnx") or ():
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", line)
        if name is not None:
            yield name[0], extra[1] if extra else None


def _extras() -> Iterator[Extra]:
    by_extra: dict[str, dict[str, str | None]] = {}
    for name, extra in _requirements():
        if extra is not None and extra not in _DEVELOPMENT:
            by_extra.setdefault(extra, {})[name] = _version(name)
    for extra, libraries in by_extra.items():
        yield Extra(extra, libraries, f"pip install 'pcns-onnx[{extra}]'")


def _gpu(available: list[str]) -> tuple[str | None, str | None]:
    """The name of the GPU that would be used, or why there is none."""
    if "CUDAExecutionProvider" not in available:
        return None, "this onnxruntime has no CUDA provider: uninstall it, then `pip install 'pcns-onnx[cuda]'`"
    try:
        array_module("cuda")
        return processor("cuda"), None
    except Exception as error:  # CuPy raises its own untyped family where a driver is missing
        return None, str(error)


def _model_name() -> str:
    """The part of the processor's description that people know it by."""
    parts = processor("cpu").split("; ")
    return max((part for part in parts if "fpu" not in part), key=len)
