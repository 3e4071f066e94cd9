"""What a reader of a report is warned of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

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


@pytest.mark.parametrize("loud", [False, True])
def test_weights_far_beyond_the_originals_are_named(loud: bool, tmp_path: Path) -> None:
    """Of each neuron there is one that is 1/10,000 of it; a plan keeps these, or the others."""
    model, x = mlp(widths=(6, 16, 3)), rows(400)
    first = next(t for t in model.graph.initializer if list(t.dims) in ([6, 16], [16, 6]))
    weight = numpy_helper.to_array(first).copy()
    axis = weight.shape.index(16)
    half = np.take(weight, np.arange(8), axis=axis)
    first.CopyFrom(numpy_helper.from_array(np.concatenate([half, half * np.float32(1e-4)], axis=axis), first.name))
    bias = next(t for t in model.graph.initializer if list(t.dims) == [16])
    bias.CopyFrom(numpy_helper.from_array(np.zeros(16, np.float32), bias.name))
    onnx.checker.check_model(model)
    place = tmp_path / "plan.json"
    shrink(model, x, width=0.5, refine=0, threads=1, plan_out=str(place))
    plan = json.loads(place.read_text())
    (name,) = plan["groups"]
    plan["groups"][name].update(width=8, keep=list(range(8)) if loud else list(range(8, 16)))
    place.write_text(json.dumps(plan))
    report = shrink(model, x, plan=str(place), refine=0, threads=1).report
    said = [text for text in report.warnings if "weights far beyond the original's" in text]
    assert bool(said) is not loud
    assert loud or said[0].startswith("1 of 1 re-fits have weights")
