"""The shrunk model in fewer bits: int8 by static quantisation, and float16.

How they are made is told in `rewrite.quantize`; here they are asked for, checked and timed like the
shrunk model itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from pcns_onnx.cost.benchmark import Latency, compare_many
from pcns_onnx.errors import UnsupportedError
from pcns_onnx.evaluation.agreement import Agreement, time_both, verify
from pcns_onnx.evaluation.gates import Gate, gates_of
from pcns_onnx.evaluation.metric import Metric
from pcns_onnx.evaluation.options import GateOptions
from pcns_onnx.graph import Graph
from pcns_onnx.progress import Progress
from pcns_onnx.rewrite.quantize import in_precision
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples


class Precision(msgspec.Struct, frozen=True):
    """The shrunk model in fewer bits, against the original; `on_top` is its time against the shrunk model's."""

    kind: str
    bytes: int
    agreement: Agreement
    latency: Latency
    on_top: float


@dataclass(frozen=True)
class QuantizedModel:
    """One model in fewer bits, what is reported of it, what the gates say, and what it warns of."""

    graph: Graph
    precision: Precision
    gates: list[Gate]
    warnings: list[str]


def precision_path(output: str | os.PathLike[str] | None, kind: str) -> Path | None:
    """Where the model of a precision goes: 'small.onnx' -> 'small.int8.onnx'."""
    return None if output is None else Path(output).with_suffix(f".{kind}{Path(output).suffix}")


def check_precisions(original: Graph, kinds: Sequence[str]) -> None:
    """Raise `UnsupportedError` before any work where the model cannot be lowered."""
    if kinds and original.storage != "float32":
        raise UnsupportedError(
            f"--{kinds[0]} starts from float32, the model holds {original.storage}: export it in float32"
        )


def quantize(
    engine: Engine,
    original: Graph,
    small: Graph,
    kinds: Sequence[str],
    calibration: Samples,
    checked: Samples,
    timed: Samples,
    metric: Metric | None,
    proving: NDArray[np.bool_] | None,
    limits: GateOptions,
    progress: Progress,
) -> list[QuantizedModel]:
    """`small` in fewer bits: each of `kinds` compared with `original` on `checked`, timed against both on `timed`.

    `proving`: which of those checked count for bounds.
    """
    quantized = []
    for kind in kinds:
        with progress.stage(kind):
            graph, warnings = in_precision(kind, small, calibration)
        agreement, more = verify(engine, original, graph, checked, metric, progress, proving)
        latency = time_both(engine, original, graph, timed, progress)
        (on_top,) = compare_many(engine, small, [graph], timed)
        gates = [_named(gate, kind) for gate in gates_of(limits, agreement)]
        precision = Precision(kind, graph.nbytes, agreement, latency, on_top)
        quantized.append(QuantizedModel(graph, precision, gates, [f"{kind}: {text}" for text in (*warnings, *more)]))
    return quantized


def _named(gate: Gate, kind: str) -> Gate:
    """The same gate, named after the precision that it is for."""
    return Gate(f"{kind} {gate.name}", gate.limit, gate.value)
