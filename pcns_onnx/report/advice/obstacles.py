"""Why shrinking does not pay: what holds layers back, what narrower layers do not make faster, and doubtful samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.methods.strategy import Solution
from pcns_onnx.numerics.confidence import LEAST
from pcns_onnx.planning.plan import SkippedLayer
from pcns_onnx.planning.problem import Problem
from pcns_onnx.report.advice.recommendation import PAYS
from pcns_onnx.report.advice.record import AdviceRow, HeldBack
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
    macs = {item.name: item.macs for item in (*dependencies.layers, *dependencies.unsolved)}
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
    """What speaks against shrinking, in sentences; `limit` is what may be lost, `fixed` the time that no width changes."""
    known = [row for row in shrunk if row.loss is not None and row.latency is not None]
    if fixed is not None and fixed > MOST:
        yield f"{fixed:.0%} of its time is in what no width changes"
    if not known:
        return
    good = [row for row in known if row.loss is not None and row.loss.high <= limit]
    if not good:
        widest = known[0]
        assert widest.loss is not None, "known"
        yield (
            f"there is nothing to take away: {widest.budget:g} of the multiply-adds may cost {widest.loss.high:.1%} "
            f"already, and {limit:.1%} is allowed"
        )
    elif all((row.latency or 1.0) > 1 - PAYS for row in good):
        yield f"narrower is no faster here: {min(row.latency or 1.0 for row in good):.2f} of the time at best"
    fastest = min((row.latency or 1.0 for row in good), default=1.0)
    if int8.latency is None or int8.loss is None or int8.loss.high > limit:
        return
    if int8.latency <= fastest:
        yield (
            f"int8 alone takes {int8.latency:.2f} of the time, the fastest good enough shrink {fastest:.2f}"
            if good
            else f"int8 alone takes {int8.latency:.2f} of the time, and loses no more than is allowed"
        )
    if both.latency is not None and both.latency > (1 - PAYS) * int8.latency:
        yield f"integer kernels gain nothing from narrower layers: {both.latency:.2f} against {int8.latency:.2f}"


def doubtful(problem: Problem, solution: Solution | None, more: float) -> list[str]:
    """Why so few samples, or samples so much alike, are not enough to shrink on.

    `solution` is that of a trial; there are so many `more` samples for each that it has seen.
    """
    summary = problem.calibration.samples.summary
    if (alike := all_alike(summary)) is not None:
        return [alike]
    if summary.distinct < LEAST:
        return [f"{summary.distinct} different samples are too few to judge anything by: give {LEAST} or more"]
    fits = {} if solution is None else {name: fit for group in solution.fits.values() for name, fit in group.items()}
    rows = {name: round(fit.rows * more * summary.distinct / max(summary.count, 1)) for name, fit in fits.items()}
    short = {name: int(fit.matrix.shape[1]) for name, fit in fits.items() if rows[name] < int(fit.matrix.shape[1])}
    if not short:
        return []
    worst = min(short, key=lambda name: rows[name] / short[name])
    return [
        f"too few samples to solve {len(short)} of {len(fits)} layers: '{worst}' has {short[worst]:,} unknowns per output "
        f"and {rows[worst]:,} rows to find them from; give {short[worst] / max(rows[worst], 1):.1f} times as many or more"
    ]
