"""Limits, and what was measured against them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pcns_onnx.errors import GateError, InputError
from pcns_onnx.evaluation.agreement import Agreement
from pcns_onnx.evaluation.options import GateOptions
from pcns_onnx.planning.budget import Budget


class Gate(msgspec.Struct, frozen=True):
    """A limit that the caller set and what was measured."""

    name: str
    limit: float
    value: float

    @property
    def passed(self) -> bool:
        """Whether the limit holds; NaN never does."""
        return self.value <= self.limit


def gates_of(options: GateOptions, agreement: Agreement) -> list[Gate]:
    """The limits that the caller set, with what was measured."""
    gates = []
    if options.max_error is not None:
        gates.append(Gate("max-error", options.max_error, agreement.error))
    if options.max_drop is not None:
        if agreement.drop is None:
            raise InputError("--max-drop needs an output of shape (N, classes) and one label per sample, or --metric")
        gates.append(Gate("max-drop", options.max_drop, agreement.drop))
    return gates


def quality_gates(budgets: Iterable[Budget], agreement: Agreement) -> list[Gate]:
    """The budgets on what may be lost, with what was measured."""
    gates = []
    for budget in budgets:
        value = agreement.error if budget.resource == "error" else agreement.drop
        if value is None:
            raise InputError("budget drop needs an output of shape (N, classes) and one label per sample, or --metric")
        gates.append(Gate(f"budget {budget.resource}", budget.limit, value))
    return gates


def enforce(gates: Iterable[Gate], report: object, consequence: str = "") -> None:
    """Raise `GateError`, which carries the report and the exit code, where a limit was exceeded."""
    failed = [gate for gate in gates if not gate.passed]
    if failed:
        exceeded = ", ".join(f"{g.name} {g.value:.4g} exceeds {g.limit:g}" for g in failed)
        raise GateError(f"gate failed: {exceeded}{consequence}", report)
