"""What a family of methods answers: may I, of what, how wide, with which weights.

A `Strategy` is made for one request and asked in this order: `accepts`, `refuses` (for every group), `decide`,
`settle`, `solve`. Nobody else asks which family a method is of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.data.references import resolve
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.dependency.options import Scope
from pcns_onnx.graph import Graph
from pcns_onnx.methods.registry import Method, methods_with
from pcns_onnx.numerics.ridge import Fit
from pcns_onnx.planning.budget import Goal
from pcns_onnx.planning.decision import Decision
from pcns_onnx.planning.plan import FrontierPoint, Plan
from pcns_onnx.planning.problem import Problem
from pcns_onnx.reconstruction.options import SolveOptions
from pcns_onnx.reconstruction.refine import Refined
from pcns_onnx.rewrite.patch import Patch

Judge = Callable[[Patch], bool]
"""Whether the model with these edits keeps all limits on what may be lost."""


@dataclass(frozen=True)
class Request:
    """What is asked of a method. `has_data`: whether there are samples; `plan` is one that is replayed."""

    method: Method
    goal: Goal = field(default_factory=Goal)
    scope: Scope = field(default_factory=Scope)
    solving: SolveOptions = field(default_factory=SolveOptions)
    seed: int = 0
    has_data: bool = True
    plan: Plan | None = None


@dataclass(frozen=True)
class Solution:
    """The edits that make the model, and how well each part was solved.

    `fits` by group and reader; `refined` by layer; `eigenvector_errors` by group: the relative L2 error of each
    generated eigenvector, weighted and plain (PCNS).
    """

    patch: Patch
    fits: Mapping[str, Mapping[str, Fit]]
    refined: Mapping[str, Refined] = field(default_factory=dict)
    eigenvector_errors: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=dict)

    @property
    def by_layer(self) -> dict[str, Fit]:
        """The fits by reader, of whichever group."""
        return {name: fit for by_reader in self.fits.values() for name, fit in by_reader.items()}


class Strategy(Protocol):
    """One family's answers to one request."""

    @property
    def solves(self) -> bool:
        """Whether weights are solved for on samples."""

    @property
    def rank_ratio(self) -> float | None:
        """The share of each rank that is kept, None for methods without one."""

    @property
    def curves(self) -> Mapping[str, NDArray[np.float64]]:
        """By group, the error predicted for each width from 0 on, once it is decided."""

    def accepts(self) -> str | None:
        """Why the request cannot be met, None if it can."""

    def refuses(self, graph: Graph, dependencies: DependencyGraph, group: Group) -> str | None:
        """Why a group has to be left alone, None if it need not."""

    def decide(self, problem: Problem, judge: Judge) -> Decision:
        """A width for every group: the plan's, or the best that all budgets allow."""

    def settle(self, problem: Problem, decision: Decision) -> tuple[Problem, Decision]:
        """Both as they are solved: without what was an offer only and is not used."""

    def frontier(self, problem: Problem) -> list[FrontierPoint]:
        """What other budgets would have given; empty where that is not known."""

    def outline(self, problem: Problem, decision: Decision) -> Patch | None:
        """What `solve` gives without its long part; None for methods that have no such part."""

    def solve(self, problem: Problem, decision: Decision) -> Solution:
        """Narrow the decided groups and solve."""


STRATEGIES: Mapping[str, str] = {
    "subset": "pcns_onnx.methods.subset.strategy:SubsetStrategy",
    "basis": "pcns_onnx.methods.pcns.strategy:PcnsStrategy",
    "weights": "pcns_onnx.methods.data_free.strategy:DataFreeStrategy",
}
"""By family, where its strategy is."""


def strategy_for(request: Request) -> Strategy:
    """The strategy of the requested method's family."""
    make: Callable[[Request], Strategy] = resolve(STRATEGIES[request.method.family])
    return make(request)


def first_refusal(conditions: Iterable[tuple[bool, str]]) -> str | None:
    """The message of the first condition that holds."""
    return next((message for holds, message in conditions if holds), None)


def needs_data(request: Request) -> tuple[bool, str]:
    """A condition of methods that look at what neurons do."""
    name = request.goal.method if request.plan is None else request.method.name
    return not request.has_data, f"method '{name}' looks at what neurons do: give samples with --data"


def only_pcns_orders(request: Request) -> tuple[bool, str]:
    """A condition of all methods but pcns."""
    return (
        request.solving.order != SolveOptions.order,
        f"--order and --no-refit are choices of {methods_with('has_orders')}: '{request.method.name}' has neither",
    )


def only_eigenremove_has_ranks(request: Request) -> tuple[bool, str]:
    """A condition of all methods but eigenremove."""
    return (
        request.goal.rank_ratio is not None,
        f"--rank-ratio is a choice of {methods_with('has_rank_ratio')}: '{request.method.name}' has none",
    )


def only_subsets(request: Request) -> list[tuple[bool, str]]:
    """Conditions of methods that do not keep neurons as they are."""
    name = request.method.name
    return [
        (request.scope.low_rank, f"--low-rank is for {methods_with('ranks')}, not '{name}'"),
        (request.goal.streams != "auto", f"--streams is for {methods_with('plans')}, not '{name}'"),
        (
            bool(request.goal.qualities),
            f"budgets error and drop are for {methods_with('ranks')}, not '{name}'",
        ),
    ]
