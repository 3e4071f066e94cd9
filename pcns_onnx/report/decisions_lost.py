"""Which share of a model's decisions is lost, and whether that must be said.

What counts is a user's own score, where there is one; else classes that differ, and decisions that flip. Of decisions
that are nearly always the same (no face here, no speech now) those count that are another in one of the two models.
Where no output decides anything (a score, an embedding, a signal), a large error is what is lost.
"""

from __future__ import annotations

from collections.abc import Iterable

from pcns_onnx.evaluation.agreement import Agreement
from pcns_onnx.evaluation.output_tally import OutputAgreement

MANY = 0.02
"""The share of decisions whose loss is said."""
LARGE = 0.1
"""The relative error that is said of outputs, where none of them decides anything."""


def decisions_lost(agreement: Agreement) -> str | None:
    """What is lost, where it is more than `MANY`: of the score, else of the output that loses most."""
    a, b = agreement.score_a, agreement.score_b
    if a is not None and b is not None:
        share = (a - b) / abs(a) if a else 0.0
        return f"the {agreement.score} falls from {a:.4g} to {b:.4g}" if share > MANY else None
    losses = [loss for output in agreement.outputs if output.weight > 0 for loss in decision_losses(output)]
    if not losses:
        return _large_error(agreement)
    share, what = max(losses, key=lambda loss: loss[0])
    return what if share > MANY else None


def _large_error(agreement: Agreement) -> str | None:
    errors = [(o.relative_error or 0.0, o.name) for o in agreement.outputs if o.weight > 0 and o.counts is None]
    error, name = max((one for one in errors if one[0] > LARGE), default=(0.0, ""))  # NaN is nothing to say
    return f"'{name}' errs by {error:.2g} of how much it varies" if name else None


def decision_losses(output: OutputAgreement) -> Iterable[tuple[float, str]]:
    """The share of an output's decisions that differ, and what that is in words; nothing where it decides nothing."""
    if output.argmax_agreement is not None:
        share = 1 - output.argmax_agreement
        yield share, f"the class of '{output.name}' differs on {100 * share:.1f}%"
    elif output.unusual_flips is not None and output.flips is not None:
        unusual, of_all = (f"{100 * part:.1f}%" for part in (output.unusual_flips, output.flips))
        of = "decisions" if unusual == of_all else "those decisions that are not the usual one"
        yield output.unusual_flips, f"'{output.name}' decides otherwise in {unusual} of {of}"
    elif output.flips is not None:
        yield output.flips, f"'{output.name}' differs in {100 * output.flips:.1f}% of its values"
