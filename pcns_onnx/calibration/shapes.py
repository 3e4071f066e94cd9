"""The dependency graph of a model as it is run: sizes are inferred, stated, or measured on samples."""

from __future__ import annotations

from pcns_onnx.data.dataset import Dataset
from pcns_onnx.dependency.dependency_graph import DependencyGraph, build_dependency_graph
from pcns_onnx.dependency.options import Scope
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.graph.queries import names_of
from pcns_onnx.runtime.activations import measure
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples, fixed_batch


def stated_shapes(graph: Graph, scope: Scope) -> dict[str, tuple[int, ...]]:
    """The shapes of --shape, each of an input and of its rank."""
    ranks = {spec.name: len(spec.shape) for spec in graph.inputs}
    stated = scope.shapes()
    for name, shape in stated.items():
        if name not in ranks:
            raise InputError(f"--shape names '{name}', which is no input: the model has {names_of(graph)}")
        if ranks[name] not in (0, len(shape)):
            raise InputError(f"--shape gives '{name}' {len(shape)} sizes, the input has {ranks[name]}")
    return stated


def dependency_graph_of(graph: Graph, engine: Engine, dataset: Dataset, scope: Scope) -> DependencyGraph:
    """Which channels go together; shapes that cannot be inferred (behind a custom operator) are measured on samples."""
    shapes = {name: array.shape for name, array in next(dataset.batches(1)).feeds.items()}
    shapes |= stated_shapes(graph, scope)
    dependencies = build_dependency_graph(graph, shapes, heads=scope.heads)
    outputs = (name for node in graph.nodes for name in node.outputs if name and not graph.is_constant(name))
    unknown = [name for name in outputs if None in dependencies.shapes.get(name, (None,))]
    if not unknown:
        return dependencies
    fixed = fixed_batch(graph)
    measured = measure(engine, graph, Samples(dataset, fixed or 1, fixed is not None), unknown)
    return build_dependency_graph(graph, shapes | measured, heads=scope.heads)
