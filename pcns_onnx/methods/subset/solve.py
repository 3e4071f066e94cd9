"""The solve of methods that keep a subset: slice what goes, solve again all that is behind, in order."""

from __future__ import annotations

from collections.abc import Sequence

from pcns_onnx.calibration.group_inputs import read_groups
from pcns_onnx.dependency.dependency_graph import kept_classes
from pcns_onnx.dependency.groups import Group
from pcns_onnx.dependency.options import Scope
from pcns_onnx.dependency.origins import Origins
from pcns_onnx.methods.strategy import Solution
from pcns_onnx.planning.decision import Decision
from pcns_onnx.planning.importance import Importance
from pcns_onnx.planning.low_rank import merge_unused_factors, shifted
from pcns_onnx.planning.problem import Problem
from pcns_onnx.reconstruction.absorption import absorbing
from pcns_onnx.reconstruction.sequential import refit
from pcns_onnx.rewrite.change_basis import Absorption, change_basis, mixed_caches
from pcns_onnx.rewrite.drop_blocks import narrow_or_drop
from pcns_onnx.rewrite.patch import apply


def solve(problem: Problem, decision: Decision, importance: Importance, scope: Scope, steps: int) -> Solution:
    """Narrow the decided groups and solve, with so many `steps` of refinement; edits are of the whole graph."""
    problem, decision, importance, factored = merge_unused_factors(problem, decision, importance, scope)
    chosen = [g for g in problem.groups if g.name in decision.narrowed]
    keep = {g.name: g.labels[decision.keep[g.name]] for g in chosen}
    covariances = {
        block: {name: covariance for name, covariance in by_group.items() if name in keep}
        for block, by_group in importance.covariances.items()
    }
    changes = [change for name in keep for change in importance.basis_changes.get(name, ())]
    kept, absorptions = kept_classes(problem.dependencies, keep), _absorptions(problem, chosen)
    changes += [change for absorption in absorptions for change in absorption.changes(kept)]
    base, basis_changes = change_basis(problem.graph, problem.dependencies, changes)
    base = apply(base, mixed_caches(absorptions, kept))
    patch = narrow_or_drop(base, problem.dependencies, keep)
    small = apply(base, patch)
    solved = refit(problem.calibration, base, small, problem.dependencies, keep, covariances, steps, problem.last_rows)
    return Solution(
        factored + basis_changes + patch + solved.patch + shifted(small, problem.dependencies, problem.factors),
        {g.name: {n: solved.fits[n] for n in g.readers if n in solved.fits} for g in chosen},
        solved.refined,
    )


def _absorptions(problem: Problem, chosen: Sequence[Group]) -> list[Absorption]:
    """The heads of caches that get narrower for which Q makes up: one more look at how they vary."""
    groups = [group for group in chosen if group.states and group.products]
    if not groups:
        return []
    origins = Origins(problem.graph, problem.dependencies)
    reads = read_groups(problem.calibration, problem.graph, problem.dependencies, groups)
    return [one for read in reads for one in absorbing(problem.graph, problem.dependencies, read, origins)[0]]
