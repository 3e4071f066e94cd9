"""The rows of the table, in the order of the effort that they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pcns_onnx.evaluation.options import GateOptions
from pcns_onnx.methods.strategy import Solution
from pcns_onnx.planning.grids import INT8_LEAST
from pcns_onnx.progress import Progress
from pcns_onnx.report.advice.candidates import Candidate, TrialRunner, tried
from pcns_onnx.report.advice.durations import heal_seconds, quantize_seconds, shrink_seconds
from pcns_onnx.report.advice.prediction import HEALED, QUANTIZED, REFINED, PredictedLoss, no_loss, predicted
from pcns_onnx.report.advice.recommendation import allowed, recommended
from pcns_onnx.report.advice.record import AdviceRow

AS_IT_IS, INT8 = "as it is", "int8"
SHARES = (0.9, 0.8, 0.65, 0.5)
"""Shares of the multiply-adds that are tried."""
HEAL_NEEDS = "pip install 'pcns-onnx[heal]'"

Command = Callable[..., str]
"""The command line that makes a row: by the name of the command, the ending of what it writes, and further words."""


@dataclass
class CandidateTable:
    """Rows as they come. `looked`: seconds that looking at the samples took; `limits`: what the caller allows;
    `heals`: whether PyTorch is there, and `shown` how many samples healing shows to a model of a share of the MACs.
    """

    runner: TrialRunner
    command: Command
    limits: GateOptions
    looked: float
    heals: bool
    shown: Callable[[float], int]
    progress: Progress
    solution: Solution | None = None
    """How the first of the narrow models was solved."""
    rows: list[AdviceRow] = field(default_factory=list)
    why_none: str | None = None
    """Why nothing can be shrunk, or tried."""

    def fill(self) -> None:
        """Make all rows."""
        steps = (self._int8, *((lambda share=share: self._shrink(share)) for share in SHARES), self._both, self._healed)
        for step in self.progress.track(steps, "candidates", len(steps)):
            self.rows += [step()]
        first = next((row.loss for row in self.rows if row.loss is not None), None)
        start = no_loss("error" if first is None else first.measure, None if first is None else first.score)
        before = AdviceRow(
            name=AS_IT_IS, macs=1.0, loss=start, latency=1.0, bytes=self.runner.original.nbytes, seconds=0.0
        )
        self.rows.insert(0, before)

    @property
    def limit(self) -> float | None:
        """What may be lost; None where no loss is known."""
        first = next((row.loss for row in self.rows if row.loss is not None), None)
        return None if first is None else allowed(first, self.limits)

    @property
    def shrunk(self) -> list[AdviceRow]:
        """The rows that shrink and do nothing else."""
        return [row for row in self.rows if row.name in {_named(share) for share in SHARES}]

    # -- rows ------------------------------------------------------------------------------------

    def _int8(self) -> AdviceRow:
        command = self.command("quantize", "int8")
        candidate = self._made(self.runner.quantized)
        if isinstance(candidate, str):
            return AdviceRow(name=INT8, command=command, why_not=candidate)
        seconds = quantize_seconds(candidate.seconds, self.runner.more)
        return _row(INT8, command, None, candidate, predicted(candidate.loss, QUANTIZED), seconds)

    def _shrink(self, share: float) -> AdviceRow:
        name, command = _named(share), self.command("shrink", f"{share:g}", "--budget", f"macs={share:g}")
        candidate = self.why_none or self._made(lambda: self.runner.shrunk(share))
        if isinstance(candidate, str):
            return AdviceRow(name=name, command=command, budget=share, why_not=candidate)
        loss = predicted(candidate.loss, REFINED[candidate.loss.measure])
        seconds = self._shrink_seconds(candidate)
        return _row(name, command, share, candidate, loss, seconds)

    def _both(self) -> AdviceRow:
        """The recommended shrink in int8, too; where none is, the widest."""
        share = self._best_shrink().budget or SHARES[0]
        name = f"{_named(share)}, int8"
        command = self.command("shrink", f"{share:g}", "--budget", f"macs={share:g}", "--int8")
        narrow = self.why_none or self._made(lambda: self.runner.shrunk(share, INT8_LEAST))
        candidate = narrow if isinstance(narrow, str) else self._made(lambda: self.runner.quantized(narrow))
        if isinstance(candidate, str) or isinstance(narrow, str):
            return AdviceRow(name=name, command=command, budget=share, why_not=str(candidate))
        seconds = self._shrink_seconds(narrow)
        seconds += quantize_seconds(candidate.seconds, self.runner.more)
        loss = predicted(candidate.loss, REFINED[candidate.loss.measure], QUANTIZED)
        return _row(name, command, share, candidate, loss, seconds)

    def _healed(self) -> AdviceRow:
        """The narrowest that healing is expected to make good enough; where none is, the recommended shrink."""
        best, limit = self._best_shrink(), self.limit
        healed = [row for row in self.shrunk if row.loss is not None and row.loss.trial is not None]
        losses = {
            row.name: predicted(row.loss.trial, REFINED[row.loss.measure], HEALED)
            for row in healed
            if row.loss is not None and row.loss.trial is not None
        }
        enough = [row for row in healed if limit is not None and losses[row.name].high <= limit]
        row = min(enough, key=lambda row: row.budget or 1.0, default=best if best.budget else None)
        row = row or (healed[0] if healed else self.shrunk[0])
        share = row.budget or SHARES[0]
        name, words = f"{_named(share)}, heal", ("--budget", f"macs={share:g}", "--heal")
        command = self.command("shrink", f"{share:g}.healed", *words)
        needs = None if self.heals else HEAL_NEEDS
        if row.loss is None or row.macs is None:
            return AdviceRow(name=name, command=command, budget=share, needs=needs, why_not=row.why_not)
        one = self.runner.milliseconds / 1e3 / max(self.runner.timed.batch, 1)
        seconds = (row.seconds or 0.0) + heal_seconds(one, self.shown(row.macs), row.macs)
        return AdviceRow(
            name=name, command=command, budget=share, macs=row.macs, latency=row.latency, bytes=row.bytes,
            loss=losses[row.name], seconds=seconds, needs=needs,
        )  # fmt: skip

    def _made(self, make: Callable[[], Candidate]) -> Candidate | str:
        candidate = tried(make)
        if isinstance(candidate, Candidate) and self.solution is None:
            self.solution = candidate.solution
        return candidate

    def _shrink_seconds(self, candidate: Candidate) -> float:
        recurrent = any(group.recurrent for group in self.runner.problem.groups)
        return shrink_seconds(self.looked, candidate.seconds, recurrent=recurrent)

    def _best_shrink(self) -> AdviceRow:
        """What the rule recommends if there is nothing but shrinking."""
        start = AdviceRow(name=AS_IT_IS, latency=1.0)
        return recommended([start, *self.shrunk], self.limit or 0.0)


def _named(share: float) -> str:
    return f"shrink to {share:g}"


def _row(
    name: str, command: str, budget: float | None, candidate: Candidate, loss: PredictedLoss, seconds: float
) -> AdviceRow:
    """The row of a candidate that there is."""
    return AdviceRow(
        name=name,
        command=command,
        budget=budget,
        macs=candidate.macs,
        loss=loss,
        latency=candidate.latency,
        bytes=candidate.bytes,
        seconds=seconds,
    )
