"""Widths that meet the budgets at the least error.

The allocation is Lagrangian: at a price per unit of cost, group after group takes the width of
the least error plus price, until none changes; the price is the lowest at which every budget holds
(bisection; several budgets are one by a soft maximum). What is left is used up, best error per
cost first, and a local search narrows one group at a time to widen others as long as that pays.
The same share of every width, settled likewise, is the other candidate, so that the result is
never worse than that. Errors add up over groups (first order).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.cost.model import Costs
from pcns_onnx.cost.resources import COUNTED
from pcns_onnx.dependency.groups import Group
from pcns_onnx.errors import InputError
from pcns_onnx.planning.budget import Budget

_HALVINGS, _SWEEPS, _BACK = 40, 50, 3
_SHARPNESS = 16


def allocate(
    groups: Sequence[Group],
    curves: Mapping[str, NDArray[np.float64]],
    grids: Mapping[str, NDArray[np.int64]],
    costs: Costs,
    budgets: Sequence[Budget],
) -> dict[str, int]:
    """Widths that meet all budgets; `curves[name][w]` is the error at width w. Raises `InputError` if none do."""
    limits = np.full(len(costs.resources), np.inf)
    for budget in budgets:
        at = costs.resources.index(budget.resource)
        limits[at] = min(limits[at], budget.limit)
    limited = costs if np.isfinite(limits[len(COUNTED) :]).any() else costs.untimed
    state = _Allocation(groups, curves, grids, limited, limits[: len(limited.resources)])
    state.take_least()
    if not state.holds():
        reached = costs(state.fractions()) / costs.total
        wanted = ", ".join(map(str, budgets))
        least = ", ".join(f"{r}={x:.3f}" for r, x in zip(costs.resources, reached, strict=True))
        raise InputError(f"budget {wanted} is out of reach: the narrowest model that can be made has {least}")
    candidates = [dict(state.widths)]
    for start in (state.take_evenly, state.take_by_price):
        start()
        candidates.append(state.settled())
    return min(candidates, key=lambda widths: (state.error(widths), state.price(widths)))


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
        self._limited = np.flatnonzero(np.isfinite(self._allowed))
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
        return self._costs.along(name, self.fractions(), self._grids[name] / self._full[name])

    def _shortage(self, spent: NDArray[np.float64]) -> NDArray[np.float64]:
        """Costs as one number: a soft maximum of the shares of what is allowed, so that all budgets count."""
        shares = spent[:, self._limited] / self._allowed[self._limited]
        return np.asarray(np.sum(shares**_SHARPNESS, axis=1) ** (1 / _SHARPNESS), dtype=np.float64)

    def price(self, widths: Mapping[str, int]) -> float:
        """The costs of these widths as one number."""
        fractions = {name: width / self._full[name] for name, width in widths.items()}
        return float(self._shortage(self._costs(fractions)[None, :])[0])

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
        fractions = self.fractions()
        spent = float(self._shortage(self._costs(fractions)[None, :])[0])
        for name, width in self.widths.items():
            at = int(np.searchsorted(self._grids[name], width, side="right"))
            if at == len(self._grids[name]) or name == but:
                continue
            following = int(self._grids[name][at])
            gain = float(self._curves[name][width] - self._curves[name][following])
            if gain <= 0:
                continue
            wider = self._costs.along(name, fractions, np.array([following / self._full[name]]))
            if not (wider[0] <= self._allowed).all():
                continue
            rate = gain / max(float(self._shortage(wider)[0]) - spent, 1e-300)
            if best is None or rate > best[0]:
                best = (rate, name, following)
        if best is None:
            return False
        self.widths[best[1]] = best[2]
        return True
