"""Whatever a model puts out, it is planned, shrunk, judged and compared by what can be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from builders.outputs import FOUND, OTHERS, WIDE
from pcns_onnx import compare, inspect, plan, shrink
from pcns_onnx.dependency.data_dependence import DataDependence
from pcns_onnx.graph import Graph

MODELS = FOUND | OTHERS
X = np.random.default_rng(0).standard_normal((120, 5)).astype(np.float32)
QUICK: dict[str, Any] = {"multiple": "1", "threads": 1, "batch": 16}
FRONTS = {
    "boxes": ("boxes", "scores"), "non-zero": ("s",), "compress": ("s",), "unique": ("f",), "range": ("s",),
    "slice": ("s",), "second stage": ("s", "rr", "m0"), "loop until": ("s",),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_command_takes_it(name: str) -> None:
    model = MODELS[name]()
    assert inspect(model, X, threads=1).layers
    planned = plan(model, X, budget="macs=0.7", **QUICK)
    assert planned.plan is not None and planned.plan.groups
    goals: list[dict[str, Any]] = [{"width": 0.75, "refine": 20}, {"budget": "macs=0.7", "refine": 0}]
    for goal in (*goals, {"budget": "error=0.3", "refine": 0}):
        result = shrink(model, X, **goal, **QUICK)
        assert any(entry.width < entry.of for entry in result.plan.groups.values())
        assert not math.isnan(result.report.agreement.error)
        again = compare(model, result.model, X, threads=1, max_error=1e3)
        assert [gate.passed for gate in again.gates] == [True]


@pytest.mark.parametrize("name", MODELS)
def test_copies_go_without_loss(name: str) -> None:
    """Probing, trying and refining see what the outputs need: at half of every width nothing is lost."""
    result = shrink(MODELS[name](), X, width=0.5, refine=0, **QUICK)
    assert result.report.agreement.error < 1e-3
    assert all(entry.width == WIDE // 2 for entry in result.plan.groups.values())


@pytest.mark.parametrize("name", FOUND)
def test_what_stands_in_front_is_what_is_judged(name: str) -> None:
    dependence = DataDependence(Graph.load(FOUND[name]()))
    counted = [output for output in dependence.judged if output in dependence.counted]
    assert counted
    for output in counted:
        assert set(dependence.judged[output]) <= set(FRONTS[name]) and dependence.judged[output]


@pytest.mark.parametrize("name", FOUND)
def test_the_report_counts_where_there_is_no_error_to_tell(name: str) -> None:
    result = shrink(FOUND[name](), X, width=0.3, refine=0, **QUICK)
    agreement = result.report.agreement
    for output in agreement.outputs:
        if output.counts is not None:
            assert output.relative_error is None and 0 <= output.counts.same < 1
            assert output.counts.a > 0
            fronts = [other for other in agreement.outputs if other.stands_for is not None or other.counts is None]
            assert fronts and any(f"'{output.name}' holds what is found" in text for text in result.report.warnings)
    assert agreement.error == max(o.relative_error or 0.0 for o in agreement.outputs if o.counts is None)


def test_layers_behind_what_is_found_stay_with_the_reason() -> None:
    reasons = {layer.name: layer.reason for layer in inspect(FOUND["second stage"](), X, threads=1).layers}
    assert reasons["h1"] == "the size of 'h1' depends on the values that layers compute"
    assert reasons["a"] == "the size of 'rows' depends on the values that layers compute"
    assert reasons["b"] is None


def test_a_loop_of_so_many_rounds_is_no_search() -> None:
    dependence = DataDependence(Graph.load(OTHERS["loop of three"]()))
    assert not dependence.counted and dependence.judged == {"late": ("late",)}


def test_maps_and_sequences_are_compared_element_by_element() -> None:
    for name in ("maps and names", "sequence"):
        model = OTHERS[name]()
        shrunk = shrink(model, X, width=0.3, refine=0, **QUICK)
        errors = {output.name: output.relative_error or 0.0 for output in shrunk.report.agreement.outputs}
        assert min(errors.values()) > 1e-3 and max(errors.values()) < 1.5


@pytest.mark.parametrize("kind", ["int8", "fp16"])
@pytest.mark.parametrize("name", ["boxes", "compress", "sequence", "maps and names", "early"])
def test_lowered_models_are_judged_by_the_same(name: str, kind: str) -> None:
    """Nodes have the names of their outputs here, as PyTorch's exporters write them: no cast may take one."""
    wanted: dict[str, Any] = {kind: True, "width": 0.75, "refine": 0}
    result = shrink(MODELS[name](), X, **wanted, **QUICK)
    (precision,) = result.report.precisions
    assert precision.kind == kind and precision.agreement.error < 0.7
