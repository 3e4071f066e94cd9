"""What the report says of what was solved."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pcns_onnx.dependency.groups import Group
from pcns_onnx.methods.pcns.rebuild import Rebuilt
from pcns_onnx.numerics.ridge import Fit
from pcns_onnx.planning.decision import Decision
from pcns_onnx.reconstruction.refine import Refined
from pcns_onnx.report.schema import FitInfo, GroupInfo, RefineInfo


def info_of(
    group: Group,
    decision: Decision,
    fits: Mapping[str, Fit],
    new: Rebuilt | None,
    refined: Mapping[str, Refined] = MappingProxyType({}),
) -> GroupInfo:
    """What the report says of a narrowed group."""
    return GroupInfo(
        name=group.name,
        width=group.width,
        kept=decision.widths[group.name],
        predicted_error=float(decision.errors[group.name]),
        fits={
            name: FitInfo(
                rows=fit.rows,
                columns=int(fit.matrix.shape[1]),
                ridge=fit.ridge,
                error=fit.error,
                held_out_error=None if fit.held_out_error != fit.held_out_error else fit.held_out_error,
            )
            for name, fit in fits.items()
        },
        refined={
            name: RefineInfo(before=found.before, after=found.after)
            for name in group.writers
            if (found := refined.get(name)) is not None and found.before == found.before
        },
        eigenvector_errors=None if new is None else [float(e) for e in new.errors],
        plain_eigenvector_errors=None if new is None else [float(e) for e in new.plain_errors],
    )
