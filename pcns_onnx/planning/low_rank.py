"""Low rank as a candidate: which layers are put as two, at which ranks that pays, and what comes of it.

Layers whose outputs cannot get fewer by themselves (they go into a sum with others', or out of the
model) are put as two (`factors`) before anything is measured; the channels between are then ranked,
probed and priced like any group. A rank is allowed where the two layers were measured to take less
time than the one. What keeps its full rank is one layer again before anything is solved.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.columns import ChannelCovariance
from pcns_onnx.calibration.shapes import dependency_graph_of
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.dependency.options import Scope
from pcns_onnx.graph import Graph
from pcns_onnx.planning.decision import Decision
from pcns_onnx.planning.importance import Importance
from pcns_onnx.planning.plan import Plan, SkippedLayer
from pcns_onnx.planning.problem import Problem
from pcns_onnx.rewrite.layer_weights import set_layer, stored_bias, stored_weight
from pcns_onnx.rewrite.low_rank import ENDING, FACTORED, Factor
from pcns_onnx.rewrite.patch import Patch, apply

_Value = TypeVar("_Value")

LEAST = 16
"""Fewest outputs of a layer that is put as two."""
GAIN = 0.1
"""Share of a layer's time that two of lower rank have to save."""


def candidates(dependencies: DependencyGraph, scope: Scope, plan: Plan | None) -> dict[str, Factor]:
    """The layers that may be put as two, by the group that comes between: those of the plan, or all with `low_rank`."""
    factors = {}
    for layer in dependencies.layers:
        group, name = dependencies.writes(layer), layer.name + ENDING
        alone = group.frozen is None and not group.coupled
        plain = layer.kind in FACTORED and layer.room == 1 and layer.linear.op.conv_groups == 1 and not group.products
        plain = plain and not dependencies.is_bound(layer)
        plain = plain and layer.linear.weight == 1 and max(layer.linear.weight_axes) == 1  # a matrix, on the right
        if plain and not alone and layer.width >= LEAST and scope.wants(layer.name):
            factors[name] = Factor(layer.key, layer.name)
    if plan is not None:
        return {name: factor for name, factor in factors.items() if name in plan.groups}
    return factors if scope.low_rank else {}


NONE = SkippedLayer("low rank", f"no layer with {LEAST} outputs or more has to keep them all")


def paying(
    problem: Problem, groups: Sequence[Group]
) -> tuple[list[Group], dict[str, NDArray[np.int64]], list[SkippedLayer]]:
    """Groups without those in the middle of a layer that no rank makes faster; ranks that do, full rank with them."""
    chosen, allowed, left = list[Group](), dict[str, NDArray[np.int64]](), list[SkippedLayer]()
    costs = problem.costs
    resources = costs.resources
    for group in groups:
        if group.name not in problem.factors or costs.latency_model is None:
            chosen.append(group)
            continue
        widths = np.arange(1, group.width + 1)
        saved = costs({}) - costs.along(group.name, {}, widths / group.width)
        own = float(costs.latency_model.layers[group.name].at(1.0, 1.0))
        pays = (saved[:, resources.index("latency")] > GAIN * own) & (saved[:, resources.index("macs")] > 0)
        if pays.any():
            chosen.append(group)
            allowed[group.name] = widths[pays | (widths == group.width)]
        else:
            left.append(SkippedLayer(group.name, "two layers of any rank were measured to take as long as one"))
    return chosen, allowed, left


def merge_unused_factors(
    problem: Problem, decision: Decision, importance: Importance, scope: Scope
) -> tuple[Problem, Decision, Importance, Patch]:
    """All of it with only those layers as two that are really narrowed between, and the edits that put them so."""
    used = {name: factor for name, factor in problem.factors.items() if name in decision.narrowed}
    patch: Patch = tuple(used.values())
    if problem.undivided is None or len(used) == len(problem.factors):
        return problem, decision, importance, patch
    graph, dependencies = problem.whole, problem.whole_dependencies
    if used:
        graph = apply(graph, patch)
        dependencies = dependency_graph_of(graph, problem.calibration.engine, problem.calibration.samples.data, scope)
    gone = problem.factors.keys() - used.keys()
    names = {group.name for group in problem.groups} - gone
    after = replace(
        problem,
        graph=graph,
        dependencies=dependencies,
        groups=tuple(group for group in dependencies.groups if group.name in names),
        undivided=replace(problem.undivided, factors=used),
    )
    chosen = replace(
        decision,
        full=_but(decision.full, gone),
        widths=_but(decision.widths, gone),
        errors=_but(decision.errors, gone),
        keep=_but(decision.keep, gone),
    )
    return after, chosen, _without(importance, gone, problem.dependencies, dependencies), patch


def _without(
    importance: Importance, gone: AbstractSet[str], before: DependencyGraph, after: DependencyGraph
) -> Importance:
    """The importance without these groups; what was said of their first layers is said of the whole ones."""
    labels = {group.name: group.labels for group in before.groups}, {group.name: group.labels for group in after.groups}

    def whole(layer: str) -> str:
        return layer.removesuffix(ENDING) if layer in gone else layer

    def moved(name: str, covariance: ChannelCovariance) -> ChannelCovariance:
        old, new = (by_group[name] for by_group in labels)
        return replace(covariance, classes=new[np.searchsorted(old, covariance.classes)])

    seconds = {whole(name) for name in gone}
    covariances = {
        (whole(layer), block): {name: moved(name, covariance) for name, covariance in by_group.items()}
        for (layer, block), by_group in importance.covariances.items()
        if layer not in seconds
    }
    basis_changes = {
        name: tuple(replace(change, layer=whole(change.layer)) for change in changes)
        for name, changes in _but(importance.basis_changes, gone).items()
    }
    return replace(
        importance,
        rankings=_but(importance.rankings, gone),
        curves=_but(importance.curves, gone),
        covariances=covariances,
        basis_changes=basis_changes,
    )


def _but(by_group: Mapping[str, _Value], gone: AbstractSet[str]) -> dict[str, _Value]:
    return {name: value for name, value in by_group.items() if name not in gone}


def shifted(graph: Graph, dependencies: DependencyGraph, factors: Collection[str]) -> Patch:
    """The first layer's bias goes into the second's: that is one addition less."""
    patch: Patch = ()
    for name in factors:
        first, second = dependencies.layer(name), dependencies.layer(name.removesuffix(ENDING))
        if not stored_weight(graph, first).size:
            continue  # its block was dropped
        inner, outer = (layer.linear.op.matrix(stored_weight(graph, layer)) for layer in (first, second))
        bias = stored_bias(graph, first)
        patch += set_layer(graph, first, inner, np.zeros(len(bias)))
        patch += set_layer(graph, second, outer, stored_bias(graph, second) + outer @ bias)
    return patch
