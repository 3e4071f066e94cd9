"""The record of `advise`: candidates as rows, what holds the model back, and the recommendation."""

from __future__ import annotations

import msgspec

from pcns_onnx.cost.model import ModelSize
from pcns_onnx.planning.plan import FrontierPoint
from pcns_onnx.report.advice.prediction import PredictedLoss

SCHEMA = 1


class AdviceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be done with the model.

    `budget` is the share of the multiply-adds that is asked for, `macs` the share that is left. `latency` is measured,
    as a ratio of the original's; `bytes` is the file's size. `seconds`: what the command would take here. `command` is
    empty where nothing is to be done; `why_not` says why a row is not there to be had: then it has no figures.
    """

    name: str
    command: str = ""
    budget: float | None = None
    macs: float | None = None
    loss: PredictedLoss | None = None
    latency: float | None = None
    bytes: int | None = None
    seconds: float | None = None
    needs: str | None = None
    why_not: str | None = None


class HeldBack(msgspec.Struct, frozen=True):
    """Layers that cannot get narrower for one `reason`, with their shares of the multiply-adds and of the time."""

    name: str
    layers: int
    reason: str
    macs: float
    seconds: float | None


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """What `advise` says: `rows` in the order of the table, the name of the one that is `recommended`, and why.

    `allowed` is the share of the loss (`rows[...].loss`) up to which a row may be recommended; `against` says why
    shrinking does not pay, or what is doubtful. `milliseconds` of the original at `batch`.
    """

    rows: list[AdviceRow]
    recommended: str
    why: str
    allowed: float | None
    against: list[str]
    held_back: list[HeldBack]
    before: ModelSize
    samples: int
    judged: int
    milliseconds: float
    batch: int
    threads: int
    provider: str
    target: str
    frontier: list[FrontierPoint]
    warnings: list[str]
    versions: dict[str, str]
    schema: int = SCHEMA

    def row(self, name: str) -> AdviceRow:
        """The row of a name."""
        return next(row for row in self.rows if row.name == name)
