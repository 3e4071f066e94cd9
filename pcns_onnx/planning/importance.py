"""What the data says of every group: how its channels rank, and what the model loses without them.

A subset method ranks the channels of each group by what its readers lose (`calibration.group_inputs`);
where a budget is to be spent, the group is also probed at the model's outputs (`sensitivity`). All of
it can be saved and used for other budgets without another look at the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.columns import BlockKey, ChannelCovariance
from pcns_onnx.calibration.ranking import Ranking
from pcns_onnx.data.fingerprints import Hashes
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.rewrite.change_basis import BasisChange


@dataclass(frozen=True)
class Importance:
    """By group: the ranking, the error curve that widths are chosen by, how its readers see it, its best basis.

    `curves` are squared relative errors at the outputs where groups were probed, else of the readers;
    those of channels that several blocks share count `stream_weight` times as much. `samples` are the hashes of those
    that it was seen on, in their order. Where `even` widths served best, all groups get about the same share of
    theirs, whatever their curves.
    """

    rankings: Mapping[str, Ranking]
    curves: Mapping[str, NDArray[np.float64]]
    covariances: Mapping[BlockKey, Mapping[str, ChannelCovariance]]
    basis_changes: Mapping[str, tuple[BasisChange, ...]]
    stream_weight: float = 1.0
    samples: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))
    even: bool = False


def essential(dependencies: DependencyGraph, group: Group, ranking: Ranking) -> list[int]:
    """The best channel of every tensor that carries some of the group: none may be left without any."""
    place = np.empty(group.width, dtype=np.int64)
    place[ranking.order] = np.arange(group.width)
    best: set[int] = set()
    for carried in dependencies.carriers[group.name]:
        at = np.searchsorted(group.labels, carried)
        best.add(int(at[np.argmin(place[at])]))
    return sorted(best, key=lambda channel: int(place[channel]))
