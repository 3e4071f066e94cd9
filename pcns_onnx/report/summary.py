"""What the report says of what was solved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.dependency.groups import Group
from pcns_onnx.methods.strategy import Solution
from pcns_onnx.numerics.ridge import Fit
from pcns_onnx.planning.decision import Decision
from pcns_onnx.report.schema import FitInfo, GroupInfo, RefineInfo


def group_infos(
    groups: Sequence[Group],
    decision: Decision,
    solution: Solution,
    curves: Mapping[str, NDArray[np.float64]],
    eigenvalues: Mapping[str, list[float]],
) -> list[GroupInfo]:
    """The narrowed groups; `curves` and `eigenvalues` are for the page, and empty where none is made."""
    return [
        _info(group, decision, solution, curves.get(group.name), eigenvalues.get(group.name))
        for group in groups
        if group.name in decision.narrowed
    ]


def _info(
    group: Group,
    decision: Decision,
    solution: Solution,
    curve: NDArray[np.float64] | None,
    eigenvalues: list[float] | None,
) -> GroupInfo:
    errors, plain = solution.eigenvector_errors.get(group.name, (None, None))
    return GroupInfo(
        name=group.name,
        width=group.width,
        kept=decision.widths[group.name],
        predicted_error=float(decision.errors[group.name]),
        fits={name: _fit(fit) for name, fit in solution.fits.get(group.name, {}).items()},
        refined={
            name: RefineInfo(before=refined.before, after=refined.after)
            for name in group.writers
            if (refined := solution.refined.get(name)) is not None and refined.before == refined.before
        },
        eigenvector_errors=None if errors is None else [float(e) for e in errors],
        plain_eigenvector_errors=None if plain is None else [float(e) for e in plain],
        curve=None if curve is None else [float(e) for e in curve],
        eigenvalues=eigenvalues,
    )


def _fit(fit: Fit) -> FitInfo:
    return FitInfo(
        rows=fit.rows,
        columns=int(fit.matrix.shape[1]),
        ridge=fit.ridge,
        error=fit.error,
        held_out_error=None if fit.held_out_error != fit.held_out_error else fit.held_out_error,
    )
