"""What every pass over the data needs to know, and how it is run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from pcns_onnx.calibration.columns import COLUMNS
from pcns_onnx.calibration.live_rows import LivePlaces, RowChoice
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.graph import Graph
from pcns_onnx.progress import Progress
from pcns_onnx.runtime.activations import Cut, run_batches
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.executor import ActivationStreams, Executor, G, LocalExecutor
from pcns_onnx.runtime.memory import MemoryBudget
from pcns_onnx.runtime.padding import find_places
from pcns_onnx.runtime.samples import Positions, Samples

ROWS_PER_COLUMN = (40, 20)
"""Rows sampled per column of a layer: up to, and beyond, a thousand columns."""
LIVE_ROWS_PER_COLUMN = 80
"""The same where it is known which positions count: there are fewer of them, and tokens are less alike than pixels."""


@dataclass(frozen=True)
class Calibration:
    """What every pass needs to know: where to run, on which samples, with which seed, in how much memory, by whom."""

    engine: Engine
    samples: Samples
    seed: int
    progress: Progress
    shares: MemoryBudget = field(default_factory=MemoryBudget)
    executor: Executor = field(default_factory=LocalExecutor)

    def streams(self, count: int) -> ActivationStreams:
        """Streams of activations over the samples, side by side, from the inputs on."""
        return self.executor.streams(self.engine, self.samples, self.progress, self.shares.stream, count)

    def gather(self, ends: Sequence[Cut], into: G, title: str | None = None) -> G:
        """Run graphs over all samples, each to its end, and gather what is wanted there into `into`."""
        with closing(self.streams(len(ends))) as streams:
            return streams.advance(ends, into, title)

    def scattered(self, columns: int) -> Positions:
        """Sampled positions of a tensor that no layer reads."""
        return Positions(columns * ROWS_PER_COLUMN[0], self.samples.count, (self.seed, 5), self.samples.lengths)

    def positions(self, dependencies: DependencyGraph, layer: Layer, stage: int) -> Positions:
        """Sampled output positions of a layer, drawn anew for each stage; layers with one weight share the rows."""
        columns = len(layer.linear.reads) // layer.linear.op.conv_groups * layer.linear.op.taps
        columns = min(columns, COLUMNS) if stage == 0 else columns
        lengths = self.samples.lengths
        per_column = ROWS_PER_COLUMN[columns > 1024] if lengths is None else LIVE_ROWS_PER_COLUMN
        rows = -(-columns * per_column // len(dependencies.uses(layer)))
        seed = (self.seed, stage, dependencies.layers.index(layer))
        return Positions(rows, self.samples.count, seed, lengths)

    def live_places(self, graph: Graph, names: Iterable[str]) -> LivePlaces:
        """Where these tensors of `graph` have their positions, if any of them are padding."""
        padding = self.samples.data.padding
        if padding is None:
            return LivePlaces()
        find_places(self.engine, graph, padding, names)
        return LivePlaces(padding.mask, padding.places)

    def row_choice(
        self, dependencies: DependencyGraph, layer: Layer, stage: int, places: LivePlaces | None = None
    ) -> RowChoice:
        """The rows of a layer that are looked at: at sampled positions, and no padding."""
        return RowChoice.of(self.positions(dependencies, layer, stage), layer, places or LivePlaces())


def is_same(calibration: Calibration, a: Graph, b: Graph, names: Sequence[str]) -> bool:
    """Whether two graphs agree, up to the rounding of float32, on these tensors for the first batch."""
    both = (
        next(run_batches(calibration.engine, graph, calibration.samples, list(dict.fromkeys(names))))
        for graph in (a, b)
    )
    xp, (left, right) = calibration.engine.xp, both
    excesses = [float(xp.max(xp.abs(left[n] - right[n]))) - 1e-3 * float(xp.max(xp.abs(left[n]))) for n in names]
    return all(excess <= 0 for excess in excesses)
