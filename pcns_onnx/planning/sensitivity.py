"""What a group's loss does to the model's outputs: a few forward passes per group.

Error curves see a group through the layers that read it. How much of that error arrives at the
outputs depends on everything behind: a residual stream carries it past all later blocks, a wide
layer in front of a bottleneck hardly at all. So each group is narrowed alone, at the few widths
where its own curve reaches `LEVELS`; its readers make up for it with the mixture of what stayed;
and the model runs on from there. Between these widths the outputs' error follows the group's own,
on logarithmic scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.calibration.columns import ChannelCovariance, mixed_prior
from pcns_onnx.calibration.group_inputs import GroupStats
from pcns_onnx.calibration.live_rows import RowChoice
from pcns_onnx.calibration.output_layout import OutputLayout
from pcns_onnx.calibration.output_scale import OutputError
from pcns_onnx.calibration.ranking import Ranking
from pcns_onnx.dependency.dependency_graph import DependencyGraph, kept_classes
from pcns_onnx.dependency.groups import Group
from pcns_onnx.dependency.residual import ResidualBlock, residual_blocks
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import Array, to_numpy
from pcns_onnx.ops import Labels
from pcns_onnx.rewrite.change_basis import Absorption, change_basis
from pcns_onnx.rewrite.channels import narrow
from pcns_onnx.rewrite.contract import filled
from pcns_onnx.rewrite.drop_blocks import constant_for
from pcns_onnx.rewrite.layer_weights import set_layer, stored_bias, stored_weight
from pcns_onnx.rewrite.patch import Patch, apply
from pcns_onnx.runtime.activations import ActivationStream, Cut, inputs_of
from pcns_onnx.runtime.engine import Session, Tensors
from pcns_onnx.runtime.samples import Positions, Samples

LEVELS = (0.003, 0.03, 0.3)
"""Shares of the readers' output variance at whose widths a group is probed."""
SAMPLES = (16, 128)
"""Fewest and most samples to probe with."""
PASSES = 3.0
"""Forward passes over all samples that the probing of all groups may cost, more or less."""
_LEAST, _ROUNDING = 1e-12, 1e-10


def probe_samples(count: int, groups: int) -> int:
    """How many of `count` samples to probe with, so that all `groups` cost about `PASSES`."""
    runs = max(groups * (len(LEVELS) + 1) / 2, 1)
    low, high = SAMPLES
    return int(min(count, max(low, min(high, PASSES * count / runs))))


