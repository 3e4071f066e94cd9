"""PCNS over a graph: groups rebuilt on the principal components of their outputs.

Per group: capture the writer's inputs x and its outputs t behind the activation, expand
(`methods.pcns.components`), put the new neurons into the writer and V P into every reader.

Order. 'ascending' makes one pass per layer: x comes from the model as shrunk so far, so later
layers see and absorb the errors of earlier ones. 'descending' takes everything from the
original's activations and goes from the last layer to the first, as the drafts propose.
With `refit` each reader is solved again on the activations that the new neurons really have;
without it, the paper to the letter, P must commute with all that lies between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.calibration.columns import Columns, mixed_matrix
from pcns_onnx.calibration.eigenbasis import Basis
from pcns_onnx.calibration.layer_outputs import bases
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.graph import Graph
from pcns_onnx.methods.pcns.activations import Activation
from pcns_onnx.methods.pcns.components import RebuiltLayer, expand_components
from pcns_onnx.methods.pcns.eligibility import activation_nodes, activation_of
from pcns_onnx.numerics.arrays import Array, namespace_of, to_numpy
from pcns_onnx.numerics.ridge import Fit, fit
from pcns_onnx.reconstruction.targets import TargetObserver
from pcns_onnx.rewrite.channels import narrow
from pcns_onnx.rewrite.layer_weights import set_layer, stored_bias, stored_weight
from pcns_onnx.rewrite.patch import Patch, SetInput, apply
from pcns_onnx.runtime.activations import Cut, run_batches

_ROWS = 1 << 25
"""Largest number of elements of the rows that one expansion is solved on."""


@dataclass(frozen=True)
class Rebuilt:
    """One group after PCNS: relative L2 error of each generated eigenvector, weighted and plain."""

    errors: NDArray[np.float64]
    plain_errors: NDArray[np.float64]
    fits: dict[str, Fit]


def rebuild(
    calibration: Calibration,
    original: Graph,
    dependencies: DependencyGraph,
    widths: Mapping[str, int],
    *,
    order: str,
    refit: bool,
    group_bases: Mapping[str, Basis] | None = None,
) -> tuple[Graph, Patch, dict[str, Rebuilt]]:
    """Run PCNS on the groups in `widths` (name -> neurons); other groups stay as they are.

    `group_bases`: the groups' bases in `original`, where they are known already.
    """
    groups = [g for g in dependencies.groups if g.name in widths]
    if group_bases is None:
        group_bases = {group.name: basis for group, basis, _ in bases(calibration, original, dependencies, groups)}
    rebuilt: dict[str, Rebuilt] = {}
    current, edits = original, Patch()
    if order == "descending":
        groups.reverse()
    for group in calibration.progress.track(groups, "rebuild", len(groups)):
        reference = original if order == "ascending" else current
        current, patch, rebuilt[group.name] = _rebuild_one(
            calibration,
            original,
            reference,
            current,
            dependencies,
            group,
            group_bases[group.name],
            widths[group.name],
            refit,
        )
        edits += patch
    return current, edits, rebuilt


def _rebuild_one(
    calibration: Calibration,
    original: Graph,
    reference: Graph,
    current: Graph,
    dependencies: DependencyGraph,
    group: Group,
    basis: Basis,
    width: int,
    refit: bool,
) -> tuple[Graph, Patch, Rebuilt]:
    writer = dependencies.layer(group.name)
    sigma = activation_of(original, dependencies, group)
    assert isinstance(sigma, Activation), "refused groups are not rebuilt"
    x, t = rows(calibration, original, current, dependencies, group)
    new = expand_components(x, t, augmented(calibration, current, writer), basis, sigma, width)
    width = int(new.matrix.shape[0])
    keep = {group.name: group.labels[:width]}
    patch = narrow(current, dependencies, keep)
    following = apply(current, patch)
    writer_edits = set_layer(following, writer, to_numpy(new.matrix), to_numpy(new.bias))
    writer_edits += _slopes(original, dependencies, group, sigma, width)
    following, patch = apply(following, writer_edits), patch + writer_edits
    fits: dict[str, Fit] = {}
    for name in group.readers:
        reader = dependencies.layer(name)
        matrix, bias = _project(current, group, reader, new)
        if refit:
            fits[name] = solved = _refit_reader(calibration, reference, following, dependencies, reader, matrix)
            matrix, bias = solved.matrix, solved.bias
        reader_edits = set_layer(following, reader, to_numpy(matrix), to_numpy(bias))
        following, patch = apply(following, reader_edits), patch + reader_edits
    return following, patch, Rebuilt(new.errors, new.plain_errors, fits)


def rows(
    calibration: Calibration, original: Graph, current: Graph, dependencies: DependencyGraph, group: Group
) -> tuple[Array, Array]:
    """Inputs x of the writer in `current` and outputs t of the group in `original`, row by row."""
    writer = dependencies.layer(group.name)
    op, places = writer.linear.op, calibration.live_places(original, [writer.source, writer.output])
    choice = calibration.row_choice(dependencies, writer, 3, places)
    xs, ts, size = list[Array](), list[Array](), 0
    left = run_batches(calibration.engine, current, calibration.samples, [writer.source, *places.wanted])
    right = run_batches(calibration.engine, original, calibration.samples, [group.activation])
    for index, (a, b) in enumerate(zip(left, right, strict=True)):
        drawn = choice.draw(index, a[writer.source].shape, a)
        xs.append(drawn.inputs(op, a[writer.source]))
        ts.append(drawn.outputs(op, b[group.activation]))
        size += int(xs[-1].shape[0]) * (int(xs[-1].shape[1]) + int(ts[-1].shape[1]))
        if size > _ROWS:
            break
    xp = namespace_of(xs[0])
    return xp.concat(xs, axis=0), xp.concat(ts, axis=0)


def augmented(calibration: Calibration, graph: Graph, layer: Layer) -> Array:
    """The layer's weights V with its bias as a last column, (K, n + 1)."""
    matrix = layer.linear.op.matrix(stored_weight(graph, layer))
    return calibration.engine.xp.asarray(np.concatenate([matrix, stored_bias(graph, layer)[:, None]], axis=1))


