"""The shrunk model in fewer bits: int8 by static quantisation, and float16.

How they are made is told in `rewrite.quantize`; here they are asked for, checked and timed like the
shrunk model itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pcns_onnx.api.options import Options
from pcns_onnx.cost.benchmark import Latency, compare_many
from pcns_onnx.errors import UnsupportedError
from pcns_onnx.evaluation.agreement import Agreement, time_both, verify
from pcns_onnx.evaluation.gates import Gate, gates_of
from pcns_onnx.evaluation.metric import Metric
from pcns_onnx.graph import Graph
from pcns_onnx.progress import Progress
from pcns_onnx.rewrite.quantize import in_precision
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples, at_latency_batch


class Precision(msgspec.Struct, frozen=True):
    """The shrunk model in fewer bits, against the original; `on_top` is its time against the shrunk model's."""

    kind: str
    bytes: int
    agreement: Agreement
    latency: Latency
    on_top: float


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
