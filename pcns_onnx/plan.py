"""From error curves and a budget to one width per group; the plan is data.

Costs are sums over layers of products of neighbouring widths, so they are linear in any one
width while the others stand still, and quadratic where a layer reads what it writes. The
allocation is Lagrangian: at a price per unit of cost, group after group takes the width of the
least error plus price, until none changes; the price is the lowest at which every budget holds
(bisection; several budgets are one by a soft maximum). What is left is used up, best error per
cost first, and a local search narrows one group at a time to widen others as long as that pays.
The same share of every width, settled likewise, is the other candidate, so that the result is
never worse than that. Errors add up over groups (first order).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.groups import Census, Group
from pcns_onnx.ops import Labels

SCHEMA = 1
Resource = Literal["macs", "params"]
RESOURCES: tuple[Resource, ...] = ("macs", "params")
_HALVINGS, _SWEEPS, _BACK = 40, 50, 3
_SHARPNESS = 16


class GroupPlan(msgspec.Struct, forbid_unknown_fields=True):
    """One group: the width it gets, what it had, which channels stay (subset methods), the predicted error."""

    width: int
    of: int
    error: float
    keep: list[int] | None = None


class Plan(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Widths for one model, as saved by --plan-out and replayed by --plan; `rank_ratio` is eigenremove's."""

    schema: int
    model: str
    method: str
    groups: dict[str, GroupPlan]
    rank_ratio: float | None = None


@dataclass(frozen=True)
class Budget:
    """At most `fraction` of the original's `resource` may be left."""

    resource: Resource
    fraction: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """'macs=0.5' -> Budget; raises `InputError`."""
        name, _, value = text.partition("=")
        try:
            fraction = float(value)
        except ValueError:
            fraction = float("nan")
        resource = next((r for r in RESOURCES if r == name), None)
        if resource is None or not 0 < fraction <= 1:
            raise InputError(f"budget '{text}' is not understood: write macs=0.5 or params=0.4, a fraction in (0, 1]")
        return cls(resource, fraction)


def fingerprint(graph: Graph) -> str:
    """Hash that ties a plan to a model."""
    return graph.digest()[:16]


