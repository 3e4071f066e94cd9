"""What a reader of a report is warned of."""

from __future__ import annotations

import pytest

from builders.mlp import mlp, rows
from pcns_onnx import shrink


@pytest.mark.parametrize(("count", "warned"), [(30, True), (3000, False)])
def test_a_solve_that_holds_for_its_own_samples_only_is_named(count: int, warned: bool) -> None:
    model = mlp(widths=(6, 80, 40, 3))
    report = shrink(model, rows(count), eval=rows(100), width=0.5, refine=0, threads=1).report
    said = [text for text in report.warnings if "miss more on samples that they were not solved on" in text]
    assert bool(said) is warned
    if warned:
        fits = {name: fit for group in report.groups for name, fit in group.fits.items()}
        apart = [n for n, fit in fits.items() if (fit.held_out_error or 0) > max(2 * (fit.error or 0), 1e-3)]
        assert said[0].startswith(f"{len(apart)} of {len(fits)} layers") and any(f"'{n}'" in said[0] for n in apart)
