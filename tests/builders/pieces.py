"""A layer, its reader and what lies between, as refinement sees them, of any model with one hidden layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from builders.models import Array
from pcns_onnx.dependency.dependency_graph import DependencyGraph, build_dependency_graph
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.reconstruction.refine import Weights
from pcns_onnx.reconstruction.windows import ROWS, Piece, Route, Windows, route
from pcns_onnx.rewrite.explicit_bias import explicit_biases
from pcns_onnx.rewrite.layer_weights import stored_bias, stored_weight
from pcns_onnx.runtime.engine import Engine

ENGINE = Engine("cpu", 1)


@dataclass(frozen=True)
class Hidden:
    """The hidden layer of a model whose first layer is read by the second."""

    graph: Graph
    dependencies: DependencyGraph
    route: Route

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Hidden:
        graph = explicit_biases(Graph.load(model))[0].as_float32()
        dependencies = build_dependency_graph(graph)
        found = route(graph, dependencies, dependencies.layers[0])
        assert found is not None, "its first layer is read by one layer alone"
        return cls(graph, dependencies, found)

    def samples(self, count: int, seed: int = 0) -> Array:
        """Noise as the model takes it."""
        shape = [size or count for size in self.graph.inputs[0].shape]
        return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

    def windows(self, x: Array, places: int | None = None, xp: Any = np, batches: int = 1) -> list[Piece]:
        """Pieces of onnxruntime's own tensors; about `places` of the reader's outputs per sample, None for all."""
        made = ENGINE.session(self.graph.extract(["x"], [self.route.reader.output]).program())
        samples = len(x) if places is None else ROWS // places
        found = Windows(self.route, self.dependencies, np.arange(self.route.reader.width), samples, (0, 2, 0))
        for index, batch in enumerate(np.array_split(x, batches)):
            y = made.run({"x": batch})[self.route.reader.output]
            found.update(index, xp.asarray(batch), xp.asarray(y), None)
        return found.pieces

    @property
    def weights(self) -> Weights:
        """The original's."""
        layers = self.route.layer, self.route.reader
        w, v = (layer.linear.op.matrix(stored_weight(self.graph, layer)).astype(np.float32) for layer in layers)
        b, c = (stored_bias(self.graph, layer).astype(np.float32) for layer in layers)
        return Weights(w, b, v, c)

    @property
    def sigma(self) -> Callable[[Array], Array]:
        """The model's own activation on rows (R, M), in onnxruntime."""
        output, activation = self.route.layer.output, self.route.group.activation
        if output == activation:
            return lambda rows: rows
        session = ENGINE.session(self.graph.extract([output], [activation]).program())
        labels = self.dependencies.labels[output]

        def sigma(rows: Array) -> Array:
            shape = [len(rows), *labels.shape[1:]]
            shape[int(np.argmax(labels.shape))] = rows.shape[1]
            return to_numpy(session.run({output: rows.reshape(shape)})[activation]).reshape(rows.shape)

        return sigma


def cast(piece: Piece, dtype: Any) -> Piece:
    """The same in another type."""
    return replace(piece, x=piece.x.astype(dtype), y=piece.y.astype(dtype))


def disturbed(weights: Weights, amount: float, seed: int = 0, dtype: Any = np.float32) -> Weights:
    """Weights, each with noise of this share of its matrix's size."""
    draw = np.random.default_rng(seed)
    return Weights(*(a.astype(dtype) + (amount * draw.standard_normal(a.shape)).astype(dtype) for a in weights.all))
