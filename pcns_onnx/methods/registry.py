"""Every method in one table: what it does, whether it needs data, when it is exact, what it costs, whose it is.

CLI choices, `--help` and README's table come from here. It imports nothing heavy, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pcns_onnx.errors import InputError


@dataclass(frozen=True)
class Method:
    """One row of the table: how a group is narrowed or widened, and what a user needs to know about it.

    A 'subset' method looks at the data, keeps some neurons as they are and re-fits their readers; a 'basis'
    method makes new neurons; a 'weights' method looks at the weights only; an 'expansion' adds neurons.
    `ranks`: of a subset method, the function that ranks channels ("module:function"). `has_rank_ratio`: it takes
    --rank-ratio; `has_orders`: it takes --order and --no-refit; `drops_blocks`: budgets may take residual blocks out;
    `plans`: its widths can be chosen without solving (`plan`).
    """

    name: str
    family: Literal["subset", "basis", "weights", "expansion"]
    data: bool
    summary: str
    exact: str
    cost: str
    source: str
    ranks: str = ""
    has_rank_ratio: bool = False
    has_orders: bool = False
    drops_blocks: bool = False
    plans: bool = False

    @property
    def row(self) -> str:
        """As a row of README's table."""
        needs = "yes" if self.data else "no"
        return f"| `{self.name}` | {self.summary} | {needs} | {self.exact} | {self.cost} | {self.source} |"

    @property
    def paragraph(self) -> str:
        """As `--help` has it."""
        needs = "needs data" if self.data else "no data needed"
        return f"{self.name} ({needs}): {self.summary}. Exact: {self.exact}. Cost: {self.cost}. Source: {self.source}."


DEFAULT = "obs"

_REDUNDANT = "duplicate, dead, linearly dependent neurons; constant ones except before a zero-padded Conv"

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="obs",
            family="subset",
            data=True,
            summary="structured optimal brain surgeon: remove what the re-fitted reader misses least",
            exact=_REDUNDANT,
            cost="one sweep of N downdates of an n x n inverse per group (n = N * taps)",
            source="Hassibi & Stork 1993, in blocks",
            ranks="pcns_onnx.methods.subset.obs:rank_by_surgeon",
            drops_blocks=True,
            plans=True,
        ),
        Method(
            name="interpolative",
            family="subset",
            data=True,
            summary="pivoted Cholesky of the channels' covariance, weighted by the readers",
            exact=_REDUNDANT,
            cost="N³/3 per group",
            source="interpolative decomposition by column-pivoted QR",
            ranks="pcns_onnx.methods.subset.interpolative:rank_by_pivots",
            drops_blocks=True,
            plans=True,
        ),
        Method(
            name="pcns",
            family="basis",
            data=True,
            summary="the PCNS drafts: neurons are replaced by the principal components of their outputs",
            exact="without an activation, and at full width",
            cost="one N x N eigenproblem and four runs of the model's prefix per group",
            source="Rolet, PCNS (2022)",
            has_orders=True,
        ),
        Method(
            name="eigenremove",
            family="weights",
            data=False,
            summary="weights in front of and behind a layer at low rank, then its neurons of the largest outgoing norm",
            exact="what has no outgoing weights, where the weights have that rank; min-weight at --rank-ratio 1",
            cost="two eigenproblems of a layer's channels, one of the smaller side for Gemm and MatMul",
            source="Graham 2019, listing 6.1",
            has_rank_ratio=True,
        ),
        Method(
            name="min-weight",
            family="weights",
            data=False,
            summary="minimum weight selection: the neurons of the largest outgoing norm stay as they are",
            exact="what has no outgoing weights",
            cost="one sum of squares",
            source="Molchanov et al. 2016, as in Graham 2019",
        ),
    )
}
"""What `shrink` can do."""

EXPANSIONS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="weak",
            family="expansion",
            data=False,
            summary="WeakExpand: the strongest neurons are copied, their outgoing weights shared out among the copies",
            exact="always, to rounding",
            cost="a sort and a copy",
            source="Graham 2019, listing 6.2",
        ),
        Method(
            name="zero",
            family="expansion",
            data=False,
            summary="zero-weight expansion: new neurons with no weight coming in or going out",
            exact="always, to rounding",
            cost="a copy",
            source="Graham 2019",
        ),
    )
}
"""What `expand` can do."""

CHOICES = ("auto", *METHODS)


def methods_with(capability: str) -> str:
    """The methods that have a capability, as messages name them: 'methods obs and interpolative'."""
    names = [name for name, method in METHODS.items() if getattr(method, capability)]
    return f"method{'s' if len(names) > 1 else ''} {' and '.join(names)}"


def method_named(name: str) -> Method:
    """The method, 'auto' being the default; raises `InputError` with the choices."""
    method = METHODS.get(DEFAULT if name == "auto" else name)
    if method is None:
        raise InputError(f"unknown method '{name}': choose one of {', '.join(CHOICES)}")
    return method


def expansion_named(name: str) -> Method:
    """The way to add neurons; raises `InputError` with the choices."""
    if name not in EXPANSIONS:
        raise InputError(f"unknown method '{name}': choose one of {', '.join(EXPANSIONS)}")
    return EXPANSIONS[name]
