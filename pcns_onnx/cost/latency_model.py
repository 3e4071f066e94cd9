"""What a run of a model takes at any widths: its layers as timed one by one, and the rest.

How a layer's time changes with its width is measured on the layer alone; how long it takes at
full width, in a profile of the whole model, in which all layers are slowed alike by whatever
else the machine does. What else takes time there (pooling, sums, norms, products of attention)
scales with the channels that it carries. What starting a kernel takes, the least that any of
them needs, is taken off all of them; the remainder of the run is fixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from pcns_onnx.cost.latency_table import Table
from pcns_onnx.cost.layer_latency import BLOCK, Floats, LayerLatency, Measured, Sliced
from pcns_onnx.cost.profiler import Job, noise, take_apart
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph, Node, Shape
from pcns_onnx.numerics.arrays import Array
from pcns_onnx.ops import Labels
from pcns_onnx.progress import Progress
from pcns_onnx.runtime.engine import Engine, Kernel

STEPS = (1, 4, 8, BLOCK)
"""Multiples that a group may be held to."""
_FEW = 4
"""A group should have at least so many widths to choose from."""
_SECONDS = 0.5
"""Time for the rounds of the whole model."""
_SHOWN = 0.5
"""The share of the layers' time alone that a profile must show for the others to be scaled like those that it shows."""
_WASTE = 0.125
"""A step is too fine if its widths save so much less than their share of what a block saves."""


@dataclass(frozen=True)
class Rest:
    """A kernel that is no layer's: seconds that scale with the share of `labels` (classes) that stays."""

    name: str
    seconds: float
    labels: Labels = field(repr=False)


@dataclass(frozen=True)
class LatencyModel:
    """What a run takes: every layer by its name, `rest` that scales, and `fixed` seconds.

    Of each layer's seconds `start` are counted as fixed. `steps` is, by group, the multiple of
    channels that pays on this machine. Vectors are in the order of `layers`, then `rest`.
    """

    layers: Mapping[str, LayerLatency]
    rest: tuple[Rest, ...]
    fixed: float
    start: float
    steps: Mapping[str, int]

    def ends(self, dependencies: DependencyGraph) -> tuple[list[Labels], list[Labels]]:
        """The classes that each part reads and writes; what is no layer reads none (-1)."""
        reads = [dependencies.layer(name).inputs for name in self.layers]
        writes = [dependencies.layer(name).linear.writes for name in self.layers]
        return reads + [np.full(1, -1)] * len(self.rest), writes + [part.labels for part in self.rest]

    def parts(self, read: Floats, written: Floats) -> Floats:
        """Seconds of every part (n,) that reads and writes these fractions (n,) of its channels."""
        count = len(self.layers)
        own = np.array([float(self.part(at, read[at], written[at])) for at in range(count)])
        return np.concatenate([own, self._scaling * written[count:]])

    def part(self, at: int, read: Floats | float, written: Floats | float) -> Floats:
        """Seconds of part number `at` at these pairs of fractions."""
        if at >= len(self.layers):
            return np.asarray(self._scaling[at - len(self.layers)] * written)
        r, w = np.broadcast_arrays(np.asarray(read, dtype=np.float64), np.asarray(written, dtype=np.float64))
        gone = (r <= 0) | (w <= 0)
        times = self._timed[at].at(np.where(gone, 1.0, r), np.where(gone, 1.0, w))
        return np.where(gone, -self.start, np.maximum(times - self.start, 0.0))

    def total(self, read: Floats, written: Floats) -> float:
        """Seconds of the whole model, from the fractions as in `parts`."""
        return self.fixed + float(self.parts(read, written).sum())

    def of_classes(self, dependencies: DependencyGraph, kept: NDArray[np.bool_]) -> float:
        """Seconds of the whole model when these classes stay (the last element answers for -1)."""
        return self.total(*(kept_shares(ends, kept) for ends in self.ends(dependencies)))

    @cached_property
    def _timed(self) -> list[LayerLatency]:
        return list(self.layers.values())

    @cached_property
    def _scaling(self) -> Floats:
        return np.array([part.seconds for part in self.rest])


def kept_shares(ends: Sequence[Labels], kept: NDArray[np.bool_]) -> Floats:
    """The share of each of `ends` (classes) that stays; the last element of `kept` answers for -1."""
    return np.array([kept[labels].mean() for labels in ends])


