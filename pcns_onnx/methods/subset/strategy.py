"""Keep some channels as they are, solve their readers again: `obs` and `interpolative`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.graph import Graph
from pcns_onnx.methods.strategy import (
    Judge,
    Request,
    Solution,
    first_refusal,
    needs_data,
    only_eigenremove_has_ranks,
    only_pcns_orders,
)
from pcns_onnx.methods.subset.importance import importance_of
from pcns_onnx.methods.subset.search import meet_measured, search
from pcns_onnx.methods.subset.solve import solve
from pcns_onnx.planning.decision import Decision
from pcns_onnx.planning.frontier import points
from pcns_onnx.planning.importance import Importance
from pcns_onnx.planning.low_rank import merge_unused_factors
from pcns_onnx.planning.plan import FrontierPoint
from pcns_onnx.planning.problem import Problem
from pcns_onnx.rewrite.patch import Patch


class SubsetStrategy:
    """The answers of methods that rank channels by what their readers lose."""

    solves = True
    rank_ratio = None

    def __init__(self, request: Request) -> None:
        self.request = request
        self._ranked: Importance | None = None
        self._solved: Importance | None = None

    @property
    def steps(self) -> int:
        """Steps of refinement."""
        return self.request.solving.steps

    @property
    def curves(self) -> Mapping[str, NDArray[np.float64]]:
        """The curves that widths were chosen by."""
        return {} if self._ranked is None else self._ranked.curves

    def accepts(self) -> str | None:
        """Why the request cannot be met."""
        request = self.request
        letter = (request.solving.refit is False, only_pcns_orders(request)[1])
        other_way = next((way for way in ("width", "variance", "plan") if getattr(request.goal, way) is not None), None)
        ranks = (
            request.scope.low_rank and other_way is not None,
            f"--low-rank is a choice that a budget makes: give --budget and not --{other_way}",
        )
        streams = (
            request.goal.streams != "auto" and other_way is not None,
            f"--streams is a choice that a budget makes: give --budget and not --{other_way}",
        )
        return first_refusal(
            [
                needs_data(request),
                only_pcns_orders(request),
                letter,
                ranks,
                streams,
                only_eigenremove_has_ranks(request),
            ]
        )

    def refuses(self, graph: Graph, dependencies: DependencyGraph, group: Group) -> str | None:
        """Nothing: whatever can be narrowed can keep a subset."""
        return None

    def importance(self, problem: Problem, *, probes: bool) -> Importance:
        """What the data says of the groups; one pass over it, once."""
        if self._ranked is None:
            self._ranked = importance_of(problem, self.request, probes=probes)
        return self._ranked

    def decide(self, problem: Problem, judge: Judge) -> Decision:
        """The plan's widths, or the best that the budgets allow."""
        request = self.request
        importance = self.importance(problem, probes=bool(request.goal.budgets) and request.plan is None)
        if request.goal.qualities:
            return search(problem, importance, request, judge)
        return meet_measured(problem, importance, request)

    def settle(self, problem: Problem, decision: Decision) -> tuple[Problem, Decision]:
        """Layers stay two only where that is used."""
        assert self._ranked is not None, "it is decided first"
        problem, decision, self._solved, _ = merge_unused_factors(problem, decision, self._ranked, self.request.scope)
        return problem, decision

    def frontier(self, problem: Problem) -> list[FrontierPoint]:
        """Only probed groups can be added up, and those are probed for a budget."""
        if self._ranked is None or self.request.plan is not None or not self.request.goal.budgets:
            return []
        return list(points(problem, self._ranked, self.request.goal))

    def outline(self, problem: Problem, decision: Decision) -> Patch | None:
        """Slice and re-fit, without refinement; where none follows, that is all there is."""
        assert self._solved is not None, "it is settled first"
        return solve(problem, decision, self._solved, self.request.scope, 0).patch if self.steps else None

    def solve(self, problem: Problem, decision: Decision) -> Solution:
        """Slice, re-fit from input to output, refine."""
        assert self._solved is not None, "it is settled first"
        return solve(problem, decision, self._solved, self.request.scope, self.steps)
