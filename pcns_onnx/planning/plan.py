"""The plan is data: one width per group and, for methods that keep a subset, the channels that stay."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from pcns_onnx.data.fingerprints import Hashes, in_sketch
from pcns_onnx.dependency.causes import root_of
from pcns_onnx.errors import InputError
from pcns_onnx.files import write_atomic
from pcns_onnx.graph import Graph

SCHEMA = 1
SKETCH = 1024
"""Samples that a plan remembers."""


class GroupPlan(msgspec.Struct, forbid_unknown_fields=True):
    """One group: the width it gets, what it had, which channels stay (subset methods), the predicted error.

    `saves` are the shares of the original that the model would cost more if this group were left alone.
    """

    width: int
    of: int
    error: float
    keep: list[int] | None = None
    saves: dict[str, float] | None = None


class StreamPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A residual stream that is put into the basis of its principal axes: the first `width` of `of` stay.

    `lost` is the share of what its norms make of it that the others hold; `refit`: whether its layers are solved for
    that, and not only cut.
    """

    width: int
    of: int
    lost: float
    refit: bool = False


class Plan(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Widths for one model, as saved by --plan-out and replayed by --plan; `rank_ratio` is eigenremove's.

    `samples`: a sketch of those that it was chosen on (`data.fingerprints`), which prove nothing of it; empty where
    there were none, None where that is not known. `rounds`: in how many steps the model was made, with healing between
    them, of which a replay makes one. `streams`: the residual streams that are narrowed by rotation before all else.
    """

    schema: int
    model: str
    method: str
    groups: dict[str, GroupPlan]
    rank_ratio: float | None = None
    samples: str | None = None
    rounds: int = 1
    streams: dict[str, StreamPlan] = {}

    def was_chosen_on(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Which of these samples it was chosen on, as far as the sketch holds them."""
        return in_sketch(self.samples or "", hashes)


class SkippedLayer(msgspec.Struct, frozen=True):
    """A layer that was left alone; `layers` are all that the same cause holds back, this one first."""

    name: str
    reason: str
    layers: list[str] = []

    @property
    def label(self) -> str:
        """The name, and how many others there are."""
        others = len(self.layers) - 1
        return self.name if others < 1 else f"{self.name} and {others} other{'s' if others > 1 else ''}"


def by_cause(left: Sequence[SkippedLayer]) -> list[SkippedLayer]:
    """One entry for each cause, in the words of the first layer that it holds back, with all of them.

    Entries that say which `layers` they are of are joined with others of the same reason only.
    """
    by_root: dict[str, tuple[str, list[str]]] = {}
    for item in left:
        root = item.reason if item.layers else root_of(item.reason)
        by_root.setdefault(root, (item.reason, []))[1].extend(item.layers or [item.name])
    return [SkippedLayer(names[0], reason, list(dict.fromkeys(names))) for reason, names in by_root.values()]


class FrontierPoint(msgspec.Struct, frozen=True):
    """Shares of the original's `costs` by resource (those on time where layers were timed), and the predicted relative
    error at the outputs."""

    costs: dict[str, float]
    error: float


def chained(plans: Sequence[Plan]) -> Plan:
    """Plans of steps that follow on one another, as one that leads from the first one's model to the last one's."""
    groups = dict(plans[0].groups)
    for plan in plans[1:]:
        for name, entry in plan.groups.items():
            groups[name] = _behind(groups[name], entry) if name in groups else entry
    return msgspec.structs.replace(plans[0], groups=groups, rounds=len(plans))


def _behind(first: GroupPlan, entry: GroupPlan) -> GroupPlan:
    """A group narrowed twice: the errors of both add up, and the channels of the second are among the first one's."""
    keep = entry.keep
    if keep is not None and first.keep is not None:
        keep = [first.keep[at] for at in keep] if entry.of == len(first.keep) else None
    return GroupPlan(entry.width, first.of, first.error + entry.error, keep)


def fingerprint(graph: Graph) -> str:
    """Hash that ties a plan to a model."""
    return graph.digest()[:16]


def load_plan(path: str | Path, graph: Graph) -> Plan:
    """Read a plan for `graph`; raises `InputError` if it is malformed or was made for another model."""
    try:
        plan = msgspec.json.decode(Path(path).read_bytes(), type=Plan)
    except OSError as error:
        raise InputError(f"cannot read plan '{path}': {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"plan '{path}' is not a valid plan: {error}") from None
    try:
        plan.was_chosen_on(np.zeros(0, np.uint64))
    except ValueError:
        raise InputError(f"plan '{path}' is not a valid plan: `samples` is no sketch: leave it out") from None
    if plan.schema != SCHEMA:
        raise InputError(f"plan '{path}' has schema {plan.schema}, this version reads {SCHEMA}: make the plan again")
    if plan.model != fingerprint(graph):
        raise InputError(f"plan '{path}' was made for another model: make it again with --plan-out")
    return plan


def plan_bytes(plan: Plan) -> bytes:
    """A plan as its file has it."""
    return msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n"


def write_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write a plan, atomically."""
    write_atomic(path, plan_bytes(plan))


def pairs(left: Sequence[SkippedLayer]) -> tuple[tuple[str, str], ...]:
    """Names and reasons, as errors carry them."""
    return tuple((item.label, item.reason) for item in by_cause(left))
