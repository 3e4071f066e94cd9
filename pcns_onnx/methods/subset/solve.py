"""Deciding and doing: which widths, then the solve, for either family of methods.

'subset' methods rank the channels by what the readers lose (`passes.read_groups`), slice, and
re-fit everything behind in order; 'basis' methods (PCNS) rebuild groups on new neurons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pcns_onnx.api.options import Options
from pcns_onnx.dependency.groups import Group
from pcns_onnx.dependency.residual import narrow_or_drop
from pcns_onnx.methods.pcns.activations import Activation
from pcns_onnx.methods.pcns.components import Basis, components_in, neurons_for
from pcns_onnx.methods.pcns.rebuild import Rebuilt, activation_of, bases, rebuild
from pcns_onnx.methods.registry import Method
from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.numerics.ridge import Fit
from pcns_onnx.planning.decision import Decision, widths_for
from pcns_onnx.planning.importance import Work
from pcns_onnx.planning.low_rank import settled, shifted
from pcns_onnx.planning.plan import Budget, Plan
from pcns_onnx.reconstruction.refine import Refined
from pcns_onnx.reconstruction.rotation import turned
from pcns_onnx.reconstruction.sequential import refit
from pcns_onnx.report.schema import FitInfo, GroupInfo, RefineInfo
from pcns_onnx.rewrite.channels import Patch, apply


def decide_bases(
    work: Work, method: Method, options: Options, plan: Plan | None, budgets: Sequence[Budget]
) -> Decision:
    """Widths for a method that makes new neurons: from the eigenvalues of the groups' outputs."""
    full = {g.name: g.width for g in work.groups}
    found = {g.name: b for g, b, _ in bases(work.setup, work.graph, work.census, work.groups)}
    sigmas = {g.name: activation_of(work.graph, work.census, g) for g in work.groups}
    bent = {name: b.curve(s) for name, b in found.items() if isinstance(s := sigmas[name], Activation)}
    wanted = widths_for(work, options, plan, bent, budgets, {}, lambda: _basis_variance(found, sigmas, options))
    widths = {name: _whole_pairs(width, full[name], sigmas[name]) for name, width in wanted.items()}
    return Decision(method, full, widths, {n: bent[n][w] for n, w in widths.items()}, bases=found, curves=bent)


def solve(work: Work, decision: Decision, options: Options) -> tuple[Patch, list[GroupInfo]]:
    """Narrow the decided groups and solve; returns the edits of the whole graph and what was found per group."""
    work, decision, factored = settled(work, decision, options)
    chosen = [g for g in work.groups if g.name in decision.narrowed]
    if decision.method.family == "basis":
        _, patch, rebuilt = rebuild(
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
    patch = narrow_or_drop(base, work.census, keep)
    small = apply(base, patch)
    made = refit(work.setup, base, small, work.census, keep, seen, options.steps(decision.method))
    fits = {g.name: {n: made.fits[n] for n in g.readers if n in made.fits} for g in chosen}
    infos = [info_of(g, decision, fits[g.name], None, made.refined) for g in chosen]
    return factored + turns + patch + made.patch + shifted(small, work.census, work.factors), infos


def info_of(
    group: Group,
    decision: Decision,
    fits: Mapping[str, Fit],
    new: Rebuilt | None,
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


def _whole_pairs(width: int, full: int, sigma: Activation | str) -> int:
    """The width that PCNS really makes: behind a one-sided activation components come in pairs."""
    if width >= full or isinstance(sigma, str):
        return width
    return neurons_for(components_in(width, sigma), sigma)


def _basis_variance(
    found: Mapping[str, Basis], sigmas: Mapping[str, Activation | str], options: Options
) -> dict[str, int]:
    share = options.variance or 1.0
    return {
        name: min(neurons_for(b.components(share), sigma), len(to_numpy(b.values)))
        for name, b in found.items()
        if isinstance(sigma := sigmas[name], Activation)
    }
