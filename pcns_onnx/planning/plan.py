"""The plan is data: one width per group and, for subset methods, the channels that stay; and what budgets say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from pcns_onnx.cost.model import RESOURCES, Resource
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph

SCHEMA = 1
Quality = Literal["error", "drop"]
QUALITIES: tuple[Quality, ...] = ("error", "drop")


class GroupPlan(msgspec.Struct, forbid_unknown_fields=True):
    """One group: the width it gets, what it had, which channels stay (subset methods), the predicted error.

    `saves` are the shares of the original that the model would cost more if this group were left alone.
    """

    width: int
    of: int
    error: float
    keep: list[int] | None = None
    saves: dict[str, float] | None = None


class Plan(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Widths for one model, as saved by --plan-out and replayed by --plan; `rank_ratio` is eigenremove's."""

    schema: int
    model: str
    method: str
    groups: dict[str, GroupPlan]
    rank_ratio: float | None = None


@dataclass(frozen=True)
class Budget:
    """A limit that the shrunk model must keep.

    On costs (`RESOURCES`): the fraction of the original's that may be left. On quality
    (`QUALITIES`), on samples that were not solved on: 'error', the relative L2 error of any output, and
    'drop', the points of accuracy (or metric) that may be lost.
    """

    resource: Resource | Quality
    limit: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """'macs=0.5' -> Budget; raises `InputError`."""
        name, _, value = text.partition("=")
        try:
            limit = float(value)
        except ValueError:
            limit = float("nan")
        resource = next((r for r in (*RESOURCES, *QUALITIES) if r == name), None)
        if resource is None or not 0 < limit <= (100 if resource in QUALITIES else 1):
            raise InputError(
                f"budget '{text}' is not understood: write macs=0.5, params=0.4 or latency=0.6, fractions in (0, 1], "
                "error=0.1 (relative) or drop=1 (points)"
            )
        return cls(resource, limit)

    @property
    def is_cost(self) -> bool:
        """Whether it limits a cost, not the quality."""
        return self.resource in RESOURCES


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
    if plan.schema != SCHEMA:
        raise InputError(f"plan '{path}' has schema {plan.schema}, this version reads {SCHEMA}: make the plan again")
    if plan.model != fingerprint(graph):
        raise InputError(f"plan '{path}' was made for another model: make it again with --plan-out")
    return plan
