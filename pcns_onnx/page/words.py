"""What the page says first: the verdict, and the few numbers that matter."""

from __future__ import annotations

import math

from pcns_onnx.report import Report


def verdict(report: Report) -> str:
    """One line: how much smaller, how much faster, how close."""
    a, b = report.before, report.after
    return f"{_less(a.macs, b.macs)} multiply-adds, {_speed(report.latency.ratio)}, {_closeness(report)}"


def answers(report: Report) -> list[tuple[str, str, str]]:
    """What, the number, and what it was before."""
    a, b, latency, agreement = report.before, report.after, report.latency, report.agreement
    found = [
        ("multiply-adds", _share(a.macs, b.macs), f"{a.macs:,} → {b.macs:,}"),
        ("parameters", _share(a.parameters, b.parameters), f"{a.parameters:,} → {b.parameters:,}"),
        ("file", _share(a.bytes, b.bytes), f"{a.bytes:,} → {b.bytes:,} bytes"),
        (
            "latency", f"{100 * latency.ratio:.1f} %",
            f"{1e3 * latency.seconds_a:.3f} → {1e3 * latency.seconds_b:.3f} ms, batch {latency.batch}",
        ),
    ]  # fmt: skip
    if not math.isnan(agreement.error):
        samples = f"{agreement.samples:,} sample{'' if agreement.samples == 1 else 's'}"
        found.append(("relative error", f"{agreement.error:.4f}", f"of the outputs, on {samples}"))
    if agreement.score_a is not None and agreement.score_b is not None:
        unit = " %" if agreement.score == "accuracy" else ""
        said = f"{agreement.score_a:.2f}{unit} → {agreement.score_b:.2f}{unit}"
        found.append((agreement.score or "score", f"{agreement.score_b - agreement.score_a:+.2f}", said))
    return found


def _share(before: float, after: float) -> str:
    return f"{100 * after / max(before, 1):.1f} %"


def _less(before: float, after: float) -> str:
    change = 1 - after / max(before, 1)
    return "as many" if abs(change) < 5e-4 else f"{100 * abs(change):.1f} % {'fewer' if change > 0 else 'more'}"


def _speed(ratio: float) -> str:
    if not ratio > 0:
        return "not timed"
    return f"{1 / ratio:.2f} times as fast"


def _closeness(report: Report) -> str:
    if math.isnan(report.agreement.error):
        return "not checked on samples"
    return f"relative error {report.agreement.error:.4f}"
