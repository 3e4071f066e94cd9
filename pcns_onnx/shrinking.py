"""Deciding and doing: which widths, then the solve, for either family of methods.

'subset' methods rank the channels by what the readers lose (`passes.read_groups`), slice, and
re-fit everything behind in order; 'basis' methods (PCNS) rebuild groups on new neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pcns_onnx import basis
from pcns_onnx.backend import Array, to_numpy
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.groups import Census, Group
from pcns_onnx.linalg import dimensions_for, eigh_descending
from pcns_onnx.methods import Method, Ranking
from pcns_onnx.methods.activations import Activation
from pcns_onnx.methods.pcns import Basis, components_in, neurons_for
from pcns_onnx.options import Options
from pcns_onnx.passes import Setup, mixed_prior, read_groups, refit
from pcns_onnx.plan import Budget, Costs, GroupPlan, Plan, allocate, grid, snap
from pcns_onnx.report import FitInfo, GroupInfo
from pcns_onnx.rewrite import Patch, apply, narrow
from pcns_onnx.solve import Fit

SHARES = ("0.99", "0.999", "0.9999")
"""Shares of variance that `inspect` reports dimensions for."""


@dataclass(frozen=True)
class Work:
    """The float32 graph that is solved, what is known of it, and the groups that may be narrowed."""

    graph: Graph
    census: Census
    setup: Setup
    groups: tuple[Group, ...]
    costs: Costs


@dataclass(frozen=True)
class Decision:
    """Widths by group, the error curves behind them, and what the solve needs from pass one."""

    method: Method
    full: Mapping[str, int]
    widths: Mapping[str, int]
    errors: Mapping[str, float]
    keep: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    covariances: Mapping[str, Array] = field(default_factory=dict)
    bases: Mapping[str, Basis] | None = None

    def planned(self) -> dict[str, GroupPlan]:
        """The plan's groups, those at full width included."""
        return {
            name: GroupPlan(
                width=width,
                of=self.full[name],
                error=float(self.errors[name]),
                keep=[int(i) for i in self.keep[name]] if name in self.keep else None,
            )
            for name, width in self.widths.items()
        }

    @property
    def narrowed(self) -> dict[str, int]:
        """Groups that really get narrower, with their widths."""
        return {name: width for name, width in self.widths.items() if width < self.full[name]}


def decide(work: Work, method: Method, options: Options, plan: Plan | None) -> Decision:
    """Look at the data, then choose a width for every group."""
    full = {g.name: g.width for g in work.groups}
    if method.family == "basis":
        found = {g.name: b for g, b, _ in basis.bases(work.setup, work.graph, work.census, work.groups)}
        sigmas = {g.name: basis.activation_of(work.graph, work.census, g) for g in work.groups}
        curves = {name: b.curve(s) for name, b in found.items() if isinstance(s := sigmas[name], Activation)}
        wanted = _widths(work, options, plan, curves, lambda: _basis_variance(found, sigmas, options))
        widths = {name: _whole_pairs(width, full[name], sigmas[name]) for name, width in wanted.items()}
        return Decision(method, full, widths, {n: curves[n][w] for n, w in widths.items()}, bases=found)
    rankings: dict[str, Ranking] = {}
    covariances: dict[str, Array] = {}
    assert method.rank is not None, "subset methods rank"
    for group, readings in read_groups(work.setup, work.graph, work.census, work.groups):
        with work.setup.progress.stage("rank"):
            rankings[group.name] = method.rank(readings)
        covariances.update({n: r.channel_covariance() for n, r in zip(group.readers, readings, strict=True)})
    curves = {name: ranking.error for name, ranking in rankings.items()}
    widths = _widths(work, options, plan, curves, lambda: _subset_variance(work, options))
    keep = {name: _kept(rankings[name], width, plan, name) for name, width in widths.items()}
    return Decision(method, full, widths, {n: curves[n][w] for n, w in widths.items()}, keep, covariances)


def solve(work: Work, decision: Decision, options: Options) -> tuple[Patch, list[GroupInfo]]:
    """Narrow the decided groups and solve; returns the edits and what was found per group."""
    chosen = [g for g in work.groups if g.name in decision.narrowed]
    if decision.method.family == "basis":
        _, patch, rebuilt = basis.rebuild(
            work.setup,
            work.graph,
            work.census,
            decision.narrowed,
            order=options.order,
            refit=options.refit,
            found=decision.bases,
        )
        infos = [_info(g, decision, rebuilt[g.name].fits, rebuilt[g.name]) for g in chosen]
        return patch, infos
    keep = {g.name: g.labels[decision.keep[g.name]] for g in chosen}
    priors = {
        name: mixed_prior(work.graph, g, work.census.layer(name), decision.covariances[name], decision.keep[g.name])
        for g in chosen
        for name in g.readers
    }
    patch = narrow(work.graph, work.census, keep)
    sliced = apply(work.graph, patch)
    _, edits, fits = refit(work.setup, work.graph, sliced, work.census, keep, priors)
    return patch + edits, [_info(g, decision, {n: fits[n] for n in g.readers}, None) for g in chosen]


