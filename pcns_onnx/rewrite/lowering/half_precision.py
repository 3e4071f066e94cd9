"""Which nodes stay in float32 where a model goes to float16: those whose values do not fit.

float16 ends at 65,504, and what is larger is infinite. onnxruntime's CPU computes float16 models in float32 and does
not show it; a GPU does. So the float32 model is run over the calibration samples, and a node stays in float32 where

    max |v| > 65504 / 2     for a tensor v that it reads or makes
    max |c| > 65504         for a constant c that it reads (masks of -3.4e38, say)
    f(max |v|) > 65504 / 2  for what it computes on the way: f is the square for norms, the cube for Gelu by tanh, the
                            exponential for Softplus and its like
    sum |v| > 65504 / 2     where it adds numbers up, for a mean, say

The factor of 2 is for samples that were not run. What is made of integers by arithmetic alone (sizes, positions) stays,
too: above 2,048 float16 has not all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph, Node
from pcns_onnx.graph.lowering.float16 import LARGEST, in_float16, probe_of
from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples, at_latency_batch

MARGIN = 2.0

MEMORY = 1 << 27
"""Bytes that the tensors of a batch may take while they are measured."""

_BODIES = {"If", "Loop", "Scan"}

_LISTED = 20
"""Nodes that a line names."""

_ARITHMETIC = {
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Neg", "Abs", "Floor", "Ceil", "Round", "Sqrt", "Reciprocal", "Min",
    "Max", "Clip", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Concat", "Slice", "Gather", "Expand", "Transpose",
    "Tile",
}  # fmt: skip


def _square(peak: float) -> float:
    return peak * peak


def _cube(peak: float) -> float:
    return peak * peak * peak


def _exponential(peak: float) -> float:
    return math.exp(min(peak, 100.0))


_ON_THE_WAY: dict[str, Callable[[float], float]] = {
    "LayerNormalization": _square, "SimplifiedLayerNormalization": _square, "SkipLayerNormalization": _square,
    "SkipSimplifiedLayerNormalization": _square, "RMSNormalization": _square, "InstanceNormalization": _square,
    "GroupNormalization": _square, "GroupNorm": _square, "MeanVarianceNormalization": _square, "LRN": _square,
    "LpNormalization": _square, "LpPool": _square, "GlobalLpPool": _square, "ReduceL2": _square,
    "Softplus": _exponential, "Mish": _exponential, "ReduceLogSumExp": _exponential,
    "FastGelu": _cube, "QuickGelu": _exponential,
}  # fmt: skip
"""How large an operator's intermediate values become, at least, for inputs up to a size."""

_ADDING = {"ReduceSum", "ReduceMean", "ReduceL1", "GlobalAveragePool", "AveragePool"}
"""Operators that add up elements of their first input: |x| in its place tells how much."""

_SUMS = {"Sum", "Mean"}
_BIASED = {"Gemm", "Conv", "ConvTranspose"}


def half_precision(small: Graph, calibration: Samples, engine: Engine) -> tuple[Any, list[str]]:
    """The message of `small` in float16, and what there is to warn of: what stays in float32."""
    floats = float_tensors(engine, small)
    large = too_large(small, magnitudes_of(engine, small, floats, calibration))
    kept = large.keys() | made_of_integers(small, floats)
    half = in_float16(small, floats, kept)
    try:
        engine.session(half.program())
    except InputError:  # an operator of its own that it does not have in float16
        half = in_float16(small, floats, kept, onnxruntimes=False)
    return half.proto, _stays(small, large)


def _stays(small: Graph, large: Mapping[str, float]) -> list[str]:
    """The lines that list what stays in float32."""
    notes = []
    if large:
        names = [f"{small.node(key).op} '{small.node(key).label}' ({size:.3g})" for key, size in large.items()]
        notes.append(f"float16 ends at 65,504, half of it is kept in reserve: in float32 stay {listed(names)}")
    bodies = [f"{node.op} '{node.label}'" for node in small.nodes if node.op in _BODIES and not node.domain]
    if bodies:
        notes.append(f"what is computed in {listed(bodies)} stays in float32")
    return notes


def listed(names: list[str]) -> str:
    """Names for a line: not more than it can hold."""
    more = [f"{len(names) - _LISTED} more"] if len(names) > _LISTED else []
    return ", ".join(names[:_LISTED] + more)


def float_tensors(engine: Engine, graph: Graph) -> list[str]:
    """The tensors of float32 that nodes make, as onnxruntime finds their types."""
    return [name for name, kind in kinds_of(engine, graph).items() if kind == "tensor(float)"]


def kinds_of(engine: Engine, graph: Graph) -> Mapping[str, str]:
    """The types of all tensors that nodes make, as onnxruntime finds and writes them."""
    names = [name for node in graph.nodes for name in node.outputs if name]
    inputs = [spec.name for spec in graph.inputs]
    return engine.session(graph.extract(inputs, names).program()).kinds


