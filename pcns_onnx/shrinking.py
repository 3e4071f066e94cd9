"""Deciding and doing: which widths, then the solve, for either family of methods.

'subset' methods rank the channels by what the readers lose (`passes.read_groups`), slice, and
re-fit everything behind in order; 'basis' methods (PCNS) rebuild groups on new neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pcns_onnx import basis
from pcns_onnx.backend import to_numpy
from pcns_onnx.data import split
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.groups import Census, Group
from pcns_onnx.linalg import dimensions_for, eigh_descending
from pcns_onnx.methods import RANK_OF, Method, Ranking
from pcns_onnx.methods.activations import Activation
from pcns_onnx.methods.pcns import Basis, components_in, neurons_for
from pcns_onnx.ops import Labels
from pcns_onnx.options import Options
from pcns_onnx.passes import GroupReadings, Places, Setup, is_same, read_groups
from pcns_onnx.plan import RESOURCES, Budget, Costs, GroupPlan, Plan, allocate, grid, snap
from pcns_onnx.probing import Prober, probe_samples
from pcns_onnx.reading import Seen
from pcns_onnx.refine import Refined
from pcns_onnx.refit import refit
from pcns_onnx.report import FitInfo, GroupInfo, RefineInfo
from pcns_onnx.rewrite import Patch, apply, kept_classes, narrow
from pcns_onnx.rotation import Origins, Turn, rotations, turned
from pcns_onnx.solve import Fit


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
    seen: Mapping[Places, Mapping[str, Seen]] = field(default_factory=dict)
    turns: Mapping[str, tuple[Turn, ...]] = field(default_factory=dict)
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
        bent = {name: b.curve(s) for name, b in found.items() if isinstance(s := sigmas[name], Activation)}
        budgets = [Budget.parse(text) for text in options.budgets]
        wanted = _widths(work, options, plan, bent, budgets, {}, lambda: _basis_variance(found, sigmas, options))
        widths = {name: _whole_pairs(width, full[name], sigmas[name]) for name, width in wanted.items()}
        return Decision(method, full, widths, {n: bent[n][w] for n, w in widths.items()}, bases=found)
    rankings: dict[str, Ranking] = {}
    curves: dict[str, NDArray[np.float64]] = {}
    seen: dict[Places, dict[str, Seen]] = {}
    turns = _Turns(work)
    prober = _prober(work, options) if options.budgets and plan is None else None
    for read in map(turns.turned, read_groups(work.setup, work.graph, work.census, work.groups)):
        name = read.group.name
        with work.setup.progress.stage("rank"):
            ranking = RANK_OF[method.name](read.all, read.group.width)
        rankings[name] = ranking = ranking.led_by(essential(work.census, read.group, ranking))
        for place, view in read.seen().items():
            seen.setdefault(place, {})[name] = view
        curves[name] = ranking.error
        if prober is not None:
            with work.setup.progress.stage("probe"):
                base = turned(work.graph, work.census, turns.by_group.get(name, ()))[0]
                curves[name] = prober.curve(work.graph, base, read, ranking)
    widths, keep = within_budget(work, options, plan, curves, rankings)
    errors = {name: rankings[name].error[width] for name, width in widths.items()}
    return Decision(method, full, widths, errors, keep, seen, turns.by_group)


def _prober(work: Work, options: Options) -> Prober:
    samples = work.setup.samples
    count = probe_samples(samples.count, len(work.groups))
    least = samples.batch if samples.fixed else 1
    some, _ = split(samples.data, holdout=0.0, seed=options.seed, samples=max(count, least))
    outputs = [output.name for output in work.graph.outputs]
    return Prober(work.setup, replace(samples, data=some, _kept=[]), work.census, outputs)


def within_budget(
    work: Work,
    options: Options,
    plan: Plan | None,
    curves: Mapping[str, NDArray[np.float64]],
    rankings: Mapping[str, Ranking],
) -> tuple[dict[str, int], dict[str, NDArray[np.int64]]]:
    """Widths and channels. Where layers read some channels of a group only, its width does not settle
    the cost: budgets are tightened until the channels themselves meet them."""
    budgets = [Budget.parse(text) for text in options.budgets]
    asked, least = list(budgets), {name: ranking.least for name, ranking in rankings.items()}
    while True:
        widths = _widths(work, options, plan, curves, budgets, least, lambda: _subset_variance(work, options))
        keep = {name: _kept(rankings[name], width, plan, name) for name, width in widths.items()}
        left = {g.name: g.labels[keep[g.name]] for g in work.groups}
        if plan is not None:
            _check_left(work.census, left)
            return widths, keep
        spent = work.costs.of_classes(kept_classes(work.census, left)) / work.costs.total
        over = [float(spent[RESOURCES.index(b.resource)]) / b.fraction for b in asked]
        if all(ratio <= 1 + 1e-9 for ratio in over):
            return widths, keep
        budgets = [replace(b, fraction=b.fraction / max(ratio, 1.0)) for b, ratio in zip(budgets, over, strict=True)]


class _Turns:
    """Changes of basis, group by group; each is tried on a batch, and taken only if the model stays what it was."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._origins = Origins(work.graph, work.census) if any(g.mixable for g in work.groups) else None
        self.by_group: dict[str, tuple[Turn, ...]] = {}

    def turned(self, read: GroupReadings) -> GroupReadings:
        """How the group is read in its best basis, or as it was."""
        if self._origins is None or not read.group.mixable:
            return read.without_refit()
        graph, census, setup = self._work.graph, self._work.census, self._work.setup
        with setup.progress.stage("rank"):
            turns, following = rotations(graph, census, read, self._origins)
            names = [census.layer(name).output for name in read.group.readers] + [p.key for p in read.group.products]
            if not turns or not is_same(setup, graph, turned(graph, census, turns)[0], names):
                return read.without_refit()
        self.by_group[read.group.name] = turns
        return following


