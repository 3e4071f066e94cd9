"""A model in fewer bits: int8 by static quantisation, and float16.

int8 is onnxruntime's own recipe: constants folded and shapes inferred first, then QuantizeLinear
and DequantizeLinear around every layer, with

    q = clip(round(x / s) + z)      activations: 0..255, range (min, max) over the calibration samples
                                    weights: -127..127, z = 0, one s per output channel

after which its kernels compute in integers: y = s_x s_w sum (q_x - z_x) q_w. The scales of the weights are
this package's own (`weight_scales`). With onnxruntime's, processors without VNNI saturate inside that sum:
the same file gave ResNet-20's logits an error of 20 % there and of 4 % elsewhere. Scales per channel need
opset 13: an older model is converted, and refused where that changes what it computes. Source:
onnxruntime.quantization, which this module alone imports.

What the quantiser gets wrong is kept from it (`graph.isolation`) or left in float32 and listed. float16 is told in
`half_precision`; both keep inputs and outputs as they are.
"""

from __future__ import annotations

import importlib
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.errors import InputError, UnsupportedError
from pcns_onnx.graph import Array, Graph, Node, constant_weights, inlined
from pcns_onnx.graph.lowering.isolation import (
    named_again,
    numbered,
    of_unknown_type,
    put_back_outputs,
    sort_nodes,
    with_flip,
    with_node_names,
    with_own_captures,
    with_own_outputs,
    with_types,
    without_flip,
    without_plain_outputs,
)
from pcns_onnx.graph.opset import without_named_axes
from pcns_onnx.graph.protobuf import parse
from pcns_onnx.rewrite.lowering.half_precision import half_precision, kinds_of, listed
from pcns_onnx.rewrite.lowering.raised_opset import raised
from pcns_onnx.rewrite.lowering.weight_scales import WeightScales, bits_lost, safe_scales
from pcns_onnx.runtime.engine import Engine, silenced, versions
from pcns_onnx.runtime.nonfinite import is_finite
from pcns_onnx.runtime.samples import Samples

ENDINGS = ("_quantized", "_scale", "_zero_point", "_QuantizeLinear", "_DequantizeLinear", "_convert", "_Cast")
"""What onnxruntime's quantiser puts behind a tensor's name."""

FUSED = ("Relu", "Clip")
"""What it takes for the range of an integer."""

BIASED = ("Conv", "ConvTranspose", "Gemm")

MASK = 1e4
"""Constants of this size and more are taken for masks: what they are added to is far smaller."""

MASKING = {"Add", "Sub", "Mul", "Div", "Where", "Pad", "Concat"}

MOVING = {"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Slice", "Expand", "Identity", "Cast", "Min", "Max", "Gather"}

PER_TENSOR = "is out-of-range for weight"
"""What it logs of a vector, such as a norm's, for which it takes one scale: nothing that a user has to do with."""

WORTH_SAYING = 0.75
"""Bits of precision that weights may lose to be safe on every processor before the report says so."""


def in_precision(
    kind: str, small: Graph, calibration: Samples, engine: Engine | None = None
) -> tuple[Graph, list[str]]:
    """`small` as 'int8' (calibrated on samples) or 'fp16', and what there is to warn of.

    Raises `InputError` where they fail, and for models above 2 GB.
    """
    convert: Callable[[Graph, Samples, Engine], tuple[Any, list[str]]] = {"int8": _int8, "fp16": half_precision}[kind]
    # Ranges of what is not quantised may be infinite.
    with silenced(), _warnings() as warned, np.errstate(all="ignore"):
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


def _quantiser() -> Any:
    """onnxruntime's quantiser. It imports modules that add their own folder to the path of all, whose modules have
    names like 'benchmark' and 'float16', and which they need while they are imported, but not after."""
    versions()  # onnxruntime itself comes in through its own door
    paths = list(sys.path)
    try:
        return importlib.import_module("onnxruntime.quantization")
    finally:
        sys.path[:] = paths


