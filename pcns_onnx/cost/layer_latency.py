"""How long one layer takes at any width: its actual shape, timed in onnxruntime on this machine.

A layer that reads a of its channels and writes b is one node, sliced out of the model, with an
input of the actual shape. Kernels work in blocks of channels, 16 at the most, so time goes in
steps, with cliffs between. It is measured on a grid of multiples of 16 and, one axis at a time,
inside a few of these blocks:

    t(a, b) = grid(up(a), up(b)) * p(a) * q(b)

with `up` the next multiple of 16, the grid interpolated bilinearly, and p the time at a as a share
of that at up(a). For a cost linear in the width p(a) = a / up(a), for a step 1, for a
cliff a constant: all linear in 1 / up(a), in which p is interpolated between the blocks that
were measured, separately for what is a multiple of 4 and what is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from pcns_onnx.cost.profiler import Job, noise, take_turns
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.graph import Graph
from pcns_onnx.rewrite.layer_weights import slice_layer, stored
from pcns_onnx.rewrite.patch import apply
from pcns_onnx.rewrite.recurrent_cells import without_states
from pcns_onnx.runtime.engine import Engine

Floats = NDArray[np.float64]

BLOCK = 16
"""No kernel works in larger blocks of channels."""
_SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
_OFFSETS = (1, 4, 7, 8, 12, 15)
_SECONDS = 0.5
"""Time for the rounds of one layer."""
_TABLED = 1 << 20
"""Pairs of widths that are worked out at once."""


@dataclass(frozen=True)
class LayerLatency:
    """Seconds of one layer by the channels that it reads and writes (of one block, if it is grouped).

    `seconds` (a, b) is measured at the widths `reads` (a,) and `writes` (b,), ascending, the last
    ones full. `read_shares` (C + 1,) and `write_shares` (K + 1,) are p and q at every width.
    """

    reads: NDArray[np.int64]
    writes: NDArray[np.int64]
    seconds: Floats
    read_shares: Floats
    write_shares: Floats

    def scaled(self, factor: float) -> LayerLatency:
        """All times multiplied."""
        return replace(self, seconds=self.seconds * factor)

    def at(self, read: ArrayLike, written: ArrayLike) -> Floats:
        """Seconds where these fractions of the channels are left, in (0, 1]; they broadcast."""
        a, b = (_width(f, int(nodes[-1])) for f, nodes in ((read, self.reads), (written, self.writes)))
        seconds: Floats = self._table[a - 1, b - 1] if self._table.size else self._at(a, b)
        return seconds

    @cached_property
    def _table(self) -> Floats:
        """Seconds at all widths, where these are not too many; empty otherwise."""
        a, b = int(self.reads[-1]), int(self.writes[-1])
        if a * b > _TABLED:
            return np.empty((0, 0))
        return self._at(np.arange(1, a + 1)[:, None], np.arange(1, b + 1)[None, :])

    def _at(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> Floats:
        i, s = _place(self.reads, _up(a, int(self.reads[-1])))
        j, t = _place(self.writes, _up(b, int(self.writes[-1])))
        low = self.seconds[i, j] * (1 - t) + self.seconds[i, np.minimum(j + 1, len(self.writes) - 1)] * t
        i = np.minimum(i + 1, len(self.reads) - 1)
        high = self.seconds[i, j] * (1 - t) + self.seconds[i, np.minimum(j + 1, len(self.writes) - 1)] * t
        seconds: Floats = (low * (1 - s) + high * s) * self.read_shares[a] * self.write_shares[b]
        return seconds


class Measured(msgspec.Struct, frozen=True):
    """Seconds (a, b) on the grid of the widths `reads` and `writes`, and inside some blocks of each axis."""

    reads: list[int]
    writes: list[int]
    seconds: list[list[float]]
    read_inside: dict[int, float]
    write_inside: dict[int, float]

    def times(self) -> LayerLatency:
        """The measurements, filled in at all widths."""
        reads, writes = np.array(self.reads), np.array(self.writes)
        seconds = np.array(self.seconds)
        return LayerLatency(
            reads,
            writes,
            seconds,
            _shares(reads, seconds[:, -1], self.read_inside),
            _shares(writes, seconds[-1], self.write_inside),
        )


@dataclass(frozen=True)
class Sliced:
    """A layer as programs of its own; `shape` is that of its input, `free` the axes that may narrow."""

    engine: Engine
    graph: Graph
    layer: Layer
    shape: tuple[int, ...]
    free: tuple[bool, ...]

    @cached_property
    def part(self) -> Graph:
        """The layer's node alone."""
        if self.layer.cell is not None:
            return without_states(self.graph, self.layer).extract([self.layer.source], [self.layer.key])
        return self.graph.extract([self.layer.source], [self.layer.key])

    @cached_property
    def full(self) -> tuple[int, int]:
        """Channels that are read and written, of one block (of blocks or heads that are alike, the first)."""
        linear = self.layer.linear
        sizes = stored(self.graph, self.layer.key, linear.weight).shape
        writes, reads = (sizes[axis] for axis in linear.weight_axes)
        if self.layer.cell is not None:
            return reads, self.layer.cell.hidden.shape[1]
        return min(len(linear.reads) // linear.op.conv_groups, reads), min(
            len(linear.writes) // linear.op.conv_groups, writes
        )

    @property
    def key(self) -> str:
        """All that its time depends on, but for the machine."""
        node, weight = self.part.node(self.layer.key), self.layer.linear.weight
        attributes = " ".join(f"{name}={value}" for name, value in sorted(node.attrs.items()))
        constants = (self.part.constant(name) for name in node.inputs if name)
        sizes = [self.shape, *(value.shape for value in constants if value is not None)]
        kinds = f"{self.part.inputs[0].dtype} opset {self.part.opset}"
        return f"{node.op} {attributes} {kinds} {sizes} weight {weight} free {self.free}"

    def measure(self) -> Measured:
        """Time it; axes that are not free at their full width only."""
        (reads, inside_reads), (writes, inside_writes) = (
            widths(full) if free else ([full], []) for full, free in zip(self.full, self.free, strict=True)
        )
        read, written = self.full
        grid = list(product(reads, writes))
        jobs = [self.full, *grid, *((w, written) for w in inside_reads), *((read, w) for w in inside_writes)]
        times = take_turns(self.engine, [partial(self.job, *job) for job in jobs], _SECONDS)
        seconds = dict(zip(jobs[1:], map(float, times[1:]), strict=True))
        return Measured(
            reads,
            writes,
            [[seconds[a, b] for b in writes] for a in reads],
            {w: seconds[w, written] for w in inside_reads},
            {w: seconds[read, w] for w in inside_writes},
        )

    def job(self, read: int, written: int) -> Job:
        """The layer with the first so many channels (of each block), fed with as many."""
        linear = self.layer.linear
        columns, rows = (
            np.tile(np.arange(full) < width, len(labels) // full)
            for width, full, labels in zip((read, written), self.full, (self.layer.inputs, linear.writes), strict=True)
        )
        edits = slice_layer(self.graph, self.layer, rows, columns)
        program = apply(self.part, tuple(e for e in edits if e.key == self.layer.key)).program()
        axis = linear.op.axis
        x = np.compress(columns[: self._input.shape[axis]], self._input, axis=axis)
        samples = self.shape[0] if self.layer.cell is None else self.shape[1]
        outputs = samples * linear.op.positions(self.shape) * int(rows.sum())
        return Job(program, {self.layer.source: self.engine.xp.asarray(x)}, outputs * x.dtype.itemsize)

    @cached_property
    def _input(self) -> NDArray[Any]:
        return noise(self.shape, self.part.inputs[0].dtype)


def widths(full: int) -> tuple[list[int], list[int]]:
    """Multiples of a block to measure on a grid, the full width included, and widths inside of blocks."""
    tops = {max(round(full * share / BLOCK), 1) * BLOCK for share in _SHARES} | {BLOCK, full}
    tops = {top for top in tops if top <= full}
    inside = set[int]()
    for top in {min(BLOCK, full), min(-(-full // (3 * BLOCK)) * BLOCK, full), full // BLOCK * BLOCK or full, full}:
        tops.add(top)
        bottom = _below(top)
        offsets = range(1, BLOCK) if top % BLOCK else _OFFSETS
        inside |= {bottom + offset for offset in offsets if bottom + offset < top}
    return sorted(tops), sorted(inside)


def _shares(tops: NDArray[np.int64], seconds: Floats, inside: Mapping[int, float]) -> Floats:
    """p at every width 0..full, from times at `tops` and at widths `inside` some of their blocks."""
    full = int(tops[-1])
    blocks: dict[int, Floats] = {}
    for top, whole in zip(tops.tolist(), seconds, strict=True):
        bottom = _below(top)
        measured = {w - bottom: t / whole for w, t in inside.items() if bottom < w < top}
        if measured:
            blocks[top] = _block(measured, top - bottom)
    whole_blocks = [top for top in blocks if top % BLOCK == 0]
    shares = np.ones(full + 1)
    for width in range(1, full):
        top = int(_up(np.array(width), full))
        offset = width - _below(top)
        if top in blocks:
            shares[width] = blocks[top][offset]
        elif whole_blocks and offset < BLOCK and width != top:
            at = sorted((1 / t, blocks[t][offset]) for t in whole_blocks)
            shares[width] = np.interp(1 / top, [x for x, _ in at], [y for _, y in at])
    return shares


def _block(shares: Mapping[int, float], size: int) -> Floats:
    """Shares at the offsets 0..size of a block, multiples of 4 and others each from their own kind."""
    at_offsets = np.ones(size + 1)
    for even in (True, False):
        known = sorted(offset for offset in shares if (offset % 4 == 0) is even)
        wanted = [offset for offset in range(1, size) if (offset % 4 == 0) is even]
        if known and wanted:
            at_offsets[wanted] = np.interp(wanted, known, [shares[offset] for offset in known])
    return at_offsets


def _below(top: int) -> int:
    return (top - 1) // BLOCK * BLOCK


def _up(width: NDArray[np.int64], full: int) -> NDArray[np.int64]:
    multiple: NDArray[np.int64] = np.minimum(-(-width // BLOCK) * BLOCK, full)
    return multiple


def _width(fraction: ArrayLike, full: int) -> NDArray[np.int64]:
    width: NDArray[np.int64] = np.minimum(np.maximum(np.rint(np.multiply(fraction, full)), 1), full).astype(np.int64)
    return width


def _place(nodes: NDArray[np.int64], width: NDArray[np.int64]) -> tuple[NDArray[np.int64], Floats]:
    """The node at or below, and how far `width` is on the way to the next."""
    at = np.clip(np.searchsorted(nodes, width, side="right") - 1, 0, max(len(nodes) - 2, 0))
    gap = nodes[np.minimum(at + 1, len(nodes) - 1)] - nodes[at]
    return at, np.where(gap > 0, (width - nodes[at]) / np.maximum(gap, 1), 0.0)
