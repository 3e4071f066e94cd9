"""What a run says about itself: one record, as JSON (`tables` shows it on a terminal).

The record has a schema version. Numbers that depend on the machine (seconds, latency) are in
it and not in the model, so that the model's bytes depend on model, data, options and seed only.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from pcns_onnx.cost.benchmark import Latency
from pcns_onnx.evaluation.agreement import Agreement
from pcns_onnx.files import write_atomic
from pcns_onnx.planning.plan import GroupPlan

SCHEMA = 1


class LayerInfo(msgspec.Struct, frozen=True):
    """One layer with multiply-adds. `reason`: why its width must stay; `width` is 0 where it is not known.

    `group` names the group that it shares with other layers. `dimensions` and `samples_per_neuron` need data.
    """

    name: str
    kind: str
    width: int
    macs: int
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


class BatchTrial(msgspec.Struct, frozen=True):
    """PCNS on batches of `rows` rows: medians of neurons and of the relative errors, on the batch and on new rows.

    `close` is the share of the batches whose error on new rows is at most a tenth above that on the batch.
    """

    rows: int
    neurons: int
    seen_error: float
    new_error: float
    worst_new_error: float
    close: float


class Outlook(msgspec.Struct, frozen=True):
    """What PCNS would find in one layer, before anything is changed.

    `eigenvalues` of the outputs centred across neurons, as shares of their sum, largest first. By share of variance:
    how many `eigenvectors` reach it, and how many `neurons` make them and the mean (None, with the `reason`, where
    the activation has no inverse). `reason`: why pcns would leave the layer alone. Least squares has `inputs` + 1
    unknowns per neuron.
    """

    name: str
    width: int
    inputs: int
    eigenvalues: list[float]
    eigenvectors: dict[str, int]
    neurons: dict[str, int] | None
    reason: str | None
    trials: list[BatchTrial]


class Inspection(msgspec.Struct, frozen=True):
    """What `inspect` finds. `shrinkable_macs` is the share of MACs in layers that touch a group that can shrink."""

    layers: list[LayerInfo]
    macs: int
    parameters: int
    shrinkable_macs: float
    warnings: list[str]
    groups: list[GroupRow] = []
    pcns: list[Outlook] = []
    schema: int = SCHEMA


class GroupInfo(msgspec.Struct, frozen=True):
    """One narrowed group. Errors are shares of the reader's output variance (`fits`: by reader).

    For the page only (`html`): `curve`, the error predicted for each width from 0 on, and `eigenvalues` of the
    covariance of the group's outputs as shares of their sum, largest first, where they are known.
    """

    name: str
    width: int
    kept: int
    predicted_error: float
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
    error: float
    held_out_error: float | None


class RefineInfo(msgspec.Struct, frozen=True):
    """One refinement: the share of the reader's output variance missed on samples kept aside, before and after."""

    before: float
    after: float


class Size(msgspec.Struct, frozen=True):
    """Cost of one model."""

    macs: int
    parameters: int
    bytes: int


class Stage(msgspec.Struct, frozen=True):
    """Seconds of a stage, and as a multiple of one pass of the original over the same samples."""

    seconds: float
    passes: float


class Left(msgspec.Struct, frozen=True):
    """A layer that was left alone."""

    name: str
    reason: str


class Gate(msgspec.Struct, frozen=True):
    """A limit that the caller set and what was measured."""

    name: str
    limit: float
    value: float

    @property
    def passed(self) -> bool:
        """Whether the limit holds; NaN never does."""
        return self.value <= self.limit


class FrontierPoint(msgspec.Struct, frozen=True):
    """Shares of the original's costs (latency None where no layer was timed), and the predicted relative error at the
    outputs."""

    macs: float
    params: float
    latency: float | None
    error: float


class Origin(msgspec.Struct, frozen=True):
    """Where a result comes from: what was run, on what, and the SHA-256 of every file that went in.

    `hashes` of files are those of `sha256sum`; the plan's is that of the file `--plan-out` writes.
    """

    command: str | None
    device: str
    provider: str
    threads: int
    seed: int
    hashes: dict[str, str]


class Precision(msgspec.Struct, frozen=True):
    """The shrunk model in fewer bits, against the original; `on_top` is its time against the shrunk model's."""

    kind: str
    bytes: int
    agreement: Agreement
    latency: Latency
    on_top: float


class Report(msgspec.Struct, frozen=True):
    """Everything about one `shrink` or `compare`.

    `frontier` and the point `chosen` on it are for the page (`html`), where a budget was spread over the layers.
    """

    options: dict[str, str]
    before: Size
    after: Size
    agreement: Agreement
    latency: Latency
    gates: list[Gate]
    groups: list[GroupInfo]
    left_alone: list[Left]
    folded: list[str]
    stages: dict[str, Stage]
    warnings: list[str]
    versions: dict[str, str]
    origin: Origin | None = None
    frontier: list[FrontierPoint] = []
    chosen: FrontierPoint | None = None
    precisions: list[Precision] = []
    schema: int = SCHEMA

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically; NaN becomes null."""
        write_atomic(path, msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")


class Expanded(msgspec.Struct, frozen=True):
    """One group that was widened: its width before and after, and how many channels have copies."""

    name: str
    writers: list[str]
    readers: list[str]
    before: int
    after: int
    split: int


class Expansion(msgspec.Struct, frozen=True):
    """What `expand` did; `on_noise` where there were no samples to compare both models on."""

    method: str
    groups: list[Expanded]
    before: Size
    after: Size
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
    left_alone: list[Left]
    steps: dict[str, int]
    batch: int
    threads: int
    provider: str
