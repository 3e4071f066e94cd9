"""A model in fewer bits: int8 by static quantisation, and float16.

int8 is onnxruntime's own recipe: constants folded and shapes inferred first, then QuantizeLinear
and DequantizeLinear around every layer, with

    q = clip(round(x / s) + z)      activations: 0..255, range (min, max) over the calibration samples
                                    weights: -127..127, z = 0, one s per output channel

after which its kernels compute in integers: y = s_x s_w sum (q_x - z_x) q_w. The scales of the weights are
this package's own (`weight_scales`). With onnxruntime's, processors without VNNI saturate inside that sum:
the same file gave ResNet-20's logits an error of 20 % there and of 4 % elsewhere. Scales per channel need
opset 13: an older model is converted. float16 keeps inputs and outputs as they are. Source:
onnxruntime.quantization and onnxruntime.transformers.float16, both of which this module alone imports.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.errors import InputError, UnsupportedError
from pcns_onnx.graph import Graph, at_least_opset, constant_weights, inlined
from pcns_onnx.graph.float16 import in_float16
from pcns_onnx.graph.isolation import (
    named_again,
    numbered,
    put_back_outputs,
    sort_nodes,
    with_flip,
    with_own_captures,
    without_flip,
    without_plain_outputs,
)
from pcns_onnx.graph.opset import without_named_axes
from pcns_onnx.graph.protobuf import parse
from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.rewrite.half_precision import float_tensors, made_of_integers, peaks, too_large
from pcns_onnx.rewrite.weight_scales import WeightScales, bits_lost, safe_scales
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples

OPSET = 13
"""The first in which a DequantizeLinear has a scale per channel."""

ENDINGS = ("_quantized", "_scale", "_zero_point", "_QuantizeLinear", "_DequantizeLinear", "_convert", "_Cast")
"""What onnxruntime's quantiser puts behind a tensor's name."""

ROUNDING = 1e-3
"""Of an output, between two versions of a float32 model that mean the same."""

BODIES = {"If", "Loop", "Scan"}

LISTED = 20
"""Nodes that a line names."""

WORTH_SAYING = 0.75
"""Bits of precision that weights may lose to be safe on every processor before the report says so."""


def in_precision(
    kind: str, small: Graph, calibration: Samples, engine: Engine | None = None
) -> tuple[Graph, list[str]]:
    """`small` as 'int8' (calibrated on samples) or 'fp16', and what there is to warn of.

    Raises `InputError` where they fail, and for models above 2 GB.
    """
    convert: Callable[[Graph, Samples, Engine], tuple[Any, list[str]]] = {"int8": _int8, "fp16": _float16}[kind]
    with _warnings() as warned:
        try:
            proto, notes = convert(inlined(constant_weights(small)), calibration, engine or Engine())
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
    _refuse_other_ends(small, graph)
    return graph, [*warned, *notes]


def _refuse_other_ends(small: Graph, lowered: Graph) -> None:
    """Raise `InputError` where inputs or outputs are no longer those of the model."""
    for before, after in ((small.inputs, lowered.inputs), (small.outputs, lowered.outputs)):
        was, now = ([(spec.name, spec.dtype) for spec in specs] for specs in (before, after))
        if was != now:
            raise InputError(f"it would take or give {now} in place of {was}")


def _int8(small: Graph, calibration: Samples, engine: Engine) -> tuple[Any, list[str]]:
    prepare = importlib.import_module("onnxruntime.quantization.shape_inference").quant_pre_process
    model, names = numbered(without_named_axes(_raised(small, calibration, engine)), ENDINGS)
    numbers = {name: number for number, name in names.items()}
    with tempfile.TemporaryDirectory(prefix="pcns-onnx-") as folder:
        source, prepared = (Path(folder) / f"{name}.onnx" for name in ("small", "prepared"))
        source.write_bytes(model.serialize())
        prepare(source, prepared, skip_symbolic_shape=True)
        ready, outputs = without_plain_outputs(with_own_captures(Graph.load(prepared)))
        scales = safe_scales(ready)
        proto = _calibrated(ready, calibration, numbers, scales, prepared)
    sort_nodes(proto.graph)  # onnxruntime does not see what subgraphs read
    put_back_outputs(proto, outputs)
    named_again(proto, names)
    return proto, _cost_of(scales)


def _calibrated(
    ready: Graph, samples: Samples, numbers: Mapping[str, str], scales: list[WeightScales], path: Path
) -> Any:
    """`ready` in int8, with ranges from both branches of every If, as far as the samples can take both."""
    flippable, flip = with_flip(ready)
    if flip:
        try:
            proto = _quantised(flippable, _Reader(samples, numbers, flip), scales, path)
            without_flip(proto, flip)
            return proto
        except Exception:  # a branch that is never taken need not run
            pass
    return _quantised(ready, _Reader(samples, numbers), scales, path)


def _quantised(ready: Graph, reader: _Reader, scales: list[WeightScales], path: Path) -> Any:
    """What onnxruntime's quantiser makes of a model; `path` is where that is written, in its folder."""
    tools = importlib.import_module("onnxruntime.quantization")
    path.write_bytes(ready.serialize())
    quantised = path.with_name("int8.onnx")
    tools.quantize_static(
        path,
        quantised,
        reader,
        per_channel=True,
        activation_type=tools.QuantType.QUInt8,
        weight_type=tools.QuantType.QInt8,
        extra_options={"TensorQuantOverrides": {entry.name: _override(entry) for entry in scales}},
    )
    return parse(quantised)


