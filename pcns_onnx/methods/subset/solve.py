"""Deciding and doing: which widths, then the solve, for either family of methods.

'subset' methods rank the channels by what the readers lose (`passes.read_groups`), slice, and
re-fit everything behind in order; 'basis' methods (PCNS) rebuild groups on new neurons.
"""

from __future__ import annotations

from pcns_onnx.api.options import Options
from pcns_onnx.methods.pcns.rebuild import rebuild
from pcns_onnx.planning.decision import Decision
from pcns_onnx.planning.low_rank import merge_unused_factors, shifted
from pcns_onnx.planning.problem import Problem
from pcns_onnx.reconstruction.sequential import refit
from pcns_onnx.report.schema import GroupInfo
from pcns_onnx.report.summary import info_of
from pcns_onnx.rewrite.change_basis import change_basis
from pcns_onnx.rewrite.drop_blocks import narrow_or_drop
from pcns_onnx.rewrite.patch import Patch, apply


def solve(problem: Problem, decision: Decision, options: Options) -> tuple[Patch, list[GroupInfo]]:
    """Narrow the decided groups and solve; returns the edits of the whole graph and what was found per group."""
    problem, decision, factored = merge_unused_factors(problem, decision, options)
    chosen = [g for g in problem.groups if g.name in decision.narrowed]
    if decision.method.family == "basis":
        _, patch, rebuilt = rebuild(
            problem.calibration,
            problem.graph,
            problem.dependencies,
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
    base, basis_changes = change_basis(
        problem.graph, problem.dependencies, [turn for name in keep for turn in decision.basis_changes.get(name, ())]
    )
    patch = narrow_or_drop(base, problem.dependencies, keep)
    small = apply(base, patch)
    made = refit(problem.calibration, base, small, problem.dependencies, keep, seen, options.steps(decision.method))
    fits = {g.name: {n: made.fits[n] for n in g.readers if n in made.fits} for g in chosen}
    infos = [info_of(g, decision, fits[g.name], None, made.refined) for g in chosen]
    return factored + basis_changes + patch + made.patch + shifted(small, problem.dependencies, problem.factors), infos