def essential(census: Census, group: Group, ranking: Ranking) -> list[int]:
    """The best channel of every tensor that carries some of the group: none may be left without any."""
    place = np.empty(group.width, dtype=np.int64)
    place[ranking.order] = np.arange(group.width)
    best: set[int] = set()
    for mine in census.carriers[group.name]:
        at = np.searchsorted(group.labels, mine)
        best.add(int(at[np.argmin(place[at])]))
    return sorted(best, key=lambda channel: int(place[channel]))


def _check_left(census: Census, left: Mapping[str, Labels]) -> None:
    """Raise `InputError` if some tensor would have no channels left."""
    kept = kept_classes(census, left)
    empty = next((name for name, labels in census.labels.items() if labels.size and not kept[labels].any()), None)
    if empty is not None:
        raise InputError(f"the plan's lists of channels to keep leave none of '{empty}'")


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
            refit=options.refit is not False,
            found=decision.bases,
        )
        infos = [info_of(g, decision, rebuilt[g.name].fits, rebuilt[g.name]) for g in chosen]
        return patch, infos
    keep = {g.name: g.labels[decision.keep[g.name]] for g in chosen}
    seen = {
        place: {name: view for name, view in views.items() if name in keep} for place, views in decision.seen.items()
    }
    base, turns = turned(work.graph, work.census, [turn for name in keep for turn in decision.turns.get(name, ())])
    patch = narrow(base, work.census, keep)
    made = refit(work.setup, base, apply(base, patch), work.census, keep, seen, options.refine)
    infos = [info_of(g, decision, {n: made.fits[n] for n in g.readers}, None, made.refined) for g in chosen]
    return turns + patch + made.patch, infos


def _widths(
    work: Work,
    options: Options,
    plan: Plan | None,
    curves: Mapping[str, NDArray[np.float64]],
    budgets: Sequence[Budget],
    least: Mapping[str, int],
    by_variance: Callable[[], dict[str, int]],
) -> dict[str, int]:
    """Widths on the groups' grids, none below its `least`."""
    kinds = {g.name: work.census.layer(g.name).kind for g in work.groups}
    grids = {g.name: grid(g, kinds[g.name], str(options.multiple)) for g in work.groups}
    grids = {name: widths[widths >= least.get(name, 1)] for name, widths in grids.items()}
    if plan is not None:
        return _planned(work, plan, least)
    if budgets:
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


def _planned(work: Work, plan: Plan, least: Mapping[str, int]) -> dict[str, int]:
    full = {g.name: g.width for g in work.groups}
    for name, entry in plan.groups.items():
        if name not in full:
            raise InputError(f"the plan narrows '{name}', which cannot be narrowed here")
        if entry.of != full[name] or not 1 <= entry.width <= entry.of:
            raise InputError(f"the plan's width {entry.width} of {entry.of} for '{name}' does not fit its {full[name]}")
        if entry.width < least.get(name, 1):
            raise InputError(
                f"the plan's width {entry.width} for '{name}' is too small: it takes {least[name]} channels "
                "to leave none of its tensors empty"
            )
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
        group.name: -(-dimensions_for(eigh_descending(moments.covariance)[0], share) // group.unit)
        for group, _, moments in basis.bases(work.setup, work.graph, work.census, work.groups)
    }


def info_of(
    group: Group,
    decision: Decision,
    fits: Mapping[str, Fit],
    new: basis.Rebuilt | None,
    refined: Mapping[str, Refined] = MappingProxyType({}),
) -> GroupInfo:
    """What the report says of a narrowed group."""
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
        refined={
            name: RefineInfo(before=found.before, after=found.after)
            for name in group.writers
            if (found := refined.get(name)) is not None and found.before == found.before
        },
        eigenvector_errors=None if new is None else [float(e) for e in new.errors],
        plain_eigenvector_errors=None if new is None else [float(e) for e in new.plain_errors],
    )