def eigenvalue_summary(work: Work) -> Iterator[tuple[Group, dict[str, int]]]:
    """Per layer: how many principal directions of its outputs (centred over samples) reach each share."""
    for group, _, moments in basis.bases(work.setup, work.graph, work.census, work.census.groups):
        values, _ = eigh_descending(moments.covariance)
        yield group, {share: dimensions_for(values, float(share)) for share in SHARES}


def _widths(
    work: Work,
    options: Options,
    plan: Plan | None,
    curves: Mapping[str, NDArray[np.float64]],
    by_variance: Callable[[], dict[str, int]],
) -> dict[str, int]:
    kinds = {g.name: work.census.layer(g.writer).kind for g in work.groups}
    grids = {g.name: grid(g, kinds[g.name], str(options.multiple)) for g in work.groups}
    if plan is not None:
        return _planned(work, plan)
    if options.budgets:
        budgets = [Budget.parse(text) for text in options.budgets]
        return allocate(work.groups, curves, grids, work.costs, budgets)
    if options.width is not None:
        return {g.name: snap(options.width * g.width, grids[g.name]) for g in work.groups}
    needed = by_variance()
    return {g.name: _at_least(needed[g.name], grids[g.name]) for g in work.groups}


def _whole_pairs(width: int, full: int, sigma: Activation | str) -> int:
    """The width that PCNS really makes: behind a one-sided activation components come in pairs."""
    if width >= full or isinstance(sigma, str):
        return width
    return neurons_for(components_in(width, sigma), sigma)


def _at_least(width: int, widths: NDArray[np.int64]) -> int:
    return int(widths[min(int(np.searchsorted(widths, width)), len(widths) - 1)])


def _planned(work: Work, plan: Plan) -> dict[str, int]:
    full = {g.name: g.width for g in work.groups}
    for name, entry in plan.groups.items():
        if name not in full:
            raise InputError(f"the plan narrows '{name}', which cannot be narrowed here")
        if entry.of != full[name] or not 1 <= entry.width <= entry.of:
            raise InputError(f"the plan's width {entry.width} of {entry.of} for '{name}' does not fit its {full[name]}")
    return {name: plan.groups[name].width if name in plan.groups else width for name, width in full.items()}


def _kept(ranking: Ranking, width: int, plan: Plan | None, name: str) -> NDArray[np.int64]:
    """The plan's own channels where they match its width, else the best by rank."""
    entry = plan.groups.get(name) if plan is not None else None
    if entry is None or entry.keep is None or len(entry.keep) != width:
        return ranking.keep(width)
    keep = np.unique(np.asarray(entry.keep, dtype=np.int64))
    if len(keep) != width or keep[0] < 0 or keep[-1] >= len(ranking.order):
        raise InputError(f"the plan's list of channels to keep for '{name}' is not {width} different channels")
    return keep


def _basis_variance(
    found: Mapping[str, Basis], sigmas: Mapping[str, Activation | str], options: Options
) -> dict[str, int]:
    share = options.variance or 1.0
    return {
        name: min(neurons_for(b.components(share), sigma), len(to_numpy(b.values)))
        for name, b in found.items()
        if isinstance(sigma := sigmas[name], Activation)
    }


def _subset_variance(work: Work, options: Options) -> dict[str, int]:
    share = options.variance or 1.0
    return {
        group.name: dimensions_for(eigh_descending(moments.covariance)[0], share)
        for group, _, moments in basis.bases(work.setup, work.graph, work.census, work.groups)
    }


def _info(group: Group, decision: Decision, fits: Mapping[str, Fit], new: basis.Rebuilt | None) -> GroupInfo:
    return GroupInfo(
        name=group.name,
        width=group.width,
        kept=decision.widths[group.name],
        predicted_error=float(decision.errors[group.name]),
        fits={
            name: FitInfo(
                rows=fit.rows,
                columns=int(fit.matrix.shape[1]),
                ridge=fit.ridge,
                error=fit.error,
                held_out_error=None if fit.held_out_error != fit.held_out_error else fit.held_out_error,
            )
            for name, fit in fits.items()
        },
        eigenvector_errors=None if new is None else [float(e) for e in new.errors],
        plain_eigenvector_errors=None if new is None else [float(e) for e in new.plain_errors],
    )
