"""What the data says of every group: how its channels rank, and what the model loses without them.

A subset method ranks the channels of each group by what its readers lose (`passes.read_groups`);
where a budget is to be spent, the group is also probed at the model's outputs (`probing`). All of
it can be saved and used for other budgets without another look at the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.api.options import Options
from pcns_onnx.calibration.group_inputs import GroupReadings, Places, Setup, is_same, read_groups
from pcns_onnx.calibration.layer_inputs import Seen
from pcns_onnx.calibration.ranking import Rank, Ranking
from pcns_onnx.cost.model import Costs
from pcns_onnx.data import split
from pcns_onnx.dependency.groups import Census, Group
from pcns_onnx.dependency.residual import Block, blocks
from pcns_onnx.graph import Graph
from pcns_onnx.methods.registry import Method
from pcns_onnx.methods.subset import interpolative, obs
from pcns_onnx.planning.sensitivity import Prober, probe_samples
from pcns_onnx.reconstruction.rotation import Origins, Turn, rotations, turned
from pcns_onnx.rewrite.low_rank import Factor

RANK_OF: Mapping[str, Rank] = {"obs": obs.rank, "interpolative": interpolative.rank}
"""What ranks channels, by method."""


@dataclass(frozen=True)
class Work:
    """The float32 graph that is solved, what is known of it, and the groups that may be narrowed.

    `latency_batch` is the batch that latency is measured at. Where layers are put as two (`factors`, by the
    group between them), `whole` is the graph before, of which `whole_census` is, and `ranks` are those that pay.
    """

    graph: Graph
    census: Census
    setup: Setup
    groups: tuple[Group, ...]
    costs: Costs
    latency_batch: int
    whole: Graph
    whole_census: Census
    factors: Mapping[str, Factor] = field(default_factory=dict)
    ranks: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    @cached_property
    def blocks(self) -> Mapping[str, Block]:
        """The blocks that may go altogether, by group."""
        names = {group.name for group in self.groups}
        return {name: block for name, block in blocks(self.graph, self.census).items() if name in names}


@dataclass(frozen=True)
class Findings:
    """By group: the ranking, the error curve that widths are chosen by, how its readers see it, its best basis.

    `curves` are squared relative errors at the outputs where groups were probed, else of the readers;
    those of channels that several blocks share count `streams` times as much (see `trying`).
    """

    rankings: Mapping[str, Ranking]
    curves: Mapping[str, NDArray[np.float64]]
    seen: Mapping[Places, Mapping[str, Seen]]
    turns: Mapping[str, tuple[Turn, ...]]
    streams: float = 1.0


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


def essential(census: Census, group: Group, ranking: Ranking) -> list[int]:
    """The best channel of every tensor that carries some of the group: none may be left without any."""
    place = np.empty(group.width, dtype=np.int64)
    place[ranking.order] = np.arange(group.width)
    best: set[int] = set()
    for mine in census.carriers[group.name]:
        at = np.searchsorted(group.labels, mine)
        best.add(int(at[np.argmin(place[at])]))
    return sorted(best, key=lambda channel: int(place[channel]))


