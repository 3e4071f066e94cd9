"""What the page says first: the verdict, and the few numbers that matter."""

from __future__ import annotations

from pcns_onnx.report.schema import Report
from pcns_onnx.report.shares import number


def verdict(report: Report) -> str:
    """One line: how much smaller, how much faster, how close."""
    a, b = report.before, report.after
    known = "known " if a.unknown or b.unknown else ""
    return f"{_less(a.macs, b.macs)} {known}multiply-adds, {_speed(report.latency.ratio)}, {_closeness(report)}"


def answers(report: Report) -> list[tuple[str, str, str]]:
    """What, the number, and what it was before."""
    a, b, latency, agreement = report.before, report.after, report.latency, report.agreement
    rows = [
        ("multiply-adds", _change(a.macs, b.macs), f"{a.macs_text} → {b.macs_text}"),
        ("parameters", _change(a.parameters, b.parameters), f"{a.parameters:,} → {b.parameters:,}"),
        ("file", _change(a.bytes, b.bytes), f"{a.bytes:,} → {b.bytes:,} bytes"),
        (
            "latency", _change(1.0, latency.ratio),
            f"{1e3 * latency.seconds_a:.3f} → {1e3 * latency.seconds_b:.3f} ms, batch {latency.batch}",
        ),
    ]  # fmt: skip
    if agreement.outputs:
        samples = f"{agreement.samples:,} sample{'' if agreement.samples == 1 else 's'}"
        rows.append(("relative error", number(agreement.error), f"of the outputs, on {samples}"))
        flips = [max(o.flips, o.unusual_flips or 0.0) for o in agreement.outputs if o.flips is not None]
        if flips:
            rows.append(("decisions that flip", f"{100 * max(flips):.2f} %", "of those that are not the usual one"))
    if agreement.score_a is not None and agreement.score_b is not None:
        name = "accuracy, points" if agreement.score == "accuracy" else agreement.score or "score"
        scores = f"{agreement.score_a:.2f} → {agreement.score_b:.2f}"
        rows.append((name, f"{agreement.score_b - agreement.score_a:+.2f}", scores))
    return rows


def precisions(report: Report) -> list[tuple[str, ...]]:
    """The original, the shrunk model and what was made of it: bytes, time against both, error, score."""
    quantized, agreement = report.precisions, report.agreement
    return [
        ("original", f"{report.before.bytes:,}", "1", "", "0", _score(agreement.score_a)),
        (
            "shrunk", f"{report.after.bytes:,}", f"{report.latency.ratio:.3f}", "1", number(agreement.error),
            _score(agreement.score_b),
        ),
        *(
            (
                f"shrunk, {precision.kind}", f"{precision.bytes:,}", f"{precision.latency.ratio:.3f}",
                f"{precision.on_top:.3f}", number(precision.agreement.error), _score(precision.agreement.score_b),
            )
            for precision in quantized
        ),
    ]  # fmt: skip


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _change(before: float, after: float) -> str:
    if not (before > 0 and after >= 0):
        return "not known"
    return f"{100 * (after / before - 1):+.1f} %".replace("-", "\N{MINUS SIGN}")


def _less(before: float, after: float) -> str:
    change = 1 - after / max(before, 1)
    return "as many" if abs(change) < 5e-4 else f"{100 * abs(change):.1f} % {'fewer' if change > 0 else 'more'}"


def _speed(ratio: float) -> str:
    if not ratio > 0:
        return "not timed"
    return f"{1 / ratio:.2f} times as fast"


def _closeness(report: Report) -> str:
    if not report.agreement.outputs:
        return "not checked on samples"
    return f"relative error {number(report.agreement.error)}"
