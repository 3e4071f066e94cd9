"""How the channels of every group rank, and what the model loses without them: one pass over the data.

Each group is ranked by what its readers lose (`calibration.group_inputs`); where a budget is to be
spent, it is also probed at the model's outputs (`planning.sensitivity`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.api.options import Options
from pcns_onnx.calibration.calibration import is_same
from pcns_onnx.calibration.columns import Places, Seen
from pcns_onnx.calibration.group_inputs import GroupReadings, read_groups
from pcns_onnx.calibration.ranking import Rank, Ranking
from pcns_onnx.data.dataset import split
from pcns_onnx.dependency.origins import Origins
from pcns_onnx.methods.registry import Method
from pcns_onnx.methods.subset import interpolative, obs
from pcns_onnx.planning.importance import Findings, essential
from pcns_onnx.planning.problem import Work
from pcns_onnx.planning.sensitivity import Prober, probe_samples
from pcns_onnx.reconstruction.rotation import rotations
from pcns_onnx.rewrite.change_basis import Turn, turned

RANK_OF: Mapping[str, Rank] = {"obs": obs.rank, "interpolative": interpolative.rank}
"""What ranks channels, by method."""


def look(work: Work, method: Method, options: Options, *, probes: bool) -> Findings:
    """One pass over the data, and with `probes` some forward passes more."""
    rankings: dict[str, Ranking] = {}
    curves: dict[str, NDArray[np.float64]] = {}
    seen: dict[Places, dict[str, Seen]] = {}
    turns = _Turns(work)
    prober = _prober(work, options) if probes else None
    try:
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
    finally:
        if prober is not None:
            prober.close()
    return Findings(rankings, curves, seen, turns.by_group)


def _prober(work: Work, options: Options) -> Prober:
    samples = work.setup.samples
    count = probe_samples(samples.count, len(work.groups))
    least = samples.batch if samples.fixed else 1
    some, _ = split(samples.data, holdout=0.0, seed=options.seed, samples=max(count, least))
    outputs = [output.name for output in work.graph.outputs]
    return Prober(work.setup, replace(samples, data=some, _kept=[]), work.graph, work.census, outputs)


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