@dataclass(frozen=True)
class Magnitudes:
    """The largest magnitudes over the samples: of `tensors` by name, and of what nodes add up on their way, by key.

    Infinite where a tensor is not finite.
    """

    tensors: dict[str, float]
    sums: dict[str, float]


def magnitudes_of(engine: Engine, graph: Graph, floats: list[str], samples: Samples) -> Magnitudes:
    """Those of the tensors `floats` and the inputs."""
    adding = {node.key: node for node in graph.nodes if node.op in _ADDING and not node.domain and node.key in floats}
    probe = probe_of(graph, floats, adding)
    fed = [spec.name for spec in graph.inputs if spec.dtype == np.float32]
    tensors, sums = dict.fromkeys((*fed, *floats), 0.0), dict.fromkeys(adding, 0.0)
    session = engine.session(probe.graph.program())
    for batch in at_latency_batch(samples, _batch(graph, floats, samples)):
        values = {name: float(to_numpy(value)) for name, value in session.run(batch.feeds).items()}
        peaks = {name: values[output] for name, output in probe.peaks.items()}
        peaks |= {name: _peak(to_numpy(batch.feeds[name])) for name in fed}
        for name, peak in peaks.items():
            tensors[name] = max(tensors[name], peak if math.isfinite(peak) else math.inf)
        for key, (mean, read, results) in probe.sums.items():
            parts = _parts(adding[key], values[read] / max(values[results], 1.0))
            sums[key] = max(sums[key], values[mean] * parts)
    return Magnitudes(tensors, sums)


def _batch(graph: Graph, floats: list[str], samples: Samples) -> int:
    """Samples in a batch: onnxruntime keeps all tensors of it until the end."""
    first = next(iter(samples))
    shapes = graph.shapes({name: array.shape for name, array in first.feeds.items()}, batch=1)
    elements = sum(math.prod(size or 1 for size in shapes.get(name, ())) for name in floats)
    return max(1, min(samples.batch, MEMORY // max(4 * elements, 1)))


def _parts(node: Node, ratio: float) -> float:
    """How many numbers a node takes the mean of; `ratio` are those that it reads for each that it makes."""
    if node.op == "AveragePool":
        return float(np.prod(node.attrs["kernel_shape"]))
    return 1.0 if node.op in ("ReduceSum", "ReduceL1") else ratio


def _peak(value: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
    return float(np.abs(value).max(initial=0))


def too_large(graph: Graph, magnitudes: Magnitudes) -> dict[str, float]:
    """The nodes whose values do not fit into float16, by key, and how large these become."""
    known = dict(magnitudes.tensors)
    for name in {name for node in graph.nodes for name in node.inputs} - known.keys():
        value = graph.constant(name)
        if value is not None and value.dtype == np.float32:
            finite = _peak(value[np.isfinite(value)])
            known[name] = finite if finite > LARGEST else finite / MARGIN
    sizes = {node.key: max(_size(node, known), magnitudes.sums.get(node.key, 0.0)) for node in graph.nodes}
    return {key: size for key, size in sizes.items() if size * MARGIN > LARGEST}


def _size(node: Node, known: Mapping[str, float]) -> float:
    """The largest value that a node has to do with, as far as that is known; NaN is never met."""
    read = [known[name] for name in node.inputs if name in known]
    sizes = [*read, *(known[name] for name in node.outputs if name in known)]
    if node.op in _SUMS:
        sizes.append(sum(read))
    if node.op in _BIASED and len(read) > 2:
        sizes.append(known.get(node.outputs[0], 0.0) + known.get(node.inputs[2], 0.0))
    on_the_way = _ON_THE_WAY.get(node.op)
    if node.op == "Gelu" and node.attrs.get("approximate") == b"tanh":
        on_the_way = _cube
    if on_the_way is not None and read:
        sizes.append(on_the_way(read[0]))
    return max(sizes, default=0.0)


def made_of_integers(graph: Graph, floats: list[str]) -> set[str]:
    """The keys of nodes that compute floats of integers and constants alone, by arithmetic."""
    fed = {spec.name for spec in graph.inputs if spec.dtype.kind == "f"}
    are_floats, integral, keys = {*floats, *fed}, set[str](), set[str]()
    for node in graph.nodes:
        read = [name for name in node.inputs if name in are_floats and not graph.is_constant(name)]
        is_first = node.op == "Cast" and not read and not graph.is_constant(node.inputs[0])
        is_next = node.op in _ARITHMETIC and bool(read) and integral.issuperset(read)
        if not node.domain and node.key in are_floats and (is_first or is_next):
            keys.add(node.key)
            integral.update(node.outputs)
    return keys
