"""Where the outputs of a model have their channels, and what counts more by the user's word.

Which axis holds the channels is read off the graph: where the last layers write, followed through the nodes; behind
what cannot be followed, the axis of a Softmax on the way, else the shortest of the axes whose size is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.output_weight import OutputWeight
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.last_layers import last_layers
from pcns_onnx.graph import Graph, Shape
from pcns_onnx.ops import Labels

_STEPS = 64


@dataclass(frozen=True)
class OutputLayout:
    """Where the outputs of a model have their channels (`labels`, `axes`), and what counts more by the user's word."""

    labels: Mapping[str, Labels] = field(default_factory=dict)
    axes: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    weights: Sequence[OutputWeight] = ()

    @classmethod
    def of(cls, graph: Graph, dependencies: DependencyGraph, weights: Sequence[OutputWeight] = ()) -> OutputLayout:
        """As read off a graph."""
        names = [spec.name for spec in graph.outputs]
        labels, axes = dict[str, Labels](), dict[str, int]()
        for name in names:
            channels = _followed(graph, dependencies, name)
            if isinstance(channels, int):
                axes[name] = channels
            elif channels is not None:
                labels[name] = channels
        return cls(labels, axes, {spec.name: spec.shape for spec in graph.outputs}, tuple(weights))

    def ids(self, name: str, shape: Sequence[int], batch: int | None = 0) -> tuple[Labels, int | None]:
        """The channel of each place of an output of this shape, and the axis that channels are counted along.

        Samples are counted by the first axis, which was axis `batch` in the model (None: it has been added).
        """
        labels, stated = self.labels.get(name), self.shapes.get(name, ())
        axis = self.axes.get(name)
        if batch is None:
            labels, stated = None if labels is None else labels[None], (1, *stated)
            axis = None if axis is None else axis + 1
        elif batch and len(stated) == len(shape):
            labels = None if labels is None else np.moveaxis(labels, batch, 0)
            order = [batch, *(at for at in range(len(shape)) if at != batch)]
            stated, axis = tuple(stated[at] for at in order), None if axis is None else order.index(axis)
        fits = labels is not None and labels.ndim == len(shape)
        if labels is not None and fits and all(a in (1, b) for a, b in zip(labels.shape, shape, strict=True)):
            long = [axis for axis, size in enumerate(labels.shape) if size > 1]
            if long and labels.shape[0] == 1:
                along = np.indices(labels.shape)[long[-1]]  # what nobody is known to have written goes by its place
                ids = np.where(labels < 0, -1 - along, labels)
                return np.unique(ids, return_inverse=True)[1].reshape(labels.shape), long[-1]
        axis = _shortest(stated, shape) if axis is None else axis
        if axis is None or not 0 < axis < len(shape):
            return np.zeros((1,) * max(len(shape), 1), dtype=np.int64), None
        ids = np.arange(shape[axis])
        return ids.reshape([-1 if at == axis else 1 for at in range(len(shape))]), axis


def last_rows(graph: Graph, dependencies: DependencyGraph, layout: OutputLayout) -> dict[str, NDArray[np.float64]]:
    """The layers whose rows are what the outputs hold, by name, with how much each row (K,) counts."""
    rows = {}
    for name in last_layers(graph, dependencies):
        writes = dependencies.layer(name).linear.writes
        weight = np.ones(len(writes))
        for chosen in layout.weights:
            labels = layout.labels.get(chosen.output)
            if labels is not None:
                ids, axis = layout.ids(chosen.output, labels.shape)
                along = np.indices(ids.shape)[axis or 0]
                meant = labels[chosen.holds(along.reshape(-1)).reshape(ids.shape)]
                weight[np.isin(writes, meant)] = chosen.weight
        rows[name] = weight
    return rows


def _shortest(stated: Shape, shape: Sequence[int]) -> int | None:
    """The shortest axis behind the first whose size is stated and above one; of equal ones the last."""
    known = stated if len(stated) == len(shape) and any(stated[1:]) else shape
    sizes = {axis: size for axis, size in enumerate(shape) if axis and known[axis] is not None and size > 1}
    return min(sizes, key=lambda axis: (sizes[axis], -axis), default=None)


def _followed(graph: Graph, dependencies: DependencyGraph, name: str) -> Labels | int | None:
    """The labels of an output; without any, those of what it is made of place by place, or the axis of a Softmax.

    A node that keeps the shape works place by place, or along the axis that it names.
    """
    shape = dependencies.shapes.get(name, ())
    for _ in range(_STEPS):
        if name in dependencies.labels:
            return dependencies.labels[name]
        node = graph.producers.get(name)
        sources = [item for item in node.inputs if dependencies.shapes.get(item) == shape] if node is not None else []
        varying = [item for item in sources if not graph.is_constant(item)]
        if node is None or len(varying) != 1 or not shape:
            return None
        if isinstance(node.attrs.get("axis"), int):
            return int(node.attrs["axis"]) % len(shape)
        name = varying[0]
    return None
