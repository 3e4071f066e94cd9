"""What healing did, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from pcns_onnx.evaluation.healing import Healing, Verdict
from pcns_onnx.report.schema import Report


def healing_lines(report: Report) -> Iterator[str]:
    """Some lines, where there was a healing."""
    if report.healing is not None:
        yield "\n".join(_lines(report.healing))


def _lines(healing: Healing) -> Iterator[str]:
    verdict, steps = healing.verdict, "step" if healing.steps == 1 else "steps"
    yield (
        f"healed: {healing.updates:,} samples shown in {healing.steps:,} {steps} of {healing.batch}, "
        f"{healing.seconds:.0f} s, {healing.precision}; augmentation "
        f"{healing.augmentation} ({healing.augmentation_why})"
    )
    for name, loss in healing.losses.items():
        yield f"  {name}: {loss}"
    if healing.left_out:
        yield f"  not learnt from: {', '.join(healing.left_out)}"
    times = "once" if healing.retries == 1 else f"{healing.retries} times"
    retries = f", {times} back to the best point at a quarter of the rate" if healing.retries else ""
    yield f"  loss on samples kept aside {verdict.loss_before:.4g} -> {verdict.loss_after:.4g}{retries}"
    for point in healing.curve:
        yield f"  loss with {point.samples:,} samples{' (predicted)' if point.predicted else ''}: {point.loss:.4g}"
    yield f"  {'accepted' if verdict.accepted else 'not accepted'}: {_judged(verdict)}"


def _judged(verdict: Verdict) -> str:
    if verdict.before is None or verdict.after is None:
        return verdict.reason
    values = f"{verdict.figure} {verdict.before:.4g} -> {verdict.after:.4g}"
    return f"{verdict.reason}; {values} on {verdict.samples:,} samples kept aside"