def _raised(small: Graph, calibration: Samples, engine: Engine) -> Graph:
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


def _override(entry: WeightScales) -> list[dict[str, Any]]:
    """The scales in the words of onnxruntime's quantiser: one entry per output channel."""
    where = {} if entry.axis is None else {"axis": entry.axis}
    return [{**where, "scale": scale, "zero_point": 0} for scale in entry.scales]


def _cost_of(scales: list[WeightScales]) -> list[str]:
    lost = bits_lost(scales)
    if lost <= WORTH_SAYING:
        return []
    return [
        f"the weights keep {8 - lost:.1f} of 8 bits on average, so that integer kernels of processors without VNNI "
        "do not overflow"
    ]


def _float16(small: Graph, calibration: Samples, engine: Engine) -> tuple[Any, list[str]]:
    floats = float_tensors(engine, small)
    large = too_large(small, peaks(engine, small, floats, calibration))
    kept = large.keys() | made_of_integers(small, floats)
    half = in_float16(small, floats, kept)
    try:
        engine.session(half.program())
    except InputError:
        half = in_float16(small, floats, kept, onnxruntimes=False)
    return half.proto, _stays(small, large)


def _stays(small: Graph, large: Mapping[str, float]) -> list[str]:
    """The lines that list what stays in float32."""
    notes = []
    if large:
        names = [f"{small.node(key).op} '{small.node(key).label}' ({size:.3g})" for key, size in large.items()]
        more = [f"and {len(names) - LISTED} more"] if len(names) > LISTED else []
        notes.append(
            "float16 ends at 65,504, and half of that is kept in reserve: in float32 stay "
            + ", ".join(names[:LISTED] + more)
        )
    bodies = [f"{node.op} '{node.label}'" for node in small.nodes if node.op in BODIES and not node.domain]
    if bodies:
        notes.append(f"what is computed in {', '.join(bodies)} stays in float32")
    return notes


class _Reader:
    """Calibration batches one after the other, as onnxruntime asks for them: under other `names`, and with both
    values of an input `flip`, if there is one."""

    def __init__(self, samples: Samples, names: Mapping[str, str], flip: str = "") -> None:
        self._feeds = (feeds for batch in samples for feeds in self._of(batch.feeds, names, flip))

    @staticmethod
    def _of(feeds: Mapping[str, Any], names: Mapping[str, str], flip: str) -> Iterator[dict[str, NDArray[Any]]]:
        arrays = {names.get(name, name): np.asarray(array) for name, array in feeds.items()}
        if not flip:
            yield arrays
            return
        for value in (False, True):
            yield {**arrays, flip: np.asarray(value)}

    def get_next(self) -> Mapping[str, NDArray[Any]] | None:
        return next(self._feeds, None)


def _tidy(proto: Any, small: Graph) -> None:
    """Take out the operator sets that onnxruntime's optimiser lists and nothing uses."""
    used = {entry.domain for entry in small.proto.opset_import} | {node.domain for node in proto.graph.node}
    kept = [entry for entry in proto.opset_import if entry.domain in used | {"", "ai.onnx"}]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What is logged as a warning within, kept from the terminal."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(" ".join(record.getMessage().split()))

    root, keep = logging.getLogger(), Keep(logging.WARNING)
    root.addHandler(keep)
    try:
        yield messages
    finally:
        root.removeHandler(keep)
