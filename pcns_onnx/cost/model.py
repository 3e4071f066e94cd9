"""What a model costs at any widths of its groups: multiply-adds, parameters and, where it was timed, latency.

A weight costs the product of the two fractions that it lies between, a bias the fraction of its
layer; so costs are linear in any one width while the others stand still, and quadratic where a
layer reads what it writes. Seconds come from `cost.latency_model`, which has measured every layer. A layer
that reads (or writes) several groups has the mean of their fractions, weighted by their channels.
A layer without a bias is counted with one: the re-fit may give it one. Where one layer is put as two
(`rewrite.low_rank`) and the channels between them are all there, it stays one: the second costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from pcns_onnx.cost.latency_model import LatencyModel, kept_shares
from pcns_onnx.cost.resources import COUNTED, RESOURCES
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.graph import Graph
from pcns_onnx.ops import Labels

Costed = NDArray[np.float64]


class ModelSize(msgspec.Struct, frozen=True):
    """Cost of one model; `macs` are without those of `unknown` layers, whose sizes are not known."""

    macs: int
    parameters: int
    bytes: int
    unknown: int = 0

    @property
    def macs_text(self) -> str:
        """The multiply-adds as tables show them."""
        return counted_text(self.macs, self.unknown)

    def macs_ratio(self, after: ModelSize) -> str:
        """What is left of the multiply-adds in `after`, as tables show it."""
        if not self.macs:
            return "unknown"
        ratio = f"{after.macs / self.macs:.3f}"
        return f"{ratio} of the known" if self.unknown or after.unknown else ratio


def counted_text(macs: int, unknown: int) -> str:
    """A sum of multiply-adds in words, where those of `unknown` layers are not in it."""
    if unknown and not macs:
        return "unknown"
    return f"at least {macs:,}" if unknown else f"{macs:,}"


@dataclass(frozen=True)
class _Last:
    """The fractions asked for last, as bytes: what all costs there, and what shares every layer reads and writes."""

    key: bytes = b""
    costs: Costed = field(default_factory=lambda: np.zeros(0))
    read: Costed = field(default_factory=lambda: np.zeros(0))
    written: Costed = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class _Touched:
    """The layers that a group touches, with the shares of it that they read and write, and what they cost."""

    rows: NDArray[np.int64]
    reads: Costed
    writes: Costed
    weights: Costed
    biases: Costed


class Costs:
    """Cost of the model as a function of the widths of its groups; vectors are in the order of `resources`."""

    def __init__(
        self,
        dependencies: DependencyGraph,
        totals: Mapping[str, float],
        original: Mapping[str, float],
        latency_model: LatencyModel | None = None,
        between: Collection[str] = (),
    ) -> None:
        """`totals`: what the graph has in all of a resource, where that is more than its layers have.

        `original`: what budgets are fractions of, where that is not the graph's own cost. `between` are the groups in
        the middle of layers that are put as two.
        """
        self._index = {group.name: at for at, group in enumerate(dependencies.groups)}
        self._dependencies, self.latency_model = dependencies, latency_model
        counters = [counter for row in RESOURCES.values() if (counter := row.counter) is not None]
        scaled = [node for node in dependencies.unsolved if node.scales is not None]
        self._ends = (
            [layer.linear.reads for layer in dependencies.layers] + [np.full(1, -1)] * len(scaled),
            [layer.linear.writes for layer in dependencies.layers] + [n.scales for n in scaled if n.scales is not None],
        )
        self._reads, self._writes = (self._shares(ends) for ends in self._ends)
        weights = [[c.weights(layer) for c in counters] for layer in dependencies.layers]
        weights += [[c.node(node) for c in counters] for node in scaled]
        biases = [[0 if layer.name in between else c.bias(layer) for c in counters] for layer in dependencies.layers]
        biases += [[0] * len(counters) for _ in scaled]
        self._weights, self._biases = (
            np.array(values, dtype=np.float64).reshape(-1, len(counters)) for values in (weights, biases)
        )
        self._fixed = np.array([self._fixed_part(name, totals, between) for name in COUNTED])
        seconds = {name for group in dependencies.groups if group.name in between for name in group.readers}
        self._second = np.array([*(layer.name in seconds for layer in dependencies.layers), False], dtype=np.bool_)
        self._has_second = bool(self._second.any())
        if latency_model is not None:
            self._timed = [self._shares(ends) for ends in latency_model.ends(dependencies)]
        self._last = _Last()
        self._touched = [self._touching(at) for at in range(len(self._index))]
        self.total = self({}).copy()
        for name, value in original.items():
            self.total[self.resources.index(name)] = value

    def _fixed_part(self, name: str, totals: Mapping[str, float], between: Collection[str]) -> float:
        """What no width changes: what the graph has beside its layers, or what nodes cost that carry no channels."""
        counter, dependencies = RESOURCES[name].counter, self._dependencies
        assert counter is not None, "asked for what adds up only"
        if name not in totals:
            return float(sum(counter.node(node) for node in dependencies.unsolved if node.scales is None))
        stored = sum(
            counter.weights(layer) + (0 if layer.bias.absent else counter.bias(layer)) for layer in dependencies.layers
        )
        stored += sum(counter.node(node) for node in dependencies.unsolved if node.scales is not None)
        return max(totals[name] - stored, 0.0)

    @property
    def resources(self) -> tuple[str, ...]:
        """What is counted."""
        return tuple(RESOURCES) if self.latency_model is not None else COUNTED

    @property
    def untimed(self) -> Costs:
        """The same without latency, which takes most of the time to work out."""
        costs = copy(self)
        counted = self.total[: len(COUNTED)]
        costs.latency_model, costs.total, costs._last = None, counted, _Last()
        return costs

    def __call__(self, fractions: Mapping[str, float]) -> Costed:
        """Costs when each group keeps this fraction of its width, all of it where none is given."""
        return self._at(self._vector(fractions)).costs

    def _at(self, f: Costed) -> _Last:
        """What all costs at the fractions `f`, worked out once as long as the same ones are asked for."""
        if (key := f.tobytes()) != self._last.key:
            read, written = self._reads @ f, self._writes @ f
            costs = self._counted(read, written)
            if self.latency_model is not None:
                costs = self._with_seconds(costs, *(ends @ f for ends in self._timed))
            self._last = _Last(key, costs, read, written)
        return self._last

    def _touching(self, at: int) -> _Touched:
        rows = np.flatnonzero((self._reads[:, at] > 0) | (self._writes[:, at] > 0))
        ends = self._reads[rows, at], self._writes[rows, at]
        return _Touched(rows, *ends, self._weights[rows], self._biases[rows])

    def along(self, name: str, fractions: Mapping[str, float], shares: Costed) -> Costed:
        """(n, resources): costs as group `name` keeps each of these `shares` (n,), the others as in `fractions`."""
        f, at = self._vector(fractions), self._index[name]
        change = np.asarray(shares, dtype=np.float64) - f[at]
        now, touched = self._at(f), self._touched[at]
        rows, read, written = touched.rows, now.read[touched.rows], now.written[touched.rows]
        r = self._read(read + change[:, None] * touched.reads, rows)
        w = written + change[:, None] * touched.writes
        more = (r * w - self._read(read, rows) * written) @ touched.weights
        more += (w - written) @ touched.biases
        if self.latency_model is None:
            return np.asarray(now.costs + more, dtype=np.float64)
        return np.asarray(now.costs + np.column_stack([more, self._seconds_along(at, f, change)]), dtype=np.float64)

    def _seconds_along(self, at: int, f: Costed, change: Costed) -> Costed:
        assert self.latency_model is not None, "asked for where there are timings only"
        (reads, writes), total = self._timed, np.zeros(len(change))
        read, written = reads @ f, writes @ f
        for part in np.flatnonzero((reads[:, at] > 0) | (writes[:, at] > 0)):
            r, w = self._read(read[part] + change * reads[part, at], part), written[part] + change * writes[part, at]
            before = self.latency_model.part(int(part), self._read(read[part], part), written[part])
            total += self.latency_model.part(int(part), r, w) - before
        return total

    def of_classes(self, kept: NDArray[np.bool_]) -> Costed:
        """Costs when these classes stay (the last element answers for -1)."""
        counted = self._counted(*(kept_shares(ends, kept) for ends in self._ends))
        if self.latency_model is None:
            return counted
        return self._with_seconds(
            counted, *(kept_shares(ends, kept) for ends in self.latency_model.ends(self._dependencies))
        )

    def _with_seconds(self, counted: Costed, read: Costed, written: Costed) -> Costed:
        assert self.latency_model is not None, "asked for where there are timings only"
        return np.append(counted, self.latency_model.total(self._read(read), written))

    def _read(self, read: Costed, at: NDArray[np.int64] | np.int64 | None = None) -> Costed:
        """Shares that rows `at` read, 0 where there is one layer still in the place of two."""
        if not self._has_second:
            return read
        rows = np.arange(len(read)) if at is None else at
        second = self._second[np.minimum(rows, len(self._second) - 1)]
        return np.where(second & (read > 1 - 1e-9), 0.0, read)

    def _counted(self, read: Costed, written: Costed) -> Costed:
        parts = self._weights * self._read(read)[:, None] * written[:, None] + self._biases * written[:, None]
        return self._fixed + np.asarray(parts.sum(axis=0), dtype=np.float64)

    def _shares(self, ends: Sequence[Labels]) -> Costed:
        """By layer the share of each group among its labels; the last is that of what belongs to none."""
        wide = len(self._index) + 1
        shares = [
            np.bincount(self._dependencies.owner[labels], minlength=wide) / max(len(labels), 1) for labels in ends
        ]
        return np.array(shares, dtype=np.float64).reshape(-1, wide)

    def _vector(self, fractions: Mapping[str, float]) -> Costed:
        f = np.ones(len(self._index) + 1)
        for name, fraction in fractions.items():
            f[self._index[name]] = fraction
        return f


def model_size(graph: Graph, dependencies: DependencyGraph) -> ModelSize:
    """Cost of a model whose layers `dependencies` lists."""
    layers = [layer.macs for layer in dependencies.layers]
    macs = layers + [node.macs for node in dependencies.unsolved]
    return ModelSize(sum(macs), graph.parameters, graph.nbytes, macs.count(0))
