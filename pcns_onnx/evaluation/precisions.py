"""The shrunk model in fewer bits: int8 by static quantisation, and float16.

int8 is onnxruntime's own recipe: constants folded and shapes inferred first, then QuantizeLinear
and DequantizeLinear around every layer, with

    q = clip(round(x / s) + z)      activations: 0..255, range (min, max) over the calibration samples
                                    weights: -127..127, z = 0, one s per output channel

after which its kernels compute in integers. Scales per channel need opset 13: an older model is
converted. float16 keeps inputs and outputs as they are. The bits are onnxruntime's work; here they
are asked for, checked and timed like the shrunk model itself. Source: onnxruntime.quantization and
onnxruntime.transformers.float16, both of which this module alone imports.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.api.inputs import at_latency_batch
from pcns_onnx.api.options import Options
from pcns_onnx.cost.benchmark import compare_many
from pcns_onnx.errors import InputError, UnsupportedError
from pcns_onnx.evaluation.agreement import Metric
from pcns_onnx.evaluation.gates import gates_of, time_both, verify
from pcns_onnx.graph import Graph, at_least_opset, constant_weights
from pcns_onnx.progress import Progress
from pcns_onnx.report.schema import Gate, Precision
from pcns_onnx.runtime.activations import Samples
from pcns_onnx.runtime.engine import Engine

OPSET = 13
"""The first in which a DequantizeLinear has a scale per channel."""


@dataclass(frozen=True)
class Lowered:
    """One model in fewer bits, what is reported of it, what the gates say, and what it warns of."""

    graph: Graph
    precision: Precision
    gates: list[Gate]
    warnings: list[str]


def beside(output: str | os.PathLike[str] | None, kind: str) -> Path | None:
    """Where the model of a precision goes: 'small.onnx' -> 'small.int8.onnx'."""
    return None if output is None else Path(output).with_suffix(f".{kind}{Path(output).suffix}")


def check_precisions(original: Graph, options: Options) -> None:
    """Raise `UnsupportedError` before any work where the model cannot be lowered."""
    if options.precisions and original.storage != "float32":
        raise UnsupportedError(
            f"--{options.precisions[0]} starts from float32, the model holds {original.storage}: export it in float32"
        )


def lower(
    engine: Engine,
    original: Graph,
    small: Graph,
    calibration: Samples,
    checked: Samples,
    metric: Metric | None,
    options: Options,
    progress: Progress,
) -> list[Lowered]:
    """The precisions of `options`, each compared with `original` on `checked` and timed against it and `small`."""
    found = []
    for kind in options.precisions:
        with progress.stage(kind):
            graph, warnings = in_precision(kind, small, calibration)
        agreement, more = verify(engine, original, graph, checked, metric, progress)
        timed = at_latency_batch(checked, options)
        latency = time_both(engine, original, graph, timed, progress)
        (on_top,) = compare_many(engine, small, [graph], timed)
        gates = [_named(gate, kind) for gate in gates_of(options, agreement)]
        precision = Precision(kind, graph.nbytes, agreement, latency, on_top)
        found.append(Lowered(graph, precision, gates, [f"{kind}: {text}" for text in (*warnings, *more)]))
    return found


def _named(gate: Gate, kind: str) -> Gate:
    """The same gate, named after the precision that it is for."""
    return Gate(f"{kind} {gate.name}", gate.limit, gate.value)


def in_precision(kind: str, small: Graph, calibration: Samples) -> tuple[Graph, list[str]]:
    """`small` as 'int8' (calibrated on samples) or 'fp16', and what onnxruntime's tools warned of.

    Raises `InputError` where they fail, and for models above 2 GB.
    """
    made: Callable[[Graph, Samples, Path], Any] = {"int8": _int8, "fp16": _float16}[kind]
    small = constant_weights(small)
    with tempfile.TemporaryDirectory(prefix="pcns-onnx-") as folder, _warnings() as warned:
        try:
            proto = made(small, calibration, Path(folder))
        except (InputError, UnsupportedError):
            raise
        except Exception as error:  # onnxruntime's tools raise anything
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"onnxruntime cannot make {kind} of the shrunk model: {cause[:240]}") from error
    _tidy(proto, small)
    graph = Graph.load(proto)
    for entry in small.proto.metadata_props:
        graph.set_metadata(entry.key, entry.value)
    graph.set_metadata("pcns_onnx.precision", kind)
    return graph, warned


def _int8(small: Graph, calibration: Samples, folder: Path) -> Any:
    tools = importlib.import_module("onnxruntime.quantization")
    prepare = importlib.import_module("onnxruntime.quantization.shape_inference").quant_pre_process
    prepared, quantised = folder / "prepared.onnx", folder / "int8.onnx"
    (folder / "small.onnx").write_bytes(at_least_opset(small, OPSET).serialize())
    prepare(folder / "small.onnx", prepared, skip_symbolic_shape=True)
    tools.quantize_static(
        prepared,
        quantised,
        _Reader(calibration),
        per_channel=True,
        activation_type=tools.QuantType.QUInt8,
        weight_type=tools.QuantType.QInt8,
    )
    return Graph.load(quantised).proto


def _float16(small: Graph, calibration: Samples, folder: Path) -> Any:
    paths = list(sys.path)
    try:
        module = importlib.import_module("onnxruntime.transformers.float16")
    finally:
        sys.path[:] = paths  # that package adds its own folder, whose modules have names like 'benchmark'
    small.serialize()
    made = module.convert_float_to_float16(small.proto, keep_io_types=True)
    wrapped = importlib.import_module("onnxruntime.quantization.onnx_model").ONNXModel(made)
    wrapped.topological_sort()  # its casts of inputs stand at the end
    return wrapped.model


class _Reader:
    """Calibration batches one after the other, as onnxruntime asks for them."""

    def __init__(self, samples: Samples) -> None:
        self._batches = iter(samples)

    def get_next(self) -> Mapping[str, NDArray[Any]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {name: np.asarray(array) for name, array in batch.feeds.items()}


def _tidy(proto: Any, small: Graph) -> None:
    """Take out the operator sets that onnxruntime's optimiser lists and nothing uses."""
    used = {entry.domain for entry in small.proto.opset_import} | {node.domain for node in proto.graph.node}
    kept = [entry for entry in proto.opset_import if entry.domain in used | {"", "ai.onnx"}]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What is logged as a warning within, kept from the terminal."""
    seen: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(" ".join(record.getMessage().split()))

    root, keep = logging.getLogger(), Keep(logging.WARNING)
    root.addHandler(keep)
    try:
        yield seen
    finally:
        root.removeHandler(keep)
