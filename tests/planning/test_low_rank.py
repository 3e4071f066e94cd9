"""Layers whose outputs cannot get fewer, put as two of lower rank."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.chains import node, random
from builders.commands import Ran
from builders.mlp import mlp, rows, saved
from builders.models import Array, build, relative
from builders.models import run as outputs
from builders.topologies import TOPOLOGIES
from pcns_onnx import InputError, shrink
from pcns_onnx.api.plan import plan
from pcns_onnx.dependency.dependency_graph import build_dependency_graph
from pcns_onnx.graph import Graph
from pcns_onnx.planning import low_rank as ranks
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.rewrite.low_rank import ENDING, Factor
from pcns_onnx.rewrite.patch import apply

WIDTH, RANK = 512, 24


def planted(op: str, rank: int = RANK) -> onnx.ModelProto:
    """x + V x with V of low rank: a stream that must keep its width, as it is the output of the model."""
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((WIDTH, rank)) / WIDTH**0.5, rng.standard_normal((rank, WIDTH)) / rank**0.5
    weight, bias = (a @ b).astype(np.float32), (0.1 * rng.standard_normal(WIDTH)).astype(np.float32)
    shape: list[Any] = ["N", WIDTH]
    if op == "Conv":
        weight, shape = np.ascontiguousarray(weight.T)[:, :, None, None], [*shape, 4, 4]
    stored = {"w": weight, "b": bias}
    nodes = [helper.make_node(op, ["x", "w", "b"], ["v"], name="branch"), helper.make_node("Add", ["x", "v"], ["y"])]
    if op == "MatMul":
        nodes[:1] = [helper.make_node("MatMul", ["x", "w"], ["m"], name="branch"),
                     helper.make_node("Add", ["m", "b"], ["v"])]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "planted",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def samples(op: str, count: int = 800) -> Array:
    rng = np.random.default_rng(4)
    shape = (count // 8, WIDTH, 4, 4) if op == "Conv" else (count, WIDTH)
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("op", ["Gemm", "MatMul", "Conv"])
def test_planted_low_rank_is_found_and_exact(op: str) -> None:
    model, x = planted(op), samples(op)
    result = shrink(model, x, budget="macs=0.2", low_rank=True, multiple=8, threads=1, batch=64, refine=0)
    assert relative(outputs(model, x[:32]), outputs(result.model, x[:32])) < 1e-4
    assert result.report.after.macs <= 0.2 * result.report.before.macs
    assert [(g.name, g.width) for g in result.report.groups] == [("branch" + ENDING, WIDTH)]
    onnx.checker.check_model(result.model, full_check=True)
    ops = [node.op_type for node in result.model.graph.node]
    assert ops.count(op) == 2 and len(ops) == len(model.graph.node) + 1


def residual(rank: int, op: str = "Gemm") -> onnx.ModelProto:
    """x + D relu(U x): 640 hidden neurons, and D of low rank."""
    rng, hidden = np.random.default_rng(5), 640
    down = rng.standard_normal((hidden, rank)) @ rng.standard_normal((rank, WIDTH)) / (hidden * rank) ** 0.5
    up = rng.standard_normal((WIDTH, hidden)) * np.geomspace(1, 0.02, hidden) / WIDTH**0.5
    stored = {"u": up, "d": down, "bu": 0.1 * rng.standard_normal(hidden), "bd": 0.1 * rng.standard_normal(WIDTH)}
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "u", "bu"], ["h"], name="up"),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "d", "bd"], ["v"], name="down"),
            helper.make_node("Add", ["x", "v"], ["y"]),
        ],
        "residual",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", WIDTH])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


CHOICES: dict[str, Any] = {"budget": "macs=0.3", "multiple": 8, "threads": 1, "refine": 20}


def test_rank_and_width_are_chosen_together_and_the_plan_replays(tmp_path: Path) -> None:
    model, x, path = residual(RANK), samples("Gemm"), tmp_path / "plan.json"
    result = shrink(model, x, low_rank=True, plan_out=path, **CHOICES)
    narrowed = {g.name: g.kept for g in result.report.groups}
    assert narrowed.keys() == {"up", "down" + ENDING} and narrowed["down" + ENDING] >= RANK
    without = shrink(model, x, **CHOICES)
    assert result.report.agreement.error < without.report.agreement.error
    again = shrink(model, x, plan=path, multiple=8, threads=1, refine=20)
    assert again.model.graph == result.model.graph and again.report.after == result.report.after


def test_what_keeps_its_rank_is_one_layer_as_if_never_asked() -> None:
    model, x = residual(WIDTH), samples("Gemm")
    choices = CHOICES | {"budget": "macs=0.9"}
    asked, plain = shrink(model, x, low_rank=True, **choices), shrink(model, x, **choices)
    assert asked.model.graph == plain.model.graph and asked.plan.groups.keys() == plain.plan.groups.keys()
    assert any(left.name == "down" + ENDING and "would cost as much" in left.reason for left in asked.report.left_alone)


def test_an_excluded_layer_is_not_put_as_two() -> None:
    result = shrink(residual(RANK), samples("Gemm"), low_rank=True, exclude=["down"], **CHOICES)
    assert [g.name for g in result.report.groups] == ["up"]


@pytest.mark.parametrize(
    ("choices", "line"),
    [
        ({"width": 0.5}, "--low-rank is a choice that a budget makes: give --budget and not --width"),
        ({"budget": "macs=0.5", "method": "pcns"}, "--low-rank is for methods obs and interpolative, not 'pcns'"),
    ],
)
def test_where_it_makes_no_sense_it_is_refused(choices: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=f"^{line}"):
        shrink(planted("Gemm"), samples("Gemm"), low_rank=True, **choices)


def test_where_no_layer_is_bound_to_its_width_that_is_said() -> None:
    report = shrink(mlp(), rows(), budget="macs=0.5", low_rank=True, refine=0, threads=1).report
    assert ("low rank", "no layer with 16 outputs or more has to keep them all") in [
        (left.name, left.reason) for left in report.left_alone
    ]


def test_stored_halves_stay_halves() -> None:
    model = planted("MatMul")
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    x = samples("MatMul").astype(np.float16)
    result = shrink(model, x, budget="macs=0.2", low_rank=True, multiple=8, threads=1, refine=0)
    assert {t.data_type for t in result.model.graph.initializer} == {TensorProto.FLOAT16}
    assert result.report.agreement.error < 2e-2


def test_plan_writes_ranks_that_shrink_replays(tmp_path: Path) -> None:
    made = plan(residual(RANK), samples("Gemm"), tmp_path / "p.json", budget="macs=0.3", low_rank=True, threads=1)
    assert made.plan is not None and made.plan.groups["down" + ENDING].width < WIDTH
    result = shrink(residual(RANK), samples("Gemm"), plan=tmp_path / "p.json", refine=0, threads=1)
    assert {g.name for g in result.report.groups} == {"up", "down" + ENDING}
    assert result.report.after.macs <= 0.3 * result.report.before.macs


def test_from_the_command_line(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, _ = saved(tmp_path, residual(RANK))
    np.savez(tmp_path / "d.npz", x=samples("Gemm"))
    done = run("shrink", model, "--data", "d.npz", "--budget", "macs=0.3", "--low-rank", "--refine", 0, "--threads", 1,
               "-o", "o.onnx", "--report", "r.json")  # fmt: skip
    assert done.code == 0 and "down" + ENDING in done.out
    report = json.loads((tmp_path / "r.json").read_text())
    assert any(group["name"] == "down" + ENDING for group in report["groups"])


@pytest.mark.parametrize("name", ["nested sums", "choice", "parted sum", "max of three", "shuffle"])
def test_any_graph_is_whole_again_at_any_rank(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "LEAST", 2)
    monkeypatch.setattr(ranks, "GAIN", -1e9)  # layers of a few channels, whatever their timings say
    model = TOPOLOGIES[name]()
    shape = [size.dim_value or 24 for size in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).standard_normal((24, *shape[1:])).astype(np.float32)
    result = shrink(model, x, budget="macs=0.6", low_rank=True, multiple=1, threads=1, refine=5, batch=8)
    assert any(group.name.endswith(ENDING) for group in result.report.groups)
    assert result.report.after.macs <= 0.6 * result.report.before.macs
    onnx.checker.check_model(result.model, full_check=True)


@pytest.mark.parametrize("op", ["Gemm", "MatMul", "Conv"])
def test_the_first_of_two_goes_by_the_layer_s_name_where_nodes_have_none(op: str) -> None:
    taps = (1, 1) if op == "Conv" else ()
    weights = {"w": random(*((8, 6) if op == "Conv" else (6, 8)), *taps), "v": random(8, 8, *taps)}
    nodes = [node(op, "x w", "h"), node("Relu", "h", "r"), node(op, "r v", "y")]
    graph = Canonical.of(Graph.load(build(nodes, weights, ["N", 6, *((4, 4) if taps else ())]))).twin
    dependencies = build_dependency_graph(graph)
    (last,) = [layer for layer in dependencies.layers if layer.output == "y"]
    apart = apply(graph, (Factor(last.key, last.name),))
    names = [layer.name for layer in build_dependency_graph(apart).layers]
    assert names[-2:] == [f"{last.name}{ENDING}", last.name]
