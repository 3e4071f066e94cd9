"""What is said of a healing: for the report."""

from __future__ import annotations

import msgspec


class Verdict(msgspec.Struct, frozen=True):
    """Why the healed model was taken or not, on `samples` kept aside.

    `by`: 'labels', 'metric' or 'agreement'. `before`, `after`: accuracy or agreement in percent, the metric, or the
    relative error where nothing is decided. `lost` and `gained`: samples that only the healed model, or only the one
    before, has otherwise than the label or the original; `z`: the largest of the outputs' paired differences in
    standard errors, positive where the healed model is worse. `loss_before`, `loss_after`: what was minimised, there.
    `figure`: what `before` and `after` are.
    """

    accepted: bool
    reason: str
    by: str
    samples: int
    before: float | None
    after: float | None
    lost: int
    gained: int
    z: float
    loss_before: float
    loss_after: float
    figure: str = ""


class Look(msgspec.Struct, frozen=True):
    """The loss on samples kept aside after so many steps; `rate` is the factor that all peak rates had."""

    step: int
    loss: float | None
    rate: float


class CurvePoint(msgspec.Struct, frozen=True):
    """What healing comes to with so many samples: the loss on those kept aside; `predicted`, not measured."""

    samples: int
    loss: float
    predicted: bool = False


class Healing(msgspec.Struct, frozen=True):
    """What healing did. `updates`: samples shown, `learnt`: how many there are of them (0: not counted).

    `losses`: by output, what was minimised; `states`: hidden states that were learnt beside them, which count
    `states_weight` as much in all. `rates`: peak rate by initializer. `looks`: the course; `taken` is the step
    that was taken, `retries` how often the run went back. `precision`: what products ran in. `hashes`: SHA-256 of the
    original, of the model that was healed, and of the samples that it learnt from. `curve`: the loss by samples, where
    it was asked for.
    """

    verdict: Verdict
    updates: int
    steps: int
    batch: int
    learnt: int
    losses: dict[str, str]
    left_out: list[str]
    augmentation: str
    augmentation_why: str
    rates: dict[str, float]
    frozen: list[str]
    looks: list[Look]
    taken: int
    retries: int
    precision: str
    threads: int
    seed: int
    seconds: float
    versions: dict[str, str]
    hashes: dict[str, str]
    curve: list[CurvePoint] = []
    states: list[str] = []
    states_weight: float = 0.0
