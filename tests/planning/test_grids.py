"""Widths that may be chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.chains import node
from builders.models import build
from pcns_onnx import shrink
from pcns_onnx.dependency.groups import Group
from pcns_onnx.planning.grids import GridRules, grid, snap
from pcns_onnx.runtime.targets.registry import ONNXRUNTIME, TARGETS, TargetRuntime


@pytest.mark.parametrize(
    ("width", "kind", "multiple", "expected"),
    [
        (5, "Gemm", "auto", [1, 2, 3, 4, 5]),
        (4, "MatMul", "auto", [1, 2, 3, 4]),
        (12, "Conv", "auto", [4, 8, 12]),
        (14, "Conv", "auto", [4, 8, 12, 14]),
        (40, "Conv", "auto", [8, 16, 24, 32, 40]),
        (40, "ConvTranspose", "auto", [8, 16, 24, 32, 40]),
        (20, "Gemm", "8", [8, 16, 20]),
        (4, "Conv", "1", [1, 2, 3, 4]),
        (6, "Gemm", "8", [6]),
    ],
)
def test_widths_on_the_grid(width: int, kind: str, multiple: str, expected: list[int]) -> None:
    group = Group("g", np.arange(width), ("g",), ("r",), "a", (), None)
    assert grid(group, kind, multiple).tolist() == expected


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("kind", ["Conv", "Gemm"])
@pytest.mark.parametrize("width", [12, 40, 128])
def test_auto_is_what_the_target_likes(target: TargetRuntime, kind: str, width: int) -> None:
    group = Group("g", np.arange(width), ("g",), ("r",), "a", (), None)
    rules = GridRules.of("auto", drops=False, target="cpu" if target is ONNXRUNTIME else target.name)
    step = target.multiples.at(kind, width)
    assert rules.widths(group, kind).tolist() == sorted({*range(step, width, step), width})
    assert rules.widths(group, kind, step=2).tolist() == sorted({*range(2, width, 2), width})  # what was timed wins
    asked = replace(rules, multiple="5")
    assert asked.widths(group, kind).tolist() == sorted({*range(5, width, 5), width})


@given(st.integers(1, 200), st.integers(1, 32), st.sampled_from(["Gemm", "Conv"]))
def test_a_grid_is_multiples_and_the_width_itself(width: int, step: int, kind: str) -> None:
    widths = grid(Group("g", np.arange(width), ("g",), ("r",), "a", (), None), kind, str(step)).tolist()
    assert widths == sorted(set(widths))
    assert widths[-1] == width
    assert widths[:-1] == list(range(step, width, step))


@pytest.mark.parametrize(("wanted", "got"), [(0.1, 4), (5.9, 4), (6, 4), (6.1, 8), (12, 12), (13, 12), (99, 14)])
def test_snapping_takes_the_nearest_and_the_smaller_of_two(wanted: float, got: int) -> None:
    assert snap(wanted, np.array([4, 8, 12, 14])) == got


@pytest.mark.parametrize(("multiple", "least", "most"), [("auto", 0.74, 0.8), ("4", 0.0, 0.6)])
def test_a_narrow_layer_is_not_cut_far_below_the_budget(multiple: str, least: float, most: float) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in
               {"w0": (8, 3, 3, 3), "w1": (4, 8, 3, 3)}.items()}  # fmt: skip
    nodes = [node("Conv", "x w0", "h"), node("Relu", "h", "a"), node("Conv", "a w1", "y")]
    model = build(nodes, weights, ("N", 3, 8, 8))
    x = rng.standard_normal((120, 3, 8, 8)).astype(np.float32)
    report = shrink(model, x, budget="macs=0.8", multiple=multiple, refine=0, threads=1).report
    assert least <= report.after.macs / report.before.macs <= most


def test_finer_steps_are_halves_and_a_multiple_that_is_asked_for_stays() -> None:
    group = Group("g", np.arange(32), ("g",), ("r",), "a", (), None)
    assert grid(group, "Conv", "auto", finer=2).tolist() == list(range(4, 33, 4))
    assert grid(group, "Conv", "auto", finer=16).tolist() == list(range(1, 33))
    assert grid(group, "Conv", "8", finer=16).tolist() == [8, 16, 24, 32]
