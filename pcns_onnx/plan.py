"""From error curves and a budget to one width per group; the plan is data.

Costs are sums over layers of products of neighbouring widths, so they are linear in any one
width while the others stand still. The allocation descends: of all groups and all smaller
widths on the grid, take the step that adds the least error per unit of cost saved, until every
budget holds; then widen again wherever the slack allows it, best error per cost first. Errors
are the readers' lost shares of output variance, added over groups (a first-order proxy for the
error at the model's output).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.groups import Census, Group

SCHEMA = 1
Resource = Literal["macs", "params"]
RESOURCES: tuple[Resource, ...] = ("macs", "params")


class GroupPlan(msgspec.Struct, forbid_unknown_fields=True):
    """One group: the width it gets, what it had, which channels stay (subset methods), the predicted error."""

    width: int
    of: int
    error: float
    keep: list[int] | None = None


class Plan(msgspec.Struct, forbid_unknown_fields=True):
    """Widths for one model, as saved by --plan-out and replayed by --plan."""

    schema: int
    model: str
    method: str
    groups: dict[str, GroupPlan]


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
    return hashlib.sha256(graph.serialize()).hexdigest()[:16]


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
    """Cost of the model as a function of the widths of its groups."""

    def __init__(self, census: Census, params: int, original_params: int) -> None:
        """`params` is what the surveyed graph holds, `original_params` what budgets are fractions of."""
        self._layers: list[tuple[str | None, str | None, NDArray[np.float64]]] = []
        names = {g.name for g in census.groups}
        layered = 0
        fixed_macs = float(sum(macs for *_, macs, _ in census.rest))
        for layer in census.layers:
            reads = census.reads(layer)
            base = np.array([layer.macs, layer.parameters], dtype=np.float64)
            layered += layer.parameters
            self._layers.append((reads.name if reads else None, layer.name if layer.name in names else None, base))
        self._fixed = np.array([fixed_macs, max(params - layered, 0)])
        self.total = np.array([self({})[0], original_params])

    def __call__(self, fractions: Mapping[str, float]) -> NDArray[np.float64]:
        """(MACs, parameters) when each group keeps this fraction of its width."""
        total = self._fixed.copy()
        for reads, writes, base in self._layers:
            total += base * fractions.get(reads or "", 1.0) * fractions.get(writes or "", 1.0)
        return total

    def slope(self, fractions: Mapping[str, float], group: str) -> NDArray[np.float64]:
        """Cost per unit of `group`'s fraction, the other groups standing still."""
        return self({**fractions, group: 1.0}) - self({**fractions, group: 0.0})


def grid(group: Group, kind: str, multiple: str) -> NDArray[np.int64]:
    """Widths that a group may take, ascending, its own included.

    'auto' is what onnxruntime's CPU kernels like: Conv channels in eights (fours in narrow
    layers), any width for Gemm and MatMul.
    """
    if multiple == "auto":
        step = (8 if group.width >= 32 else 4) if kind.startswith("Conv") else 1
    else:
        step = int(multiple)
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
    limits = np.ones(2)
    for budget in budgets:
        at = RESOURCES.index(budget.resource)
        limits[at] = min(limits[at], budget.fraction)
    state = _Allocation(groups, curves, grids, costs, limits)
    while not state.holds():
        if not state.narrow():
            reached = costs(state.fractions()) / costs.total
            wanted = ", ".join(f"{b.resource}={b.fraction:g}" for b in budgets)
            least = ", ".join(f"{r}={x:.3f}" for r, x in zip(RESOURCES, reached, strict=True))
            raise InputError(f"budget {wanted} is out of reach: the narrowest model that can be made has {least}")
    while state.widen():
        pass
    return dict(state.widths)


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
        self._curves, self._grids, self._costs, self._limits = curves, grids, costs, limits
        self.widths = dict(self._full)

    def fractions(self) -> dict[str, float]:
        return {name: width / self._full[name] for name, width in self.widths.items()}

    def holds(self) -> bool:
        return bool((self._costs(self.fractions()) <= self._limits * self._costs.total + 1e-9).all())

    def _price(self, name: str) -> float:
        """Weighted cost per channel of a group, over the resources that are still over budget."""
        fractions = self.fractions()
        over = np.maximum(self._costs(fractions) / self._costs.total / self._limits - 1, 0)
        weights = over / max(over.sum(), 1e-300) if over.any() else self._limits < 1
        slope = self._costs.slope(fractions, name) / self._costs.total
        return float((slope * weights).sum()) / self._full[name]

    def narrow(self) -> bool:
        """One step down: the least error per cost. False if no group can be narrower."""
        best: tuple[float, str, int] | None = None
        for name, width in self.widths.items():
            lower = self._grids[name][self._grids[name] < width]
            price = self._price(name)
            if not len(lower) or price <= 0:
                continue
            curve = self._curves[name]
            rates = (curve[lower] - curve[width]) / ((width - lower) * price)
            at = int(np.argmin(rates))
            if best is None or rates[at] < best[0]:
                best = (float(rates[at]), name, int(lower[at]))
        if best is None:
            return False
        self.widths[best[1]] = best[2]
        return True

    def widen(self) -> bool:
        """One step up that the budgets still allow: the most error taken back per cost."""
        best: tuple[float, str, int] | None = None
        for name, width in self.widths.items():
            above = self._grids[name][self._grids[name] > width]
            if not len(above):
                continue
            following = int(above[0])
            self.widths[name] = following
            fits = self.holds()
            self.widths[name] = width
            price = self._price(name) * (following - width)
            rate = (self._curves[name][width] - self._curves[name][following]) / max(price, 1e-300)
            if fits and rate > 0 and (best is None or rate > best[0]):
                best = (float(rate), name, following)
        if best is None:
            return False
        self.widths[best[1]] = best[2]
        return True