def _slopes(graph: Graph, dependencies: DependencyGraph, group: Group, sigma: Activation, width: int) -> Patch:
    """A PRelu's slope per channel becomes the one slope that the new neurons were solved for."""
    if sigma.name != "PRelu" or width == group.width:
        return ()
    for key, node in activation_nodes(graph, dependencies, group).items():
        slope = graph.constant(node.inputs[1]) if node.op == "PRelu" else None
        if slope is not None:
            shape = [width if size == group.width else size for size in slope.shape]
            return (SetInput(key, 1, np.full(shape, sigma.alpha)),)
    return ()


def _project(graph: Graph, group: Group, reader: Layer, new: RebuiltLayer) -> tuple[Array, Array]:
    """V P and the bias that takes the offset; columns in the narrowed reader's own order."""
    xp = namespace_of(new.projection)
    neurons = np.arange(int(new.projection.shape[1]))
    part = reader.parts[0]
    columns = Columns.of(part, group.labels)
    matrix = xp.asarray(part.op.matrix(stored_weight(graph, reader)))
    wide = columns.index[neurons]
    shift = mixed_matrix(matrix, columns, new.offset[:, None], neurons[:1])[:, xp.asarray(wide[0])]
    bias = xp.sum(shift, axis=1) + xp.asarray(stored_bias(graph, reader))
    mixed = mixed_matrix(matrix, columns, new.projection, neurons)
    return xp.take(mixed, xp.asarray(np.sort(wide.reshape(-1))), axis=1), bias


def _refit_reader(
    calibration: Calibration,
    reference: Graph,
    following: Graph,
    dependencies: DependencyGraph,
    reader: Layer,
    prior: Array,
) -> Fit:
    """Least squares from the new activations to what the reader puts out in `reference`."""
    rows, places = [np.arange(int(prior.shape[0]))], calibration.live_places(reference, [reader.source, reader.output])
    choice = calibration.row_choice(dependencies, reader, 4, places)
    cuts = [Cut(following, [reader.source, *places.wanted]), Cut(reference, [reader.output])]
    (evidence,) = calibration.gather(
        cuts, TargetObserver(reader.parts, rows, choice, reader.source, reader.output)
    ).evidence
    return fit(evidence, prior)
