"""What healing did, and the rounds that it went in, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from pcns_onnx.cost.model import ModelSize
from pcns_onnx.evaluation.healing import Healing, Verdict
from pcns_onnx.report.schema import Report, Round


def healing_lines(report: Report) -> Iterator[str]:
    """Some lines, where there was a healing, and one for each of several rounds."""
    if report.rounds:
        yield "\n".join(_round(item, report.before) for item in report.rounds)
    if report.healing is not None:
        yield "\n".join(_lines(report.healing))


def _round(item: Round, original: ModelSize) -> str:
    """What a round asked of the model before it, and what there was of the original after it."""
    agreement, healing = item.agreement, item.healing
    score = "" if agreement.score_b is None else f", {agreement.score} {agreement.score_b:.4g}"
    how = "not healed" if healing is None else f"{healing.updates:,} samples shown"
    taken = "" if healing is None or healing.verdict.accepted else ", not accepted"
    return (
        f"round {item.number}: {', '.join(item.goal)}; MACs {original.macs_ratio(item.size)}, "
        f"relative error {agreement.error:.3g}{score}; {how}{taken}"
    )


def _lines(healing: Healing) -> Iterator[str]:
    verdict, steps = healing.verdict, "step" if healing.steps == 1 else "steps"
    yield (
        f"healed: {healing.updates:,} samples shown in {healing.steps:,} {steps} of {healing.batch}, "
        f"{healing.seconds:.0f} s, {healing.precision}; augmentation "
        f"{healing.augmentation} ({healing.augmentation_why})"
    )
    for name, loss in healing.losses.items():
        yield f"  {name}: {loss}"
    if healing.states:
        blocks = "block" if len(healing.states) == 1 else "blocks"
        yield f"  what {len(healing.states)} residual {blocks} hand on: squared error, weight {healing.states_weight:g}"
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