def _refuse_other_ends(small: Graph, lowered: Graph) -> None:
    """Raise `InputError` where inputs or outputs are no longer those of the model."""
    for before, after in ((small.inputs, lowered.inputs), (small.outputs, lowered.outputs)):
        was, now = ([(spec.name, spec.dtype) for spec in specs] for specs in (before, after))
        if was != now:
            raise InputError(f"it would take or give {now} in place of {was}")


def _int8(small: Graph, calibration: Samples, engine: Engine) -> tuple[Any, list[str]]:
    tools = _quantiser()
    model, names = numbered(without_named_axes(raised(small, calibration, engine)), ENDINGS)
    numbers = {name: number for number, name in names.items()}
    with tempfile.TemporaryDirectory(prefix="pcns-onnx-") as folder:
        source, prepared = (Path(folder) / f"{name}.onnx" for name in ("small", "prepared"))
        source.write_bytes(model.serialize())
        tools.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        ready, outputs = without_plain_outputs(with_own_captures(Graph.load(prepared)))
        plan = _planned(_typed(_plain_gemms(with_own_outputs(ready, FUSED)), engine), prepared)
        proto = _calibrated(plan, calibration, numbers, engine)
    sort_nodes(proto.graph)  # onnxruntime does not see what subgraphs read
    put_back_outputs(proto, outputs)
    named_again(proto, names)
    stays = [f"{node.op} '{node.name or names.get(node.key, node.key)}'" for node in plan.stays]
    notes = [f"integers cannot hold masks, and not all bounds: in float32 stay {listed(stays)}"] if stays else []
    return proto, [*notes, *_cost_of(plan.scales)]


@dataclass(frozen=True)
class _Plan:
    """What the quantiser is to do: with which scales of the weights, and which nodes it is to leave in float32.

    `path` is where the model is written for it.
    """

    graph: Graph
    scales: list[WeightScales]
    stays: list[Node]
    path: Path


def _planned(ready: Graph, path: Path) -> _Plan:
    stays = _in_float32(ready)
    biases = [node.inputs[2] for node in ready.nodes if node.op in BIASED and len(node.inputs) > 2]
    if stays or len(set(biases)) < len(biases):  # the quantiser finds these by their nodes' names
        ready = with_node_names(ready)
    return _Plan(ready, safe_scales(ready), stays, path)


def _calibrated(plan: _Plan, samples: Samples, numbers: Mapping[str, str], engine: Engine) -> Any:
    """A model in int8, with ranges from both branches of every If, as far as the samples can take both."""
    flippable, flip = with_flip(plan.graph)
    if flip and _can_flip(flippable, _Reader(samples, numbers, flip), engine):
        proto = _quantised(replace(plan, graph=flippable), _Reader(samples, numbers, flip))
        without_flip(proto, flip)
        return proto
    return _quantised(plan, _Reader(samples, numbers))


def _can_flip(flippable: Graph, reader: _Reader, engine: Engine) -> bool:
    """Whether all branches run and give numbers: one that is never taken need not."""
    try:
        session = engine.session(flippable.program())
        while (feeds := reader.get_next()) is not None:
            if not all(is_finite(array) for array in session.run(feeds).values() if hasattr(array, "dtype")):
                return False
    except InputError:
        return False
    return True


def _quantised(plan: _Plan, reader: _Reader) -> Any:
    """What onnxruntime's quantiser makes of a model."""
    tools = _quantiser()
    plan.path.write_bytes(plan.graph.serialize())
    quantised = plan.path.with_name("int8.onnx")
    tools.quantize_static(
        plan.path,
        quantised,
        reader,
        per_channel=True,
        activation_type=tools.QuantType.QUInt8,
        weight_type=tools.QuantType.QInt8,
        nodes_to_exclude=[plan.graph.node(node.key).name for node in plan.stays],
        extra_options={"TensorQuantOverrides": {entry.name: _override(entry) for entry in plan.scales}},
    )
    return parse(quantised)


def _typed(graph: Graph, engine: Engine) -> Graph:
    """The model with all types that onnx does not know."""
    if not (unknown := of_unknown_type(graph)):
        return graph
    return with_types(graph, {name: kind for name, kind in kinds_of(engine, graph).items() if name in unknown})


