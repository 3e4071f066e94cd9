"""How the channels of every group rank, and what the model loses without them: one pass over the data.

Each group is ranked by what its readers lose (`calibration.group_inputs`); where a budget is to be
spent, it is also probed at the model's outputs (`planning.sensitivity`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.calibration import is_same
from pcns_onnx.calibration.columns import BlockKey, ChannelCovariance
from pcns_onnx.calibration.group_inputs import GroupStats, read_groups
from pcns_onnx.calibration.ranking import Rank, Ranking
from pcns_onnx.data.dataset import split
from pcns_onnx.data.references import resolve
from pcns_onnx.dependency.data_dependence import judged_tensors
from pcns_onnx.dependency.origins import Origins
from pcns_onnx.methods.registry import Method
from pcns_onnx.planning.importance import Importance, essential
from pcns_onnx.planning.problem import Problem
from pcns_onnx.planning.sensitivity import Prober, probe_samples
from pcns_onnx.reconstruction.absorption import absorbing
from pcns_onnx.reconstruction.rotation import rotations
from pcns_onnx.rewrite.change_basis import Absorption, BasisChange, change_basis


def rank_of(method: Method) -> Rank:
    """What ranks channels for a method, as its row in the table says."""
    ranks: Rank = resolve(method.ranks)
    return ranks


def score_channels(problem: Problem, method: Method, *, seed: int, probes: bool) -> Importance:
    """One pass over the data, and with `probes` some forward passes more."""
    rankings: dict[str, Ranking] = {}
    curves: dict[str, NDArray[np.float64]] = {}
    covariances: dict[BlockKey, dict[str, ChannelCovariance]] = {}
    changes, ranks = _BasisSearch(problem), rank_of(method)
    prober = _prober(problem, seed) if probes else None
    try:
        for read in map(
            changes.in_best_basis,
            read_groups(problem.calibration, problem.graph, problem.dependencies, problem.groups, problem.last_rows),
        ):
            name = read.group.name
            with problem.calibration.progress.stage("rank"):
                ranking = ranks(read.all, read.group.width)
            ranking = ranking.led_by(essential(problem.dependencies, read.group, ranking))
            sides = [np.searchsorted(read.group.labels, side) for side in read.group.sides]
            rankings[name] = ranking = ranking.balanced(sides)
            for block, covariance in read.covariances().items():
                covariances.setdefault(block, {})[name] = covariance
            curves[name] = ranking.error
            if prober is not None:
                with problem.calibration.progress.stage("probe"):
                    base = change_basis(problem.graph, problem.dependencies, changes.by_group.get(name, ()))[0]
                    absorptions = changes.absorptions.get(name, ())
                    curves[name] = prober.curve(problem.graph, base, read, ranking, absorptions)
    finally:
        if prober is not None:
            prober.close()
    hashes = problem.calibration.samples.summary.hashes
    return Importance(rankings, curves, covariances, changes.by_group, samples=hashes)


def _prober(problem: Problem, seed: int) -> Prober:
    samples = problem.calibration.samples
    count = probe_samples(samples.count, len(problem.groups))
    least = samples.batch if samples.fixed else 1
    probe_data, _ = split(samples.data, holdout=0.0, seed=seed, samples=max(count, least))
    return Prober(
        problem.calibration,
        replace(samples, data=probe_data, _kept=[]),
        problem.graph,
        problem.dependencies,
        judged_tensors(problem.graph),
        problem.layout,
    )


class _BasisSearch:
    """Changes of basis, group by group; each is tried on a batch, and taken only if the model stays what it was."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        has_basis = any(group.mixable or (group.states and group.products) for group in problem.groups)
        self._origins = Origins(problem.graph, problem.dependencies) if has_basis else None
        self.absorptions: dict[str, tuple[Absorption, ...]] = {}
        self.by_group: dict[str, tuple[BasisChange, ...]] = {}

    def in_best_basis(self, read: GroupStats) -> GroupStats:
        """How the group is read in its best basis, or as it was."""
        if self._origins is not None and read.group.states and read.group.products:
            own, read = absorbing(self._problem.graph, self._problem.dependencies, read, self._origins)
            self.absorptions[read.group.name] = own
            return read
        if self._origins is None or not read.group.mixable:
            return read.without_refit()
        graph, dependencies, calibration = self._problem.graph, self._problem.dependencies, self._problem.calibration
        with calibration.progress.stage("rank"):
            basis_changes, following = rotations(graph, dependencies, read, self._origins)
            names = [dependencies.layer(name).output for name in read.group.readers]
            names += [
                p.key  # where V is in the same group, a fused product puts it out: O, which reads it, is looked at
                for p in read.group.products
                if not np.isin(dependencies.labels.get(p.key, -1), read.group.labels).any()
            ]
            if not basis_changes or not is_same(
                calibration, graph, change_basis(graph, dependencies, basis_changes)[0], names
            ):
                return read.without_refit()
        self.by_group[read.group.name] = basis_changes
        return following
