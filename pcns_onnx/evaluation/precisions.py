"""The shrunk model in fewer bits: int8 by static quantisation, and float16.

How they are made is told in `rewrite.lowering.quantize`; here they are asked for, checked and timed like the
shrunk model itself. Whatever fails on the way is the failure of that precision alone: the others, and the shrunk
model in float32, are not lost to it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.output_layout import OutputLayout
from pcns_onnx.cost.benchmark import Latency, compare_many
from pcns_onnx.errors import InputError, PcnsError, UnsupportedError, first_line
from pcns_onnx.evaluation.agreement import Agreement, compare_outputs, time_both, verify
from pcns_onnx.evaluation.gates import Gate, gates_of
from pcns_onnx.evaluation.metric import Metric
from pcns_onnx.evaluation.options import GateOptions
from pcns_onnx.evaluation.output_tally import OutputAgreement
from pcns_onnx.graph import Graph
from pcns_onnx.progress import Progress
from pcns_onnx.rewrite.lowering.quantize import in_precision
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples
from pcns_onnx.runtime.targets.registry import ONNXRUNTIME

FAR = 0.5
"""Relative error against the shrunk model in float32 beyond which a precision counts as another model. ResNet-20's
logits err by 0.2 where the integer kernels saturate (docs/quantization.md), and its accuracy stands."""


class Precision(msgspec.Struct, frozen=True):
    """The shrunk model in fewer bits, against the original; `on_top` is its time against the shrunk model's."""

    kind: str
    bytes: int
    agreement: Agreement
    latency: Latency
    on_top: float


class FailedPrecision(msgspec.Struct, frozen=True):
    """A precision that was asked for and is not written, with the reason."""

    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kind}: not written: {self.reason}"


@dataclass(frozen=True)
class QuantizedModel:
    """One model in fewer bits, what is reported of it, what the gates say, and what it warns of."""

    graph: Graph
    precision: Precision
    gates: list[Gate]
    warnings: list[str]


@dataclass(frozen=True)
class Quantization:
    """All precisions that were asked for: those that were made, and those that failed."""

    models: list[QuantizedModel]
    failed: list[FailedPrecision]

    @property
    def gates(self) -> list[Gate]:
        """What the gates say of those that were made."""
        return [gate for model in self.models for gate in model.gates]

    @property
    def warnings(self) -> list[str]:
        """What a reader must be warned of, each text with the precision in front."""
        return [text for model in self.models for text in model.warnings] + [str(failed) for failed in self.failed]


def precision_path(output: str | os.PathLike[str] | None, kind: str) -> Path | None:
    """Where the model of a precision goes: 'small.onnx' -> 'small.int8.onnx'."""
    return None if output is None else Path(output).with_suffix(f".{kind}{Path(output).suffix}")


def check_precisions(original: Graph, kinds: Sequence[str]) -> None:
    """Raise `UnsupportedError` before any work where the model cannot be lowered."""
    if kinds and original.storage != "float32":
        raise UnsupportedError(
            f"--{kinds[0]} starts from float32, the model holds {original.storage}: export it in float32"
        )


def check_not_quantized(original: Graph) -> None:
    """Raise `UnsupportedError` for a model whose activations are quantised: int8 of that gains nothing."""
    names = [
        node.label
        for node in original.nodes
        if node.op == "QuantizeLinear" and not original.is_constant(node.inputs[0])
    ]
    if names:
        raise UnsupportedError(f"its activations are quantised already ('{names[0]}'): give the model in float32")


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
    layout: OutputLayout | None = None,
) -> Quantization:
    """`small` in fewer bits: each of `kinds` compared with `original` on `checked`, timed against both on `timed`.

    `proving`: which of those checked count for bounds; `layout`: where the outputs have their channels.
    """

    def lowered(kind: str) -> QuantizedModel:
        with progress.stage(kind):
            graph, warnings = in_precision(kind, small, calibration, engine)
        agreement, more = verify(engine, original, graph, checked, metric, progress, proving, layout)
        gates = [_named(gate, kind) for gate in gates_of(limits, agreement)]
        if not gates:  # else it is the user's to say how much may be lost
            _refuse_far(engine, small, graph, agreement, checked)
        latency = time_both(engine, original, graph, timed, progress)
        instead = [latency.instead] if latency.instead else []
        timing = replace(engine, target=ONNXRUNTIME.name) if instead else engine
        (on_top,) = compare_many(timing, small, [graph], timed)
        precision = Precision(kind, graph.nbytes, agreement, latency, on_top)
        return QuantizedModel(graph, precision, gates, [f"{kind}: {text}" for text in (*warnings, *more, *instead)])

    quantization = Quantization([], [])
    for kind in kinds:
        try:
            quantization.models.append(lowered(kind))
        except PcnsError as error:
            quantization.failed.append(FailedPrecision(kind, str(error)))
        except Exception as error:  # whatever it is, what was solved must not be lost to it
            quantization.failed.append(FailedPrecision(kind, f"{type(error).__name__}: {first_line(error)}"))
    return quantization


def _refuse_far(engine: Engine, small: Graph, lowered: Graph, agreement: Agreement, checked: Samples) -> None:
    """Raise `InputError` where the lowered model computes something else than `small` does.

    `agreement` is that with the original: where it is good, `small` need not be asked.
    """
    floats = {spec.name for spec in small.outputs if spec.dtype.kind == "f"}
    stood_for = {output.stands_for for output in agreement.outputs}  # by tensors in front, which are asked instead
    far = {output.name for output in agreement.outputs if output.counts is None and _error(output) > FAR} & floats
    far -= stood_for
    if not far:
        return
    against = compare_outputs(engine, small, lowered, checked, None, Progress())
    worst = max((output for output in against.outputs if output.name in far), key=_error)
    if worst.counts is None and _error(worst) > FAR:
        raise InputError(
            f"output '{worst.name}' differs from that in float32 by {_error(worst):.2g} of how much it varies: it "
            "would be another model"
        )


def _named(gate: Gate, kind: str) -> Gate:
    """The same gate, named after the precision that it is for."""
    return Gate(f"{kind} {gate.name}", gate.limit, gate.value)


def _error(output: OutputAgreement) -> float:
    error = output.relative_error
    return math.inf if error is None or math.isnan(error) else error
