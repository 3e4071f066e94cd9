"""Least squares instead of truncation: the layers of a narrowed stream, solved in order from input to output.

A reader is solved from the narrow stream to what it made of the whole one, a writer for what the first d channels of
the whole rotated stream are still lacking behind it:

    min |y - V n'|² over readers,      min |Q_d'x - x' - W h'|² over writers

with x' the narrow stream, as the layers before have left it. With few samples this fits them and nothing else, so the
caller compares both on samples that neither has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

import numpy as np

from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.dependency.residual import RegressionTarget, regression_target
from pcns_onnx.dependency.streams.stream import Stream
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.numerics.ridge import fit
from pcns_onnx.reconstruction.targets import TargetObserver
from pcns_onnx.rewrite.layer_weights import set_layer, stored_weight
from pcns_onnx.rewrite.patch import Patch, edit
from pcns_onnx.runtime.activations import Cut


def refit_stream(
    calibration: Calibration, whole: Graph, narrow: Graph, stream: Stream, dependencies: DependencyGraph, kept: int
) -> Patch:
    """The edits that solve the layers of a stream in `narrow`; `whole` is the same model with all axes of the basis.

    Both have their layers and tensors by the same names, `dependencies` are those of `whole`. Layers with one weight in
    several places are left as they are.
    """
    result, patch, ridge = narrow.copy(), Patch(), None
    order = {node.key: at for at, node in enumerate(whole.nodes)}
    wanted = {writer.layer.name for writer in stream.writers.values()} | set(stream.readers)
    layers = [
        layer for layer in dependencies.layers if layer.name in wanted and not _is_tied(narrow, dependencies, layer)
    ]
    layers.sort(key=lambda layer: order[layer.key])
    goals = {layer.name: _goal(whole, dependencies, layer, layer.name in stream.writers) for layer in layers}
    places = calibration.live_places(whole, [name for layer in layers for name in (layer.source, layer.output)])
    with closing(calibration.streams(2)) as streams:
        for at, layer in enumerate(calibration.progress.track(layers, "stream re-fit", len(layers))):
            goal, later = goals[layer.name], layers[at + 1 :]
            outputs = np.arange(kept if layer.name in stream.writers else layer.width)
            choice = calibration.row_choice(dependencies, layer, 1, places)
            observer = TargetObserver(layer.parts, [outputs], choice, layer.source, goal.tensor, goal.already)
            sources = _sources([layer, *later], goals, places.wanted)
            cuts = [
                Cut(result, _sources([layer], goals, places.wanted), layer.key, sources),
                Cut(whole, [goal.tensor], layer.key, [goals[other.name].tensor for other in later]),
            ]
            observer = streams.advance(cuts, observer)
            xp = calibration.engine.xp
            prior = xp.asarray(layer.linear.op.matrix(stored_weight(result, layer)))
            solved = fit(observer.evidence[0], prior, ridge)
            ridge = solved.ridge
            edits = set_layer(result, layer, to_numpy(solved.matrix), to_numpy(solved.quiet_bias))
            edit(result, edits)
            patch += edits
    return patch


def _sources(layers: list[Layer], goals: Mapping[str, RegressionTarget], beside: list[str]) -> list[str]:
    """What these layers are solved from."""
    names = [name for layer in layers for name in (layer.source, goals[layer.name].already)]
    return [name for name in dict.fromkeys((*names, *beside)) if name]


def _goal(graph: Graph, dependencies: DependencyGraph, layer: Layer, writes: bool) -> RegressionTarget:
    """A writer's sum, less what it has already; else the layer's own output."""
    return regression_target(graph, dependencies, layer) if writes else RegressionTarget(layer.output)


def _is_tied(graph: Graph, dependencies: DependencyGraph, layer: Layer) -> bool:
    """Whether a weight has other readers than this layer, or cannot be solved for."""
    name = graph.node(layer.key).inputs[layer.linear.weight]
    return dependencies.is_bound(layer) or len(graph.consumers.get(name, ())) > 1 or name in graph.derived
