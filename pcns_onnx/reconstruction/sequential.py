"""The re-fit: original and shrunk model side by side, solved layer by layer from input to output.

Each layer is solved from the shrunk model's inputs to the original's outputs before the walk goes
on, so that errors of earlier layers are corrected and not accumulated.

A layer whose output goes straight into a sum is solved for what the sum still lacks: the
original's sum less what the shrunk model's other operand already has. So the last layer of a
residual block corrects the stream, not only its own branch.

Layers that share a weight are solved as one (`joint`), when the inputs of all are solved for.

With `steps` each layer that one other reads alone is refined together with it (`refine`), right
after it is solved; the reader is then solved anew in its turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.calibration.columns import BlockKey, ChannelCovariance, mixed_prior
from pcns_onnx.dependency.dependency_graph import DependencyGraph, kept_classes
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.dependency.residual import RegressionTarget, ResidualBlock, regression_target, residual_blocks
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import Array, to_numpy
from pcns_onnx.numerics.moments import Moments
from pcns_onnx.numerics.ridge import Evidence, Fit, fit, fit_apart
from pcns_onnx.ops import Labels
from pcns_onnx.reconstruction.joint import ROUNDS, JointObserver, Unit, bias_numbers, layers_behind, solving_order
from pcns_onnx.reconstruction.nonlinearity import nonlinearity
from pcns_onnx.reconstruction.recurrent import CellObserver, CellRefinement, CellSequences, fed_by, solve_cell
from pcns_onnx.reconstruction.refine import Pair, Refined, Weights, kept_aside, refine
from pcns_onnx.reconstruction.targets import LayerObserver, MissingMeanObserver, TargetObserver
from pcns_onnx.reconstruction.windows import Route, Windows, own_scale, route
from pcns_onnx.rewrite.drop_blocks import constant_for
from pcns_onnx.rewrite.layer_weights import set_layer, stored_bias, stored_weight
from pcns_onnx.rewrite.patch import Patch, edit
from pcns_onnx.runtime.activations import Cut
from pcns_onnx.runtime.executor import G


@dataclass(frozen=True)
class Refit:
    """What the re-fit made: the edits, and by layer how well it was solved and refined."""

    patch: Patch
    fits: Mapping[str, Fit]
    refined: Mapping[str, Refined]


def refit(
    calibration: Calibration,
    original: Graph,
    shrunk: Graph,
    dependencies: DependencyGraph,
    keep: Mapping[str, Labels],
    covariances: Mapping[BlockKey, Mapping[str, ChannelCovariance]],
    steps: int = 0,
    rows: Mapping[str, NDArray[np.float64]] | None = None,
) -> Refit:
    """Solve every layer behind the first narrowed group, in order.

    `keep` are the classes that stay, by narrowed group; `covariances`, by reader, how these groups vary
    there. The ridge pulls towards the original's weights, what went replaced by its mixture of
    what stayed. `shrunk` gets the new weights in place. With `steps`, layers are also refined;
    for those in `rows`, each row in its own scale counts so much.
    """
    sequence = _SequentialSolve(calibration, original, shrunk, dependencies, keep, covariances, steps, rows or {})
    patch: Patch = ()
    try:
        for at, layer in enumerate(calibration.progress.track(sequence.layers, "re-fit", len(sequence.layers))):
            edits = sequence.solve(at, layer)
            edit(shrunk, edits)
            patch += edits
    finally:
        sequence.close()
    return Refit(patch, sequence.fits, sequence.refined)


class _SequentialSolve:
    """The two streams and what has been solved so far."""

    def __init__(
        self,
        calibration: Calibration,
        original: Graph,
        shrunk: Graph,
        dependencies: DependencyGraph,
        keep: Mapping[str, Labels],
        covariances: Mapping[BlockKey, Mapping[str, ChannelCovariance]],
        steps: int,
        rows: Mapping[str, NDArray[np.float64]],
    ) -> None:
        self._calibration, self._original, self._shrunk, self._dependencies = (
            calibration,
            original,
            shrunk,
            dependencies,
        )
        self._keep, self._covariances, self._steps, self._rows = keep, covariances, steps, rows
        self._kept = kept_classes(dependencies, keep)
        self._streams = calibration.streams(2)
        self._ridge: float | None = None
        self._gone = {
            b.layer.name: b
            for name, b in residual_blocks(original, dependencies).items()
            if not len(keep.get(name, [0]))
        }
        dead = {name for block in self._gone.values() for name in block.group.writers}
        self._solved = {layer.name for layer in layers_behind(original, dependencies, keep)} - dead
        self._routes = dict(self._found_routes()) if steps else {}
        layers = [
            layer
            for layer in dependencies.layers
            if layer.name not in dead and (layer.name in self._solved or self._leads(layer))
        ]
        self._circular = self._put_in_order(layers)
        order = {node.key: at for at, node in enumerate(self._original.nodes)}
        units = (tuple(sorted(dependencies.uses(layer), key=lambda use: order[use.key])) for layer in layers)
        self._units: dict[str, Unit] = {unit[0].name: unit for unit in units}
        self.layers = sorted((unit[0] for unit in self._units.values()), key=lambda layer: order[layer.key])
        self._goals = {layer.name: self._goal(layer) for layer in layers}
        tensors = (name for layer in layers for name in (layer.source, layer.output))
        self._places = calibration.live_places(self._original, tensors)
        self.fits: dict[str, Fit] = {}
        self.refined: dict[str, Refined] = {}
        self._begin_circles()

    def close(self) -> None:
        """Remove what the streams hold."""
        self._streams.close()

    def _leads(self, layer: Layer) -> bool:
        """Whether a layer is narrowed, has nothing to correct, and can be refined."""
        return layer.name in self._routes and self._dependencies.writes(layer).name in self._keep

    def _found_routes(self) -> Iterator[tuple[str, Route]]:
        """Layers with the one that alone reads them, where that is solved."""
        for layer in self._dependencies.layers:
            way = route(self._original, self._dependencies, layer)
            if way is not None and way.reader.name in self._solved - self._gone.keys():
                yield layer.name, way

    def _put_in_order(self, layers: Sequence[Layer]) -> frozenset[str]:
        """Put the nodes such that units can be solved one after the other; names of those that cannot."""
        units = [self._dependencies.uses(layer) for layer in layers if not layer.is_repeated]
        if all(len(unit) == 1 for unit in units):
            return frozenset()
        order, circular = solving_order(self._original, units)
        self._original = self._original.copy()
        self._original.reorder(order)
        self._shrunk.reorder(order)
        return circular

    def _goal(self, layer: Layer) -> RegressionTarget:
        """What a layer is solved for; one of several with the same weight, for its own output."""
        if len(self._dependencies.uses(layer)) > 1 or layer.cell is not None:
            return RegressionTarget(layer.output)
        return regression_target(self._original, self._dependencies, layer)

    def _begin_circles(self) -> None:
        """Where units depend on themselves, a start for all: from the original's inputs, others from their mixtures."""
        if not self._circular:
            return
        for layer in self.layers:
            if layer.first_use in self._circular:
                edit(self._shrunk, self._solve_unit(0, self._units[layer.name], is_start=True))
            elif layer.name not in self._gone:
                matrix = np.concatenate([to_numpy(prior) for prior in self._priors(layer)])
                bias = stored_bias(self._original, layer)[self._outputs(layer)]
                for use in self._units[layer.name]:
                    edit(self._shrunk, set_layer(self._shrunk, use, matrix, bias))

    def _solve_unit(self, at: int, unit: Unit, *, is_start: bool = False) -> Patch:
        """Solve layers that have one weight: the edits of all."""
        is_circular, patch = unit[0].first_use in self._circular, Patch()
        for _ in range(ROUNDS if is_circular and not is_start else 1):
            edit(self._shrunk, patch)
            members = [self._observer(use, RegressionTarget(use.output), from_original=is_start) for use in unit]
            observer = JointObserver(members, bias_numbers(self._original, unit))
            sources, outputs = [use.source for use in unit], [use.output for use in unit]
            if is_circular:
                sources += self._places.wanted
                cuts = [Cut(self._original if is_start else self._shrunk, sources), Cut(self._original, outputs)]
                self._calibration.gather(cuts, observer)
            else:
                self._advance(at, sources, outputs, observer)
            fits = observer.fits(self._priors(unit[0]), self._ridge)
            patch = tuple(
                change
                for use, whole in zip(unit, fits, strict=True)
                for change in set_layer(self._shrunk, use, to_numpy(whole.matrix), to_numpy(whole.quiet_bias))
            )
        self.fits |= {use.name: whole for use, whole in zip(unit, fits, strict=True)}
        self._ridge = fits[0].ridge
        return patch

    def _observer(self, layer: Layer, goal: RegressionTarget, *, from_original: bool = False) -> TargetObserver:
        rows = [np.flatnonzero(self._kept[part.writes]) for part in layer.parts]
        columns = [np.flatnonzero(self._kept[part.op.owners(part.reads)]) for part in layer.parts]
        choice = self._calibration.row_choice(self._dependencies, layer, 1, self._places)
        kept = columns if from_original else None
        return TargetObserver(layer.parts, rows, choice, layer.source, goal.tensor, goal.already, kept)

    def solve(self, at: int, layer: Layer) -> Patch:
        """Solve layer number `at`, all before it being done: the edits."""
        if layer.name in self._gone:
            return self._leave_out(at, self._gone[layer.name])
        if layer.cell is not None:
            return self._solve_cell(at, layer)
        if len(self._units[layer.name]) > 1:
            return self._solve_unit(at, self._units[layer.name])
        way, goal, later = self._routes.get(layer.name), self._goals[layer.name], self.layers[at + 1 :]
        aim = None if way is None else self._aim(way.reader, [layer, *later])
        wanted = [goal.tensor] if aim is None else [goal.tensor, aim.tensor]
        from_shrunk = [layer.source, goal.already, "" if aim is None else aim.already]
        windows = gathered = None
        if way is not None and aim is not None:
            seed = (self._calibration.seed, 2, self._dependencies.layers.index(layer))
            outputs, room = self._outputs(way.reader), self._calibration.shares.windows
            windows = Windows(
                way, self._dependencies, outputs, self._calibration.samples.count, seed, room, self._places
            )
        if layer.name in self._solved:
            gathered = self._observer(layer, goal)
        self._advance(at, from_shrunk, wanted, LayerObserver(gathered, windows, layer.source, aim))
        if gathered is not None:
            fits = [fit(e, prior, self._ridge) for e, prior in zip(gathered.evidence, self._priors(layer), strict=True)]
            self.fits[layer.name] = whole = Fit.joined(fits)
            self._ridge = whole.ridge
            matrix, bias = whole.matrix, to_numpy(whole.quiet_bias)
        else:
            matrix, bias = self._priors(layer)[0], stored_bias(self._original, layer)[self._outputs(layer)]
        if windows is not None and windows.pieces and way is not None:
            matrix, bias = self._refine(way, windows, matrix, bias)
        return set_layer(self._shrunk, layer, to_numpy(matrix), bias)

    def _solve_cell(self, at: int, layer: Layer) -> Patch:
        """Solve a recurrent layer, whose own states are among its inputs."""
        observer = CellObserver.of(self._original, self._shrunk, layer, self._calibration.shares.windows)
        self._advance(at, observer.of_shrunk, [*observer.of_original, layer.output], observer)
        better = CellRefinement(self._original, self._dependencies, self._steps, self._calibration.seed)
        data = CellSequences(self._original, self._shrunk, layer, observer, self._kept)
        patch, self.fits[layer.name], refined = solve_cell(self._calibration.engine, data, self._priors(layer), better)
        self.refined |= {} if refined is None else {layer.name: refined}
        return patch

    def _needed(self, layers: Sequence[Layer]) -> list[str]:
        """Tensors of the shrunk model that these layers are solved from."""
        uses = [use for item in layers for use in self._units[item.name]]
        sources = [name for use in uses if use.name not in self._gone for name in fed_by(self._shrunk, use)]
        return sources + [self._goals[use.name].already for use in uses] + self._places.wanted

    def _leave_out(self, at: int, block: ResidualBlock) -> Patch:
        """Instead of a block, the mean of what the sum lacks without it."""
        layer, goal = block.layer, self._goals[block.layer.name]
        rows = self._outputs(layer)
        lacks = MissingMeanObserver(layer, rows, goal, np.zeros(len(rows)), self._places)
        sums = self._advance(at, [goal.already], [goal.tensor], lacks, finite=False)
        return (constant_for(block, self._dependencies, sums.total / max(sums.count, 1)),)

    def _advance(
        self, at: int, from_shrunk: Sequence[str], wanted: Sequence[str], into: G, *, finite: bool = True
    ) -> G:
        """Move the cuts in front of layer number `at`; gather `from_shrunk`, `wanted` of the original."""
        layer, later = self.layers[at], self.layers[at + 1 :]
        needed = [name for name in self._needed((layer, *later)) if name]
        uses = [use for item in later for use in self._units[item.name]]
        aims = [self._goals[use.name].tensor for use in uses]
        aims += [name for use in uses if use.cell is not None for name in fed_by(self._original, use)]
        inputs = Cut(self._shrunk, [*from_shrunk, *self._places.wanted], layer.key, needed, finite)
        return self._streams.advance([inputs, Cut(self._original, wanted, layer.key, aims, finite)], into)

    def _aim(self, reader: Layer, unsolved: Sequence[Layer]) -> RegressionTarget:
        """The reader's goal; its own output where the sum's other operand will change yet."""
        goal = self._goals[reader.name]
        pending, keys = [goal.already], {layer.key for layer in unsolved}
        visited = set[str]()
        while pending:
            node = self._shrunk.producers.get(pending.pop())
            if node is None or node.key in visited:
                continue
            if node.key in keys:
                return RegressionTarget(reader.output)
            visited.add(node.key)
            pending += [*node.inputs, *node.captures]
        return goal

    def _outputs(self, layer: Layer) -> NDArray[np.int64]:
        return np.flatnonzero(self._kept[layer.linear.writes])

    def _priors(self, layer: Layer) -> list[Array]:
        """V of each block on what stays, what went replaced by its mixture of what stayed."""
        xp = self._calibration.engine.xp
        matrix = xp.asarray(layer.linear.op.matrix(stored_weight(self._original, layer)))
        return [
            mixed_prior(matrix[part.rows, :], part, self._covariances.get((layer.first_use, block), {}), self._keep)[
                xp.asarray(np.flatnonzero(self._kept[part.writes])), :
            ]
            for block, part in enumerate(layer.parts)
        ]

    def _refine(
        self, way: Route, windows: Windows, matrix: Array, bias: NDArray[np.float64]
    ) -> tuple[Array, NDArray[np.float64]]:
        """The layer's weights after refinement with its reader, which starts from its least squares."""
        xp = self._calibration.engine.xp
        labels = self._dependencies.labels[way.layer.output]
        activation = nonlinearity(
            self._calibration.engine, self._shrunk, way.layer.output, way.group.activation, labels
        )
        prior, pieces = self._priors(way.reader)[0], windows.pieces
        if way.reader.name in self._rows:
            weight = self._rows[way.reader.name][self._outputs(way.reader)]
            scale = own_scale(pieces) / np.sqrt(np.maximum(weight, 1e-6))
            prior, pieces = prior / xp.asarray(scale)[:, None], [piece.in_units(scale) for piece in pieces]
        blank = xp.zeros(int(prior.shape[0]), dtype=xp.float32)
        start = Weights(*(xp.astype(xp.asarray(a), xp.float32) for a in (matrix, bias, prior, blank)))
        evidence = Evidence(*(Moments(int(prior.shape[1]), int(prior.shape[0]), xp) for _ in range(2)))
        for known, part in zip((evidence.valid, evidence.train), kept_aside(pieces), strict=True):
            for piece in part:
                rows = Pair(activation).read(start, piece)
                known.update(rows, xp.reshape(piece.y, (int(rows.shape[0]), -1)))
        first = fit_apart(evidence, prior, self._ridge)
        start = replace(start, v=xp.astype(first.matrix, xp.float32), c=xp.astype(first.bias, xp.float32))
        seed = (self._calibration.seed, 3, self._dependencies.layers.index(way.layer))
        with self._calibration.progress.stage("refine"):
            self.refined[way.layer.name] = refined = refine(pieces, start, activation, self._steps, seed)
        return refined.weights.w, to_numpy(refined.weights.b).astype(np.float64)
