"""Shapes of all tensors, and the dependency graph that rests on them: inferred, stated, or measured on samples."""

from __future__ import annotations

from pcns_onnx.api.options import HEADS, Options
from pcns_onnx.data.dataset import Dataset
from pcns_onnx.dependency.dependency_graph import DependencyGraph, build_dependency_graph
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.graph.queries import names_of
from pcns_onnx.ops import Heads
from pcns_onnx.runtime.activations import measure
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples, fixed_batch


def stated_shapes(graph: Graph, options: Options) -> dict[str, tuple[int, ...]]:
    """The shapes of --shape, each of an input and of its rank."""
    ranks = {spec.name: len(spec.shape) for spec in graph.inputs}
    for name, shape in options.shapes().items():
        if name not in ranks:
            raise InputError(f"--shape names '{name}', which is no input: the model has {names_of(graph)}")
        if ranks[name] not in (0, len(shape)):
            raise InputError(f"--shape gives '{name}' {len(shape)} sizes, the input has {ranks[name]}")
    return options.shapes()


def heads_of(options: Options) -> Heads:
    """What to take from attention."""
    return next(choice for choice in HEADS if choice == options.heads)


def dependency_graph_of(graph: Graph, engine: Engine, dataset: Dataset, options: Options) -> DependencyGraph:
    """The survey; shapes that cannot be inferred (behind a custom operator) are measured on some samples."""
    shapes = {name: array.shape for name, array in next(dataset.batches(1)).feeds.items()}
    shapes |= stated_shapes(graph, options)
    dependencies = build_dependency_graph(graph, shapes, heads=heads_of(options))
    made = (name for node in graph.nodes for name in node.outputs if name and not graph.is_constant(name))
    unknown = [name for name in made if None in dependencies.shapes.get(name, (None,))]
    if not unknown:
        return dependencies
    fixed = fixed_batch(graph)
    measured = measure(engine, graph, Samples(dataset, fixed or 1, fixed is not None), unknown)
    return build_dependency_graph(graph, shapes | measured, heads=heads_of(options))
