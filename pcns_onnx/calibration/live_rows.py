"""Which rows of a layer's input, and which places of other tensors, count: those that are no padding.

    moments = sum over t with w_t = 1 of x_t x_t' / sum of w_t

Positions are followed by how they react to other values in the padding (`runtime.padding`), so that (samples,
positions, ...), (samples, heads, positions, width) and (samples times positions, ...) are all understood. A Conv's row
counts where its output position does. Where nothing is known, every row counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.data.padding import Live, PositionAxes
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.numerics.arrays import Array, namespace_of, to_numpy
from pcns_onnx.ops import LinearOp
from pcns_onnx.runtime.samples import Positions


@dataclass(frozen=True)
class LivePlaces:
    """Where tensors have their positions (`places`), of which the input `mask` says whether they count; '' for none."""

    mask: str = ""
    places: Mapping[str, PositionAxes | None] = field(default_factory=dict)

    @property
    def wanted(self) -> list[str]:
        """What has to be seen beside the tensors."""
        return [self.mask] if self.mask else []

    def live(self, tensors: Mapping[str, Any]) -> Live:
        """Which positions of a batch count."""
        return np.asarray(to_numpy(tensors[self.mask]) != 0)

    def spread(self, name: str, shape: Sequence[int], tensors: Mapping[str, Any]) -> NDArray[np.bool_] | None:
        """Which places of a tensor of this shape count, its other axes of size one; None for all."""
        place = self.places.get(name)
        if not self.mask or place is None or not place.fits(tuple(shape), live := self.live(tensors)):
            return None
        return place.spread(live, len(shape))

    def only(self, name: str, tensors: Mapping[str, Any], *values: Array) -> tuple[Array, ...]:
        """What counts of some tensors that are all in the place of `name`: themselves where everything does."""
        if self.spread(name, values[0].shape, tensors) is None or any(v.shape != values[0].shape for v in values):
            return values
        place, live = self.places[name], self.live(tensors)
        return values if place is None else tuple(place.only(each, live) for each in values)

    def rows(
        self, name: str, op: LinearOp, x_shape: Sequence[int], at: NDArray[np.int64] | None, tensors: Mapping[str, Any]
    ) -> Live | None:
        """(R,): which rows that `op` reads of an input of this shape count; None for all.

        By the places of tensor `name`: the input itself where it has rows (Gemm, MatMul), else the output.
        """
        shape = [int(size) for size in x_shape]
        if op.axis < 0:
            shape[op.axis] = 1
        else:
            shape = [shape[0], 1, *op.grid(tuple(shape))]
        live = self.spread(name, shape, tensors)
        if live is None:
            return None
        whole = np.broadcast_to(live, shape)
        return np.asarray((op.inputs if op.axis < 0 else op.outputs)(whole, at)[:, 0])


@dataclass(frozen=True)
class RowChoice:
    """Which rows that `op` reads are looked at in each batch: at `positions`, and of these those that count.

    Tensor `name` has them at its places ('': all count).
    """

    positions: Positions
    op: LinearOp
    name: str = ""
    places: LivePlaces = field(default_factory=LivePlaces)

    @classmethod
    def of(cls, positions: Positions, layer: Layer, places: LivePlaces) -> RowChoice:
        """Of the rows of a layer; all of a recurrent one count."""
        name = "" if layer.cell is not None else layer.source if layer.linear.op.axis < 0 else layer.output
        return cls(positions, layer.linear.op, name, places)

    def draw(self, index: int, x_shape: Sequence[int], tensors: Mapping[str, Any]) -> DrawnRows:
        """Those of one batch, whose input has this shape."""
        available = self.op.positions(tuple(x_shape))
        at = None if self.op.axis < 0 else self.positions.draw(index, available)
        live = self.places.rows(self.name, self.op, x_shape, at, tensors)
        if live is None:
            return DrawnRows(at if self.op.axis >= 0 else self.positions.draw(index, available))
        kept = np.flatnonzero(live)
        if self.op.axis < 0 and available > 1:
            kept = self.positions.choose(index, kept, self.positions.of_live * len(self.places.live(tensors)))
        return DrawnRows(at, kept, len(live))


@dataclass(frozen=True)
class DrawnRows:
    """Rows of a batch: those `at` positions of every sample (None: all), and of these `total` the ones in `kept`."""

    at: NDArray[np.int64] | None
    kept: NDArray[np.int64] | None = None
    total: int = 0

    def inputs(self, op: LinearOp, x: Array) -> Array:
        """The rows that `op` reads."""
        return self.of(op.inputs(x, self.at))

    def outputs(self, op: LinearOp, y: Array) -> Array:
        """The rows that it writes."""
        return self.of(op.outputs(y, self.at))

    def of(self, rows: Array) -> Array:
        """Of rows at these positions those that are kept."""
        if self.kept is None:
            return rows
        xp = namespace_of(rows)
        return xp.take(rows, xp.asarray(self.kept), axis=0)

    def aside(self, rows: int, samples: int, share: int) -> int:
        """How many of the `rows` belong to the first of `samples`, one in `share`."""
        if self.kept is None:
            return (samples // share) * (rows // samples)
        return int(np.searchsorted(self.kept, (samples // share) * (self.total // samples)))
