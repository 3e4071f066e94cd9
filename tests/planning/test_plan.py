"""The plan as a file, and that what it says is what is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from builders.hand_counted import Chain
from pcns_onnx.api.shrink import shrink
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.planning.budget import Budget
from pcns_onnx.planning.plan import GroupPlan, Plan, fingerprint, load_plan


def mlp(seed: int = 0, *, bias: bool = True) -> Graph:
    """A chain with weights."""
    graph = Chain((6, 16, 12, 3), bias).graph
    rng = np.random.default_rng(seed)
    for node in graph.nodes:
        if node.op == "Gemm":
            zeros = graph.constant(node.inputs[1])
            assert zeros is not None
            graph.set_input(node.key, 1, rng.standard_normal(zeros.shape))
    return graph


def rows() -> NDArray[np.float32]:
    return np.random.default_rng(5).standard_normal((200, 6)).astype(np.float32)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("budgets", [("params=0.5",), ("macs=0.5",), ("macs=0.6", "params=0.45")])
def test_budgets_hold_for_the_model_that_is_written(bias: bool, budgets: Sequence[str]) -> None:
    report = shrink(mlp(bias=bias).proto, rows(), budget=budgets, refine=0).report
    for budget in map(Budget.parse, budgets):
        before, after = ((s.macs, s.parameters)[budget.resource == "params"] for s in (report.before, report.after))
        assert 0.5 * budget.limit < after / before <= budget.limit


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    graph = mlp()
    plan = Plan(1, fingerprint(graph), "obs", {"g0": GroupPlan(3, 16, 0.25, [1, 2, 5]), "g1": GroupPlan(12, 12, 0.0)})
    path = tmp_path / "plan.json"
    path.write_bytes(msgspec.json.encode(plan))
    assert load_plan(path, graph) == plan


def test_the_fingerprint_is_of_the_whole_model() -> None:
    assert fingerprint(mlp()) == fingerprint(mlp())
    assert fingerprint(mlp()) != fingerprint(mlp(1))
    renamed = mlp().proto
    renamed.doc_string = "another"
    assert fingerprint(Graph(renamed)) != fingerprint(mlp())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"schema": 2}, "has schema 2, this version reads 1"),
        ({"model": "0"}, "was made for another model"),
        ({"groups": []}, "is not a valid plan: Expected `object`, got `array`"),
        ({"spare": 1}, "is not a valid plan: Object contains unknown field `spare`"),
    ],
)
def test_a_file_that_is_no_plan_for_this_model(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    graph = mlp()
    content = {"schema": 1, "model": fingerprint(graph), "method": "obs", "groups": {}}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content | change))
    with pytest.raises(InputError, match=line):
        load_plan(path, graph)


def test_a_plan_edited_by_hand_is_followed(tmp_path: Path) -> None:
    plan_file = tmp_path / "plan.json"
    first = shrink(mlp().proto, rows(), width=0.5, plan_out=plan_file, refine=0)
    assert {name: entry.width for name, entry in first.plan.groups.items()} == {"g0": 8, "g1": 6}
    edited = json.loads(plan_file.read_text())
    edited["groups"]["g0"]["width"] = 5
    edited["groups"]["g1"]["keep"] = [0, 1, 2, 3, 4, 11]
    plan_file.write_text(json.dumps(edited))
    second = shrink(mlp().proto, rows(), plan=plan_file, refine=0)
    assert {name: entry.width for name, entry in second.plan.groups.items()} == {"g0": 5, "g1": 6}
    assert second.plan.groups["g1"].keep == [0, 1, 2, 3, 4, 11]