def load_plan(path: str | Path, graph: Graph) -> Plan:
    """Read a plan for `graph`; raises `InputError` if it is malformed or was made for another model."""
    try:
        plan = msgspec.json.decode(Path(path).read_bytes(), type=Plan)
    except OSError as error:
        raise InputError(f"cannot read plan '{path}': {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"plan '{path}' is not a valid plan: {error}") from None
    if plan.schema != SCHEMA:
        raise InputError(f"plan '{path}' has schema {plan.schema}, this version reads {SCHEMA}: make the plan again")
    if plan.model != fingerprint(graph):
        raise InputError(f"plan '{path}' was made for another model: make it again with --plan-out")
    return plan


class Costs:
    """Cost of the model as a function of the widths of its groups.

    A weight costs the product of the two fractions that it lies between, a bias the fraction of
    its layer. A layer that reads (or writes) several groups has the mean of their fractions,
    weighted by their channels. A layer without a bias is counted with one: the re-fit may give it
    one.
    """

    def __init__(self, census: Census, params: int, original_params: int) -> None:
        """`params` is what the surveyed graph holds, `original_params` what budgets are fractions of."""
        self._index = {group.name: at for at, group in enumerate(census.groups)}
        reads, writes, weights, biases = list[Labels](), list[Labels](), [], []
        stored = 0
        for layer in census.layers:
            reads.append(layer.linear.reads)
            writes.append(layer.linear.writes)
            weights.append((layer.macs, layer.parameters - (0 if layer.bias.absent else layer.width)))
            biases.append((0, layer.width))
            stored += layer.parameters
        fixed = np.zeros(2)
        for node in census.unsolved:
            if node.scales is None:
                fixed[0] += node.macs
                continue
            reads.append(np.full(1, -1))
            writes.append(node.scales)
            weights.append((node.macs, node.parameters))
            biases.append((0, 0))
            stored += node.parameters
        fixed[1] = max(params - stored, 0)
        self._ends = reads, writes
        wide = len(self._index) + 1
        self._reads, self._writes = (
            np.array([self._shares(census, labels) for labels in ends]).reshape(-1, wide) for ends in self._ends
        )
        self._weights, self._biases = (np.array(c, dtype=np.float64).reshape(-1, 2) for c in (weights, biases))
        self._fixed = fixed
        self.total = np.array([self({})[0], original_params])

    def __call__(self, fractions: Mapping[str, float]) -> NDArray[np.float64]:
        """(MACs, parameters) when each group keeps this fraction of its width, all of it where none is given."""
        f = self._vector(fractions)
        read, written = (self._reads @ f)[:, None], (self._writes @ f)[:, None]
        parts = self._weights * read * written + self._biases * written
        return self._fixed + np.asarray(parts.sum(axis=0), dtype=np.float64)

    def of_classes(self, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(MACs, parameters) when these classes stay (the last element answers for -1)."""
        read, written = (np.array([kept[labels].mean() for labels in ends])[:, None] for ends in self._ends)
        parts = self._weights * read * written + self._biases * written
        return self._fixed + np.asarray(parts.sum(axis=0), dtype=np.float64)

    def slopes(self, fractions: Mapping[str, float]) -> dict[str, NDArray[np.float64]]:
        """Cost per unit of each group's fraction, the other groups standing still."""
        f = self._vector(fractions)
        read, written = (self._reads @ f)[:, None], (self._writes @ f)[:, None]
        rates = self._reads.T @ (self._weights * written) + self._writes.T @ (self._weights * read + self._biases)
        return {name: rates[at] for name, at in self._index.items()}

    @cached_property
    def bends(self) -> dict[str, NDArray[np.float64]]:
        """What a group's cost has on top of its slope, per square of the change: layers that read what they write."""
        rates = (self._reads * self._writes).T @ self._weights
        return {name: rates[at] for name, at in self._index.items()}

    def _shares(self, census: Census, labels: Labels) -> NDArray[np.float64]:
        """The share of each group among `labels`; the last is that of what belongs to none."""
        counts = np.bincount(census.owner[labels], minlength=len(self._index) + 1)
        return np.asarray(counts / max(len(labels), 1), dtype=np.float64)

    def _vector(self, fractions: Mapping[str, float]) -> NDArray[np.float64]:
        f = np.ones(len(self._index) + 1)
        for name, fraction in fractions.items():
            f[self._index[name]] = fraction
        return f


def grid(group: Group, kind: str, multiple: str) -> NDArray[np.int64]:
    """Widths (numbers of classes) that a group may take, ascending, its own included.

    'auto' is what onnxruntime's CPU kernels like: Conv channels in eights (fours in narrow
    layers), any width for Gemm and MatMul.
    """
    liked = (8 if group.width * group.unit >= 32 else 4) if kind.startswith("Conv") else 1
    channels = liked if multiple == "auto" else int(multiple)
    step = channels // gcd(channels, group.unit)
    return np.unique(np.append(np.arange(step, group.width, step), group.width))


def snap(width: float, widths: NDArray[np.int64]) -> int:
    """The width of the grid nearest to `width`, the smaller one on a tie."""
    return int(widths[int(np.argmin(np.abs(widths - width)))])


def allocate(
    groups: Sequence[Group],
    curves: Mapping[str, NDArray[np.float64]],
    grids: Mapping[str, NDArray[np.int64]],
    costs: Costs,
    budgets: Sequence[Budget],
) -> dict[str, int]:
    """Widths that meet all budgets; `curves[name][w]` is the error at width w. Raises `InputError` if none do."""
    limits = np.full(len(RESOURCES), np.inf)
    for budget in budgets:
        at = RESOURCES.index(budget.resource)
        limits[at] = min(limits[at], budget.fraction)
    state = _Allocation(groups, curves, grids, costs, limits)
    state.take_least()
    if not state.holds():
        reached = costs(state.fractions()) / costs.total
        wanted = ", ".join(f"{b.resource}={b.fraction:g}" for b in budgets)
        least = ", ".join(f"{r}={x:.3f}" for r, x in zip(RESOURCES, reached, strict=True))
        raise InputError(f"budget {wanted} is out of reach: the narrowest model that can be made has {least}")
    found = [dict(state.widths)]
    for start in (state.take_evenly, state.take_by_price):
        start()
        found.append(state.settled())
    return min(found, key=state.error)


class _Allocation:
    def __init__(
        self,
        groups: Sequence[Group],
        curves: Mapping[str, NDArray[np.float64]],
        grids: Mapping[str, NDArray[np.int64]],
        costs: Costs,
        limits: NDArray[np.float64],
    ) -> None:
        self._full = {g.name: g.width for g in groups}
        self._curves, self._grids, self._costs = curves, grids, costs
        self._allowed = limits * (1 + 1e-12) * costs.total
        self.widths = dict(self._full)

    def fractions(self) -> dict[str, float]:
        return {name: width / self._full[name] for name, width in self.widths.items()}

    def holds(self) -> bool:
        return bool((self._costs(self.fractions()) <= self._allowed).all())

    def error(self, widths: Mapping[str, int]) -> float:
        return sum(float(self._curves[name][width]) for name, width in widths.items())

    def take_least(self) -> None:
        """The narrowest that the grids have."""
        self.widths = {name: int(widths[0]) for name, widths in self._grids.items()}

    def take_by_price(self) -> None:
        """The best widths at the lowest price of cost at which the budgets hold."""
        low, high = -30.0, 30.0
        best = {name: int(widths[0]) for name, widths in self._grids.items()}
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            self.widths = dict(self._full)
            self._descend(math.exp(middle))
            if self.holds():
                high, best = middle, dict(self.widths)
            else:
                low = middle
        self.widths = best

    def _descend(self, price: float) -> None:
        """Group by group the width of the least error plus `price` times cost, until none changes."""
        for _ in range(_SWEEPS):
            before = dict(self.widths)
            for name, grid_ in self._grids.items():
                total = self._curves[name][grid_] + price * self._shortage(self._costs_along(name))
                self.widths[name] = int(grid_[int(np.argmin(total))])
            if self.widths == before:
                return

    def _costs_along(self, name: str) -> NDArray[np.float64]:
        """(widths, resources): what the model costs at each width of one group, the others as they are."""
        fractions = self.fractions()
        change = (self._grids[name] / self._full[name] - fractions[name])[:, None]
        slope, bend = self._costs.slopes(fractions)[name], self._costs.bends[name]
        return np.asarray(self._costs(fractions) + change * (slope + change * bend), dtype=np.float64)

    def _shortage(self, spent: NDArray[np.float64]) -> NDArray[np.float64]:
        """Costs as one number: a soft maximum of the shares of what is allowed, so that all budgets count."""
        limited = np.isfinite(self._allowed)
        shares = spent[:, limited] / self._allowed[limited]
        return np.asarray(np.sum(shares**_SHARPNESS, axis=1) ** (1 / _SHARPNESS), dtype=np.float64)

    def settled(self) -> dict[str, int]:
        """The widths after slack has been used, and then as long as narrowing one group pays for widening others."""
        self._fill()
        improved = True
        while improved:
            improved = False
            for name, grid_ in self._grids.items():
                before = dict(self.widths)
                at = int(np.searchsorted(grid_, before[name]))
                for lower in grid_[max(at - _BACK, 0) : at][::-1]:
                    self.widths = {**before, name: int(lower)}
                    self._fill(but=name)
                    if self.error(self.widths) < self.error(before) * (1 - 1e-9):
                        before, improved = dict(self.widths), True
                    self.widths = dict(before)
        return dict(self.widths)

    def _fill(self, but: str = "") -> None:
        while self.widen(but):
            pass

    def take_evenly(self) -> None:
        """The largest fraction, the same for all groups and rounded down to their grids, that the budgets allow."""
        shares = np.unique(np.concatenate([self._grids[name] / width for name, width in self._full.items()]))
        low, high = 0, len(shares)
        while high - low > 1:
            middle = (low + high) // 2
            self._set_share(shares[middle])
            low, high = (middle, high) if self.holds() else (low, middle)
        self._set_share(shares[low])

    def _set_share(self, share: float) -> None:
        for name, width in self._full.items():
            at = np.searchsorted(self._grids[name], share * width * (1 + 1e-12), side="right")
            self.widths[name] = int(self._grids[name][max(int(at) - 1, 0)])

    def widen(self, but: str = "") -> bool:
        """One step up that the budgets still allow: the most error taken back per cost."""
        best: tuple[float, str, int] | None = None
        fractions, prices, slopes = self.fractions(), self._prices(), self._costs.slopes(self.fractions())
        room = self._allowed - self._costs(fractions)
        for name, width in self.widths.items():
            at = int(np.searchsorted(self._grids[name], width, side="right"))
            if at == len(self._grids[name]) or name == but:
                continue
            following = int(self._grids[name][at])
            gain = float(self._curves[name][width] - self._curves[name][following])
            more = (following - width) / self._full[name]
            fits = bool((more * (slopes[name] + more * self._costs.bends[name]) <= room).all())
            rate = gain / max(prices[name] * (following - width), 1e-300)
            if fits and gain > 0 and (best is None or rate > best[0]):
                best = (rate, name, following)
        if best is None:
            return False
        self.widths[best[1]] = best[2]
        return True

    def _prices(self) -> dict[str, float]:
        """Cost per channel of each group, as a share of what is allowed, of the resources that are short."""
        fractions = self.fractions()
        over = np.maximum(self._costs(fractions) / self._allowed - 1, 0)
        weights = over / over.sum() if over.any() else (self._allowed < self._costs.total).astype(np.float64)
        weights = weights / self._costs.total
        slopes = self._costs.slopes(fractions)
        return {name: float(slopes[name] @ weights) / width for name, width in self._full.items()}