def measure_layers(
    engine: Engine,
    graph: Graph,
    dependencies: DependencyGraph,
    batch: int,
    *,
    feeds: Mapping[str, Array] | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> LatencyModel:
    """Time every layer of the float32 twin `graph` for batches of `batch` samples.

    `feeds` is a batch for the whole model; where it is None, one is made up. Layers of equal shape are
    measured once, and never again on this machine while the table in the folder `cache` lasts (None:
    the user's). Raises `InputError` where the runtime cannot run the model.
    """
    table, shapes = Table(engine, cache), graph.shapes(dependencies.feeds, batch=batch)
    shrinkable = np.append([group.frozen is None for group in dependencies.groups], False)
    layers: dict[str, LayerLatency] = {}
    for layer in (progress or Progress()).track(dependencies.layers, "time", len(dependencies.layers)):
        free = tuple(bool(shrinkable[dependencies.owner[ends]].any()) for ends in (layer.inputs, layer.linear.writes))
        sliced = Sliced(engine, graph, layer, _known(layer.source, shapes), free)
        layers[layer.name] = table.look_up(sliced.key, Measured, sliced.measure).times()
    whole = _Whole(engine, graph, feeds or _made_up(engine, graph, shapes))
    run = table.look_up(whole.key, _Run, whole.measure)
    within = _seconds_within(graph, dependencies, run)
    alone = {name: float(times.at(1.0, 1.0)) for name, times in layers.items()}
    shown = sum(alone[name] for name in within)
    pace = sum(within.values()) / shown if shown > _SHOWN * sum(alone.values()) else 1.0
    layers = {name: times.scaled(within.get(name, pace * alone[name]) / alone[name]) for name, times in layers.items()}
    steps = {group.name: _step(dependencies, group, layers) for group in dependencies.groups}
    start = min((seconds for *_, seconds in run.kernels), default=0.0)
    latency_model = LatencyModel(layers, tuple(_rest(graph, dependencies, run, start)), 0.0, start, steps)
    parts = latency_model.parts(*np.ones((2, len(layers) + len(latency_model.rest))))
    return replace(latency_model, fixed=max(run.seconds - float(parts.sum()), 0.0))


def seconds_within(
    engine: Engine, graph: Graph, dependencies: DependencyGraph, feeds: Mapping[str, Array]
) -> tuple[float, dict[str, float]]:
    """Seconds of one run of the float32 twin `graph` on `feeds`, and of each of its layers and other nodes with
    multiply-adds, by name; without those that the profile does not show (all of them on CUDA)."""
    run = _Whole(engine, graph, feeds).measure()
    within = _seconds_within(graph, dependencies, run)
    names = {node.name for node in dependencies.unsolved}
    for kernel, _, seconds in run.kernels:
        node = _node(graph, kernel)
        if node is not None and node.label in names:
            within[node.label] = within.get(node.label, 0.0) + seconds
    # Keeping time takes time itself, of which an If has that of all nodes within.
    over = max(sum(within.values()) / run.seconds, 1.0) if run.seconds else 1.0
    return run.seconds, {name: seconds / over for name, seconds in within.items()}


class _Run(msgspec.Struct, frozen=True):
    """Seconds of one run and of its kernels: (name, operator, seconds)."""

    seconds: float
    kernels: list[tuple[str, str, float]]


@dataclass(frozen=True)
class _Whole:
    engine: Engine
    graph: Graph
    feeds: Mapping[str, Array]

    @property
    def key(self) -> str:
        sizes = {name: tuple(array.shape) for name, array in sorted(self.feeds.items())}
        return f"model {self.graph.digest()} {sizes}"

    def measure(self) -> _Run:
        seconds, kernels = take_apart(self.engine, Job(self.graph.program(named=True), self.feeds), _SECONDS)
        names = _names(self.graph, [kernel for kernel, _ in kernels])
        return _Run(seconds, [(name, k.op, time) for name, (k, time) in zip(names, kernels, strict=True)])


def _names(graph: Graph, kernels: Sequence[Kernel]) -> list[str]:
    """The kernels' names; those that go by no node's take in turn the nodes of their operator that are left, if each
    gets as many (two, where a runtime makes two layers of one in both directions)."""
    names = [kernel.name for kernel in kernels]
    known = {node.key for node in map(partial(_node, graph), names) if node is not None}
    lost = [at for at, name in enumerate(names) if _node(graph, name) is None]
    for op in {kernels[at].op for at in lost}:
        places = [at for at in lost if kernels[at].op == op]
        left = [node.key for node in graph.nodes if node.op == op and node.key not in known]
        if left and len(places) % len(left) == 0:
            for nth, at in enumerate(places):
                names[at] = left[nth * len(left) // len(places)]
    return names


def _made_up(engine: Engine, graph: Graph, shapes: Mapping[str, Shape]) -> dict[str, Array]:
    """Normal noise for floats, ones (valid as tokens, masks and lengths) for all else."""
    feeds = {spec.name: noise(_known(spec.name, shapes), spec.dtype) for spec in graph.inputs}
    return {name: engine.xp.asarray(array) for name, array in feeds.items()}


def _known(name: str, shapes: Mapping[str, Shape]) -> tuple[int, ...]:
    shape = shapes.get(name, (None,))
    if None in shape:
        raise InputError(f"'{name}' has a size that the model leaves open: give --shape NAME=1x3x224x224")
    return tuple(size for size in shape if size is not None)


def _seconds_within(graph: Graph, dependencies: DependencyGraph, run: _Run) -> dict[str, float]:
    """Seconds of each layer within the whole model, of those that can be found in its profile."""
    names, within = {layer.key: layer.name for layer in dependencies.layers}, dict[str, float]()
    for name, op, seconds in run.kernels:
        node = _node(graph, name)
        while node is not None and node.key not in names and op not in ("", node.op):  # named after what is fused to it
            node = next((graph.producers[source] for source in node.inputs if source in graph.producers), None)
        if node is not None and node.key in names:
            within[names[node.key]] = within.get(names[node.key], 0.0) + seconds
    return within


def _rest(graph: Graph, dependencies: DependencyGraph, run: _Run, start: float) -> Iterator[Rest]:
    """Kernels of nodes that are no layers, but carry channels."""
    keys = {layer.key for layer in dependencies.layers}
    scales = {node.name: node.scales for node in dependencies.unsolved if node.scales is not None}
    for name, op, seconds in run.kernels:
        node = _node(graph, name)
        if node is None or node.key in keys or op not in ("", node.op):
            continue
        carried = (scales.get(node.label), *(dependencies.labels.get(tensor) for tensor in (node.key, *node.inputs)))
        labels = next((candidate for candidate in carried if candidate is not None), None)
        if labels is not None and seconds > start:
            yield Rest(node.key, seconds - start, labels.reshape(-1))


def _node(graph: Graph, kernel: str) -> Node | None:
    """The node that a kernel is named after, if the runtime's optimiser left a trace of the name."""
    return graph.producers.get(kernel.removeprefix("fused ").removesuffix("_nchwc").removesuffix("/MatMulAddFusion"))


# -- steps -----------------------------------------------------------------------------------


def step_that_pays(seconds: Sequence[float] | Floats) -> int:
    """The multiple to hold widths to, from the seconds (n,) that all of 1..n channels take.

    Widths inside a block of 16 pay if they save their share of what the whole block saves: the
    finest of `STEPS` whose widths miss no more than an eighth of a block's saving, on average, is taken;
    in narrow groups one that leaves a few widths to choose from.
    """
    times, count = np.asarray(seconds, dtype=np.float64), len(seconds)
    coarsest = max(step for step in STEPS if step <= max(count // _FEW, 1))
    widths = np.arange(1, count + 1)
    whole = np.unique([1, *range(BLOCK, count, BLOCK), count])
    lost = times - np.interp(widths, whole, times[whole - 1])
    saved = (times[-1] - times[0]) * BLOCK / count
    inside = ~np.isin(widths, whole)
    for step in STEPS:
        tried = lost[inside & (widths % step == 0)]
        if step < coarsest and len(tried) and saved > 0 and tried.mean() <= _WASTE * saved:
            return step
    return coarsest


def _step(dependencies: DependencyGraph, group: Group, layers: Mapping[str, LayerLatency]) -> int:
    count = group.width * group.unit
    gone = 1 - np.arange(1, count + 1) / count
    total = np.zeros(count)
    for layer in dependencies.layers:
        read, written = (
            1 - float(np.isin(ends, group.labels).mean()) * gone for ends in (layer.inputs, layer.linear.writes)
        )
        if layer.name in group.writers or layer.name in group.readers:
            total += layers[layer.name].at(read, written)
    return step_that_pays(total)
