"""What a layer is solved for, gathered from the shrunk model and the original side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.live_rows import DrawnRows, LivePlaces, RowChoice
from pcns_onnx.dependency.layers import ConvGroup, Layer
from pcns_onnx.dependency.residual import RegressionTarget
from pcns_onnx.numerics.arrays import Array, namespace_of, to_numpy
from pcns_onnx.numerics.ridge import VALID, AnyEvidence, evidence_for, merged, settled
from pcns_onnx.reconstruction.windows import Windows
from pcns_onnx.runtime.executor import Sides


class TargetObserver:
    """What is known of each block of a layer: gathered from the shrunk model and the original, side by side.

    `rows` are, by block, the outputs that stay. The tensors `source` (the layer's input) and `already` (what the
    target has already, if anything) come from the shrunk model, which has no other outputs; `target` from the
    original. With `columns`, by block, the input is the original's, too, of which these columns of V are seen.
    """

    def __init__(
        self,
        parts: Sequence[ConvGroup],
        rows: Sequence[NDArray[np.int64]],
        choice: RowChoice,
        source: str,
        target: str,
        already: str = "",
        columns: Sequence[NDArray[np.int64]] | None = None,
    ) -> None:
        self._columns = columns
        self._parts, self._rows, self._choice = parts, rows, choice
        self._source, self._target, self._already = source, target, already
        self.evidence: list[AnyEvidence] = []

    def begin(self, sides: Sides, expected: int | None = None) -> None:
        """Choose what to keep, by how many rows are `expected`: where that is not said, as many as it sees itself."""
        x, drawn = sides[0][self._source], self._drawn(0, sides)
        count = self.expected_rows(sides) if expected is None else expected
        for block, rows in enumerate(self._rows):
            rows_x = self._inputs(block, x, drawn)
            self.evidence.append(evidence_for(count, int(rows_x.shape[1]), len(rows), namespace_of(rows_x)))

    def expected_rows(self, sides: Sides) -> int:
        """How many rows all samples will give, as the first ones do."""
        x = sides[0][self._source]
        rows = self._drawn(0, sides).inputs(self._parts[0].op, x).shape[0]
        return int(rows) * self._choice.positions.samples // int(x.shape[0])

    def update(self, index: int, sides: Sides) -> None:
        """Take a batch in."""
        shrunk, original = sides
        x, y, already = shrunk[self._source], original[self._target], shrunk.get(self._already)
        drawn = self._drawn(index, sides)
        for block, (part, rows, evidence) in enumerate(zip(self._parts, self._rows, self.evidence, strict=True)):
            rows_x, rows_y = self._inputs(block, x, drawn), drawn.outputs(part.op, y)
            xp = namespace_of(rows_x)
            rows_y = xp.take(rows_y, xp.asarray(rows), axis=1)
            if already is not None:
                rows_y = rows_y - drawn.outputs(part.op, already)
            _split(evidence, rows_x, rows_y, int(x.shape[0]), index, drawn)
            self.evidence[block] = settled(evidence)

    def merge(self, other: TargetObserver) -> None:
        """Add what was gathered of later batches."""
        if not self.evidence:
            self.evidence = other.evidence
            return
        for block, (own, others) in enumerate(zip(self.evidence, other.evidence, strict=True)):
            self.evidence[block] = merged(own, others)

    def _inputs(self, block: int, x: Array, drawn: DrawnRows) -> Array:
        rows = drawn.inputs(self._parts[block].op, x)
        if self._columns is None:
            return rows
        xp = namespace_of(rows)
        return xp.take(rows, xp.asarray(self._columns[block]), axis=1)

    def _drawn(self, index: int, sides: Sides) -> DrawnRows:
        return self._choice.draw(index, sides[0][self._source].shape, sides[0])


def _split(evidence: AnyEvidence, x: Array, y: Array, samples: int, index: int, drawn: DrawnRows) -> None:
    """One sample in `VALID` is kept aside; of batches of fewer, every `VALID`th."""
    aside = drawn.aside(int(x.shape[0]), samples, VALID)
    if samples < VALID and index % VALID == VALID - 1:
        evidence.valid.update(x, y)
        return
    evidence.valid.update(x[:aside], y[:aside])
    evidence.train.update(x[aside:], y[aside:])


@dataclass
class LayerObserver:
    """What a layer is solved from (if it is) and refined with (if it is): its input in the shrunk model, its aims."""

    gathered: TargetObserver | None
    windows: Windows | None
    source: str
    aim: RegressionTarget | None

    def begin(self, sides: Sides) -> None:
        """Choose what to keep."""
        if self.gathered is not None:
            self.gathered.begin(sides)

    def update(self, index: int, sides: Sides) -> None:
        """Take a batch in."""
        if self.windows is not None and self.aim is not None:
            aim, (shrunk, original) = self.aim, sides
            already = shrunk.get(aim.already)
            self.windows.update(index, shrunk[self.source], original[aim.tensor], already, shrunk)
        if self.gathered is not None:
            self.gathered.update(index, sides)

    def merge(self, other: LayerObserver) -> None:
        """Add what was seen of later batches."""
        if self.windows is not None and other.windows is not None:
            self.windows.merge(other.windows)
        if self.gathered is not None and other.gathered is not None:
            self.gathered.merge(other.gathered)


@dataclass
class MissingMeanObserver:
    """The sum over all rows that count of what a goal lacks without a layer: outputs `rows` of it."""

    layer: Layer
    rows: NDArray[np.int64]
    goal: RegressionTarget
    total: NDArray[np.float64]
    places: LivePlaces
    count: int = 0

    def begin(self, sides: Sides) -> None:
        """There is nothing to settle."""

    def update(self, index: int, sides: Sides) -> None:
        """Take a batch in."""
        shrunk, original = sides
        y, op = original[self.goal.tensor], self.layer.linear.op
        xp = namespace_of(y)
        lacks = xp.take(op.outputs(y, None), xp.asarray(self.rows), axis=1)
        lacks = lacks - op.outputs(shrunk[self.goal.already], None)
        live = self.places.spread(self.layer.output, y.shape, shrunk)
        if live is not None:
            counts = op.outputs(np.broadcast_to(live, tuple(y.shape)), None)[:, 0]
            lacks = xp.take(lacks, xp.asarray(np.flatnonzero(counts)), axis=0)
        self.total = self.total + to_numpy(xp.sum(lacks, axis=0, dtype=xp.float64))
        self.count += int(lacks.shape[0])

    def merge(self, other: MissingMeanObserver) -> None:
        """Add the rows of later batches."""
        self.total, self.count = self.total + other.total, self.count + other.count
