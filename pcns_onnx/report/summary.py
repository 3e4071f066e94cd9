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
from pcns_onnx.report.shares import known_share


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
    fits = solution.fits.get(group.name, {})
    is_still = bool(fits) and all(fit.error != fit.error for fit in fits.values())
    errors, plain = solution.eigenvector_errors.get(group.name, (None, None))
    return GroupInfo(
        name=group.name,
        width=group.width,
        kept=decision.widths[group.name],
        predicted_error=None if is_still else known_share(decision.errors[group.name]),
        fits={name: _fit(fit) for name, fit in fits.items()},
        refined={
            name: RefineInfo(min(refined.before, 1.0), min(refined.after, 1.0), refined.steps, refined.rows)
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
        error=known_share(fit.error),
        held_out_error=known_share(fit.held_out_error),
    )
