"""What a run says about itself: one record, as JSON (`cli.tables` shows it on a terminal).

The record has a schema version. Numbers that depend on the machine (seconds, latency) are in
it and not in the model, so that the model's bytes depend on model, data, options and seed only.
"""

from __future__ import annotations

import os

import msgspec

from pcns_onnx.cost.benchmark import Latency
from pcns_onnx.cost.model import ModelSize
from pcns_onnx.evaluation.agreement import Agreement
from pcns_onnx.evaluation.gates import Gate
from pcns_onnx.evaluation.healing import Healing
from pcns_onnx.evaluation.precisions import FailedPrecision, Precision
from pcns_onnx.evaluation.provenance import Provenance
from pcns_onnx.files import write_atomic
from pcns_onnx.methods.expansion import Expanded
from pcns_onnx.methods.pcns.assessment import PcnsAssessment
from pcns_onnx.planning.plan import FrontierPoint, GroupPlan, SkippedLayer, StreamPlan
from pcns_onnx.report.contract import NarrowedState

SCHEMA = 1


class LayerInfo(msgspec.Struct, frozen=True):
    """One layer with multiply-adds. `reason`: why its width must stay.

    `width` is 0 and `macs` None where they are not known.

    `group` names the group that it shares with other layers. `dimensions` and `samples_per_neuron` need data.
    """

    name: str
    kind: str
    width: int
    macs: int | None
    parameters: int
    reason: str | None = None
    dimensions: dict[str, int] | None = None
    samples_per_neuron: float | None = None
    group: str | None = None


class GroupRow(msgspec.Struct, frozen=True):
    """Channels that go together: `width` classes of `unit` channels each; `reason` says why they must stay."""

    name: str
    writers: list[str]
    width: int
    unit: int
    readers: list[str]
    coupled: bool
    reason: str | None = None


class Inspection(msgspec.Struct, frozen=True):
    """What `inspect` finds. `shrinkable_macs` is the share of MACs in layers that touch a group that can shrink.

    Both are of the layers whose MACs are known, None where there are none; those of `unknown_macs` others are not.
    """

    layers: list[LayerInfo]
    macs: int | None
    parameters: int
    shrinkable_macs: float | None
    warnings: list[str]
    groups: list[GroupRow] = []
    unknown_macs: int = 0
    pcns: list[PcnsAssessment] = []
    schema: int = SCHEMA


class GroupInfo(msgspec.Struct, frozen=True):
    """One narrowed group. Errors are shares of the reader's output variance (`fits`: by reader), at most 1; None where
    there is no variance.

    For the page only (`html`): `curve`, the error predicted for each width from 0 on, and `eigenvalues` of the
    covariance of the group's outputs as shares of their sum, largest first, where they are known.
    """

    name: str
    width: int
    kept: int
    predicted_error: float | None
    fits: dict[str, FitInfo]
    refined: dict[str, RefineInfo] = {}
    eigenvector_errors: list[float] | None = None
    plain_eigenvector_errors: list[float] | None = None
    curve: list[float] | None = None
    eigenvalues: list[float] | None = None


class FitInfo(msgspec.Struct, frozen=True):
    """One re-fit: rows and columns of the system, the ridge that was chosen, errors."""

    rows: int
    columns: int
    ridge: float
    error: float | None
    held_out_error: float | None


class RefineInfo(msgspec.Struct, frozen=True):
    """One refinement: the share of the reader's output variance missed on samples kept aside, before and after.

    `steps` were made (fewer than asked for where little was to be gained, or a step takes long), out of `rows` of the
    reader's output.
    """

    before: float
    after: float
    steps: int = 0
    rows: int = 0


class Stage(msgspec.Struct, frozen=True):
    """Seconds of a stage, and as a multiple of one pass of the original over the same samples."""

    seconds: float
    passes: float


class Round(msgspec.Struct, frozen=True):
    """One of several steps: the goal in fractions of the model before, what it came to, and how it was healed.

    `size` and `agreement` (on the samples of the check) are to be held against the original's.
    """

    number: int
    goal: list[str]
    size: ModelSize
    agreement: Agreement
    healing: Healing | None
    notes: list[str]


class Report(msgspec.Struct, frozen=True):
    """Everything about one `shrink` or `compare`.

    `frontier` and the point `chosen` on it are for the page (`html`), where a budget was spread over the layers.
    `failed_precisions` are those that were asked for and are not written; the warnings name them, too. `healing`: how
    the result has learnt from the original, where it was to. `contract`: the states whose shape a caller must change.
    `rounds`: each of several steps, where there were some; `failed_round`: why the last one of these is not that which
    was asked for. `streams`: the residual streams that were narrowed by rotation.
    """

    options: dict[str, str]
    before: ModelSize
    after: ModelSize
    agreement: Agreement
    latency: Latency
    gates: list[Gate]
    groups: list[GroupInfo]
    left_alone: list[SkippedLayer]
    folded: list[str]
    stages: dict[str, Stage]
    warnings: list[str]
    versions: dict[str, str]
    origin: Provenance | None = None
    frontier: list[FrontierPoint] = []
    chosen: FrontierPoint | None = None
    precisions: list[Precision] = []
    failed_precisions: list[FailedPrecision] = []
    healing: Healing | None = None
    contract: list[NarrowedState] = []
    rounds: list[Round] = []
    failed_round: str | None = None
    streams: dict[str, StreamPlan] = {}
    schema: int = SCHEMA

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON, atomically; NaN becomes null."""
        write_atomic(path, msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")


class Expansion(msgspec.Struct, frozen=True):
    """What `expand` did; `on_noise` where there were no samples to compare both models on."""

    method: str
    groups: list[Expanded]
    before: ModelSize
    after: ModelSize
    agreement: Agreement
    on_noise: bool
    warnings: list[str]
    schema: int = SCHEMA


class PlanReport(msgspec.Struct, frozen=True):
    """What a plan would do: widths by group, one point or a whole frontier, what stays and why.

    `steps` are the multiples of channels that pay on this machine, by group, as timed at `batch`.
    """

    groups: dict[str, GroupPlan]
    points: list[FrontierPoint]
    left_alone: list[SkippedLayer]
    steps: dict[str, int]
    batch: int
    threads: int
    provider: str
    warnings: list[str] = []
    streams: dict[str, StreamPlan] = {}