def _plain_gemms(graph: Graph) -> Graph:
    """Gemms with alpha and beta in their constants, and a bias per output: onnxruntime's quantiser forgets beta, and
    fails on a bias of shape (1, outputs) whose weights have scales per output."""
    plain = graph.copy()
    for node in graph.nodes:
        if node.op != "Gemm" or node.domain:
            continue
        weights = graph.constant(node.inputs[1])
        bias = graph.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
        alpha, beta = (np.float32(node.attrs.get(name, 1.0)) for name in ("alpha", "beta"))
        if weights is not None and alpha != 1:
            plain.set_input(node.key, 1, weights * alpha)
            plain.set_attributes(node.key, alpha=None)
        if weights is None or bias is None:
            continue
        outputs = weights.shape[0 if node.attrs.get("transB", 0) else 1]
        if beta != 1 or (bias.shape != (outputs,) and _is_row(bias)):
            value = bias * beta
            plain.set_input(node.key, 2, np.resize(value, (outputs,)) if _is_row(value) else value)
            plain.set_attributes(node.key, beta=None)
    return plain


def _is_row(bias: Array) -> bool:
    """Whether a bias is the same for all samples."""
    return bias.ndim < 2 or bias.shape[0] == 1


def _in_float32(graph: Graph) -> list[Node]:
    """Nodes that the quantiser cannot do: those that have to do with masks (-1e9 in front of a Softmax would leave all
    else one step), Clips to a range without 0 (they are taken for the range of an integer, which always has it), cubic
    Resizes (they are given the range of their inputs, and go beyond it) and Gemms with a bias per sample."""
    masked, stays = set[str](), list[Node]()
    for node in graph.nodes:
        is_masked = not masked.isdisjoint(node.inputs)
        masks = node.op in MASKING and any(_is_mask(graph.constant(name), node) for name in node.inputs if name)
        if (masks or (is_masked and node.op in MASKING | MOVING)) and not node.domain:
            masked.update(node.outputs)
        overshoots = node.op == "Resize" and node.attrs.get("mode") == b"cubic"
        if is_masked or masks or overshoots or _clips_zero(graph, node) or _has_bias_of_samples(graph, node):
            stays.append(node)
    return stays


def _is_mask(value: Array | None, reader: Node) -> bool:
    """Whether a constant hides numbers; one that these are multiplied by is a scale, unless it is negative."""
    if value is None or value.dtype != np.float32:
        return False
    return bool(((-value if reader.op in ("Mul", "Div") else np.abs(value)) >= MASK).any())


def _clips_zero(graph: Graph, node: Node) -> bool:
    """Whether a Clip may keep 0 out."""
    if node.op != "Clip" or node.domain:
        return False
    low, high = (graph.constant(name) if name else np.zeros(()) for name in (*node.inputs[1:3], "", "")[:2])
    return low is None or high is None or bool(low > 0) or bool(high < 0)


def _has_bias_of_samples(graph: Graph, node: Node) -> bool:
    bias = graph.constant(node.inputs[2]) if node.op == "Gemm" and len(node.inputs) > 2 else None
    return bias is not None and not _is_row(bias)


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
    """Take out the operator sets that onnxruntime's optimiser lists and nothing uses; declare the ends as they were."""
    used = {entry.domain for entry in small.proto.opset_import} | {node.domain for node in proto.graph.node}
    kept = [entry for entry in proto.opset_import if entry.domain in used | {"", "ai.onnx"}]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    was = small.proto.graph
    for values, declared in ((proto.graph.input, was.input), (proto.graph.output, was.output)):
        by_name = {value.name: value for value in declared}
        for value in values:
            value.CopyFrom(by_name.get(value.name, value))


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What is logged as a warning within, kept from the terminal."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = " ".join(record.getMessage().split())
            if PER_TENSOR not in text:
                messages.append(text)

    root, keep = logging.getLogger(), Keep(logging.WARNING)
    root.addHandler(keep)
    try:
        yield messages
    finally:
        root.removeHandler(keep)
