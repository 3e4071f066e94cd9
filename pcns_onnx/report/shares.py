"""How shares of a variance are written.

A share of more than all says that the mean would have done better, and no more: whoever misses 3 or 300 times the
variance misses all of it. And of no variance there is no share.
"""

from __future__ import annotations

from collections.abc import Iterable

from pcns_onnx.evaluation.output_tally import OutputAgreement

NONE = "\N{EN DASH}"
NO_LESS = "\N{GREATER-THAN OR EQUAL TO}"


def known_share(value: float | None) -> float | None:
    """At most 1, None where it is not known."""
    return None if value is None or value != value else min(float(value), 1.0)


def share(value: float | None, digits: int = 2, unit: str = "%") -> str:
    """A share as text: '1.25%', a dash where there is none."""
    known = known_share(value)
    if known is None:
        return NONE
    return f"{NO_LESS} 100{unit}" if known == 1 else f"{100 * known:.{digits}f}{unit}"


def number(value: float | None, digits: int = 4) -> str:
    """A figure as text, a dash where there is none."""
    return NONE if value is None or value != value else f"{value:.{digits}f}"


def worst_share(values: Iterable[float | None]) -> float | None:
    """The largest of those that are known."""
    return max((known for value in values if (known := known_share(value)) is not None), default=None)


def flipped(output: OutputAgreement, unit: str) -> str:
    """What a reader of an output that decides something is told beside its error."""
    if output.flips is None or (output.decision == "arg-max" and output.argmax_agreement is not None):
        return ""
    decision = {"arg-max": "arg-max", "threshold": "side of 0.5", "equal": "value"}[output.decision or "equal"]
    unusual = output.unusual_flips or 0.0
    rare = f" ({100 * unusual:.2f}{unit} of those that are not the usual one)" if unusual > 2 * output.flips else ""
    return f", {decision} differs on {100 * output.flips:.2f}{unit} of its values{rare}"