class Prober:
    """Probes groups one after the other, in topological order of their first writers."""

    def __init__(
        self,
        calibration: Calibration,
        samples: Samples,
        graph: Graph,
        dependencies: DependencyGraph,
        outputs: Sequence[str],
        layout: OutputLayout,
    ) -> None:
        self._calibration, self._dependencies = calibration, dependencies
        self._outputs, self._layout = list(outputs), layout
        self._stream = ActivationStream(calibration.engine, samples, calibration.shares.stream)
        self._expected: list[Tensors] = []
        self._blocks = residual_blocks(graph, dependencies)

    def close(self) -> None:
        """Remove what the stream holds."""
        self._stream.close()

    def curve(
        self, graph: Graph, base: Graph, read: GroupStats, ranking: Ranking, absorptions: Sequence[Absorption] = ()
    ) -> NDArray[np.float64]:
        """(N+1,): squared error of the outputs, each channel in its own scale, at every width of the group.

        `graph` is the original, `base` the same with this group in the basis that `ranking` is of. `absorptions`: the
        heads of a cache for which Q makes up.
        """
        block = self._blocks.get(read.group.name)
        widths = _widths(ranking, read.group.step)
        first = min(
            (self._dependencies.layer(name) for name in read.group.writers), key=self._dependencies.layers.index
        )
        behind, inputs = graph.made_from(first.key), inputs_of(graph)
        outputs = [name for name in self._outputs if name in behind or read.group.states]  # no others can change
        if not outputs:
            return ranking.error
        # The inputs too: what is narrowed may count anew, from them, what the original has counted in front.
        later = [*outputs, *inputs]
        live = inputs if read.group.states else self._stream.live(graph, first.key, later)
        sessions: list[tuple[Graph, Session]] = []
        places = self._calibration.live_places(graph, self._outputs)
        models = len(widths) + (block is not None)
        errors = OutputError(outputs, self._layout, models, len(self._outputs), places)
        stop = Cut(graph, list(dict.fromkeys([*live, *places.wanted])), first.key, later, finite=False)
        missing = [name for name in outputs if not self._expected or name not in self._expected[0]]
        full = self._session(base, live, missing) if missing else None
        for index, cut in enumerate(self._stream.advance(stop)):
            if full is not None:
                self._expected[index : index + 1] = [{**dict(*self._expected[index : index + 1]), **full.run(cut)}]
            if not sessions:
                means = self._means(base, live, cut, read)
                graphs = list(self._narrowed(base, read, ranking, widths, means, absorptions))
                graphs += [] if block is None else [self._without(base, block, means)]
                sessions = [(g, self._session(g, live, outputs)) for g in graphs]
            errors.expect(self._expected[index], cut)
            for at, (small, session) in enumerate(sessions):
                actual = filled(small, self._expected[index], session.run(cut))
                errors.update(self._expected[index], actual, at, cut)
        loss = errors.shares()
        applied = [_applied(read, ranking.keep(width)) for width in widths]
        for at, width in enumerate(widths):
            if applied[at] > 0 and not read.group.coupled:  # a stream's loss is not made up for reader by reader
                loss[at] *= min(ranking.error[width] / applied[at], 1.0)
        if block is None:
            return _between(ranking.error, widths, loss)
        curve = _between(ranking.error, widths, loss[:-1])
        curve[0] = loss[-1] if loss[-1] > _ROUNDING else 0.0
        return curve

    def _without(self, base: Graph, block: ResidualBlock, means: dict[tuple[str, int], Array]) -> Graph:
        """The model with a constant, the mean of what its last layer makes, in a block's place."""
        matrix = block.layer.linear.op.matrix(stored_weight(base, block.layer))
        mean = matrix @ to_numpy(means[block.layer.name, 0]) + stored_bias(base, block.layer)
        return apply(base, (constant_for(block, self._dependencies, mean),))

    def _session(self, graph: Graph, live: Sequence[str], outputs: Sequence[str]) -> Session:
        return self._calibration.engine.session(graph.extract(live, outputs).program())

    def _means(self, base: Graph, live: Sequence[str], cut: Tensors, read: GroupStats) -> dict[tuple[str, int], Array]:
        """Mean of each reading block's input rows."""
        layers = [self._dependencies.layer(name) for name in read.group.readers]
        sources = [name for layer in layers for name in layer.sources]
        computed = [name for name in dict.fromkeys(sources) if name not in live]
        computed_sources = (
            self._calibration.engine.session(base.extract(live, computed).program()).run(cut) if computed else {}
        )
        xp, means = self._calibration.engine.xp, {}
        places = self._calibration.live_places(base, [n for layer in layers for n in (layer.source, layer.output)])
        for layer in layers:
            x = layer.rows_from({n: xp.asarray(computed_sources.get(n, cut.get(n))) for n in layer.sources})
            drawn = RowChoice.of(Positions(x.size, 1, ()), layer, places).draw(0, x.shape, cut)
            for block, part in enumerate(layer.parts):
                if (layer.first_use, block) in read.layers:
                    means[layer.name, block] = xp.mean(drawn.inputs(part.op, x), axis=0, dtype=xp.float64)
        return means

    def _narrowed(
        self,
        base: Graph,
        read: GroupStats,
        ranking: Ranking,
        widths: Sequence[int],
        means: dict[tuple[str, int], Array],
        absorptions: Sequence[Absorption],
    ) -> Iterator[Graph]:
        """The model at each of the group's widths."""
        covariances = read.covariances()
        for width in widths:
            keep = {read.group.name: read.group.labels[ranking.keep(width)]}
            kept = kept_classes(self._dependencies, keep)
            changes = [change for absorption in absorptions for change in absorption.changes(kept)]
            rotated = change_basis(base, self._dependencies, changes)[0]
            small = apply(rotated, narrow(rotated, self._dependencies, keep))
            yield apply(small, self._readers(base, small, read.group, keep, covariances, means))

    def _readers(
        self,
        base: Graph,
        small: Graph,
        group: Group,
        keep: dict[str, Labels],
        covariances: dict[tuple[str, int], ChannelCovariance],
        means: dict[tuple[str, int], Array],
    ) -> Patch:
        xp, kept = self._calibration.engine.xp, kept_classes(self._dependencies, keep)
        patch: Patch = ()
        for name in group.readers:
            layer = self._dependencies.layer(name)
            matrix = xp.asarray(layer.linear.op.matrix(stored_weight(base, layer)))
            bias = stored_bias(base, layer)
            residual_blocks, shifts = [], []
            for block, part in enumerate(layer.parts):
                covariance, own = covariances.get((layer.first_use, block)), matrix[part.rows, :]
                rows = np.flatnonzero(kept[part.writes])
                prior = mixed_prior(own, part, {} if covariance is None else {group.name: covariance}, keep)
                shift = xp.zeros(int(own.shape[0]), dtype=xp.float64)
                if covariance is not None:
                    mean, owners = means[name, block], part.op.owners(part.reads)
                    shift = own @ mean - prior @ xp.take(mean, xp.asarray(np.flatnonzero(kept[owners])), axis=0)
                residual_blocks.append(to_numpy(prior)[rows])
                shifts.append((bias[part.rows] + to_numpy(shift))[rows])
            patch += set_layer(small, layer, np.concatenate(residual_blocks), np.concatenate(shifts))
        return patch


def _widths(ranking: Ranking, step: int = 1) -> list[int]:
    """The largest widths (multiples of `step`) whose error reaches each level, widest first, all different."""
    full = len(ranking.order)
    widths: list[int] = []
    for level in LEVELS:
        reached = np.flatnonzero(ranking.error[:full] >= level)
        width = max(int(reached[-1]) // step * step if len(reached) else ranking.least, ranking.least, step)
        if width < full and width not in widths:
            widths.append(width)
    return widths


def _applied(read: GroupStats, kept: NDArray[np.int64]) -> float:
    """The readers' mean lost share with the mixture in place of what went; 0 where something else is done."""
    if read.products:
        return 0.0
    losses = []
    for reading in read.layers.values():
        places = np.flatnonzero(np.isin(reading.among(read.group.width), kept))
        losses.append(reading.lost(places) / max(reading.output_variance(), 1e-300))
    return float(np.mean(losses)) if losses else 0.0


def _between(own: NDArray[np.float64], widths: Sequence[int], loss: NDArray[np.float64]) -> NDArray[np.float64]:
    """The outputs' error at every width from that at a few: piecewise linear in the logarithms of both errors."""
    if not len(widths):
        return own
    x = np.log(np.maximum(own[list(widths)], _LEAST))
    y = np.log(np.maximum(np.maximum.accumulate(loss), _LEAST))
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    at = np.log(np.maximum(own, _LEAST))
    errors = np.interp(at, x, y)
    errors = np.where(at < x[0], y[0] + (at - x[0]), errors)
    errors = np.where(at > x[-1], y[-1] + (at - x[-1]), errors)
    return np.where(own > 0, np.exp(errors), 0.0)
