"""Why shrinking does not pay: what holds layers back, what narrower layers do not make faster, and doubtful samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pcns_onnx.data.fingerprints import SampleSummary
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.layers import Layer, Unsolved
from pcns_onnx.methods.strategy import Solution
from pcns_onnx.numerics.confidence import LEAST
from pcns_onnx.planning.plan import SkippedLayer
from pcns_onnx.planning.problem import Problem
from pcns_onnx.report.advice.prediction import PredictedLoss
from pcns_onnx.report.advice.recommendation import PAYS
from pcns_onnx.report.advice.record import AdviceRow, HeldBack
from pcns_onnx.report.advice.words import amount
from pcns_onnx.report.inspection import within_reach
from pcns_onnx.report.warnings import all_alike

MOST = 0.5
"""The share of the time beyond which it is said that no width changes it."""
_SHOWN = 6
"""Causes that are listed."""


def held_back(
    dependencies: DependencyGraph, skipped: Sequence[SkippedLayer], total: float, seconds: Mapping[str, float]
) -> list[HeldBack]:
    """What cannot get narrower, by cause: those that cost most first. `seconds` by layer, out of `total`."""
    items: list[Layer | Unsolved] = [*dependencies.layers, *dependencies.unsolved]
    macs = {item.name: item.macs for item in items}
    whole = sum(macs.values()) or 1
    causes = []
    for item in skipped:
        names = list(dict.fromkeys(item.layers or [item.name]))
        share = sum(macs.get(name, 0) for name in names) / whole
        known = [seconds[name] for name in names if name in seconds]
        time = sum(known) / total if known and total else None
        causes.append(HeldBack(names[0], len(names), item.reason, share, time))
    return sorted(causes, key=lambda cause: (-(cause.seconds or 0.0), -cause.macs, cause.name))[:_SHOWN]


def out_of_reach(dependencies: DependencyGraph, total: float, seconds: Mapping[str, float]) -> float | None:
    """The share of the time that no width changes; None where the time of layers is not known."""
    if not seconds or not total:
        return None
    return max(1.0 - sum(seconds.get(item.name, 0.0) for item in within_reach(dependencies)) / total, 0.0)


def does_not_pay(
    int8: AdviceRow, shrunk: Sequence[AdviceRow], both: AdviceRow, limit: float, fixed: float | None
) -> Iterator[str]:
    """What speaks against shrinking, in sentences; `limit` may be lost, `fixed` is the time that no width changes."""
    known = [row for row in shrunk if row.loss is not None and row.latency is not None]
    if fixed is not None and fixed > MOST:
        yield f"{fixed:.0%} of its time goes into operators that no width changes"
    if not known:
        return
    good = [row for row in known if row.loss is not None and row.loss.high <= limit]
    if not good:
        widest = known[0]
        assert widest.loss is not None, "known"
        yield _too_few(widest.loss, limit) or (
            f"it is compact: already at {widest.budget:g} of its multiply-adds it may lose "
            f"{amount(widest.loss, widest.loss.high)} (allowed: {amount(widest.loss, limit)})"
        )
    elif all((row.latency or 1.0) > 1 - PAYS for row in good):
        yield f"narrower is no faster here: it takes {min(row.latency or 1.0 for row in good):.2f} of the time at best"
    if int8.latency is None or int8.loss is None or int8.loss.high > limit:
        return
    fastest = min((row.latency or 1.0 for row in good), default=1.0)
    together = both.latency if both.loss is not None and both.loss.high <= limit else None
    if fastest >= int8.latency and (together is None or together > (1 - PAYS) * int8.latency):
        less = "none that is good enough" if not good else f"{fastest:.2f} the fastest that is good enough"
        yield f"int8 alone takes {int8.latency:.2f} of the time, shrinking alone {less}"
    if both.latency is not None and both.latency > (1 - PAYS) * int8.latency:
        yield f"integer kernels gain little from narrower layers: {both.latency:.2f}, int8 alone {int8.latency:.2f}"


def _too_few(loss: PredictedLoss, limit: float) -> str | None:
    """That samples, and not the model, are why a loss may be too large, where the most likely one is not: what is
    counted is known to one sample at best."""
    if loss.trial is None or loss.measure == "error" or loss.low > limit or limit * loss.trial.samples >= 1:
        return None
    judged = loss.trial.samples
    more = f"; {1 / (limit * judged):.1f} times as many would tell more" if limit else ""
    return (
        f"too few samples to tell what narrower layers lose: {judged} judge it, and one of them stands for "
        f"{amount(loss, 1 / judged)} (allowed: {amount(loss, limit)}){more}"
    )


def unfit(summary: SampleSummary) -> str | None:
    """Why samples are too few, or too much alike, to judge anything by."""
    if (alike := all_alike(summary)) is not None:
        return alike
    if summary.distinct < LEAST:
        return f"{summary.distinct} different samples are too few to judge anything by: give {LEAST} or more"
    return None


def starved_layers(problem: Problem, solution: Solution, more: float) -> str | None:
    """The layers that have fewer rows than unknowns; `more` samples there are for each that the `solution` has seen."""
    summary = problem.calibration.samples.summary
    fits = {name: fit for group in solution.fits.values() for name, fit in group.items()}
    rows = {name: round(fit.rows * more * summary.distinct / max(summary.count, 1)) for name, fit in fits.items()}
    short = {name: int(fit.matrix.shape[1]) for name, fit in fits.items() if rows[name] < int(fit.matrix.shape[1])}
    if not short:
        return None
    worst = min(short, key=lambda name: rows[name] / short[name])
    times = short[worst] / max(rows[worst], 1)
    return (
        f"few samples for {len(short)} of the {len(fits)} layers that are solved again: '{worst}' has {short[worst]:,} "
        f"unknowns for each output, and {rows[worst]:,} rows; {times:.1f} times as many samples would do better"
    )
