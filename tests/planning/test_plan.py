"""Budgets, grids, the allocation of widths, and the plan as a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from builders.hand_counted import Chain, Stream, convex_curves, curves_of, total
from pcns_onnx.api.shrink import shrink
from pcns_onnx.cost.model import Costs
from pcns_onnx.dependency.dependency_graph import build_dependency_graph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.planning.allocation import allocate
from pcns_onnx.planning.budget import Budget
from pcns_onnx.planning.grids import grid, snap
from pcns_onnx.planning.plan import GroupPlan, Plan, fingerprint, load_plan


def straight(width: int, slope: float, free: int = 0) -> NDArray[np.float64]:
    """An error of `slope` for every channel below the last `free` ones, which cost nothing."""
    return np.array([slope * max(width - free - kept, 0) for kept in range(width + 1)])


streams = st.builds(Stream, st.integers(2, 30), st.lists(st.integers(0, 20), min_size=1, max_size=4).map(tuple))
chains = st.lists(st.integers(2, 30), min_size=3, max_size=6).map(lambda widths: Chain(tuple(widths)))


# -- budgets ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "resource", "fraction"),
    [
        ("macs=0.5", "macs", 0.5),
        ("params=1", "params", 1.0),
        ("macs=.25", "macs", 0.25),
        ("params=1e-3", "params", 1e-3),
    ],
)
def test_a_budget_is_a_resource_and_a_fraction(text: str, resource: str, fraction: float) -> None:
    assert Budget.parse(text) == Budget(resource, fraction)


@given(st.floats(0, 1, exclude_min=True))
def test_every_fraction_is_a_budget(fraction: float) -> None:
    assert Budget.parse(f"macs={fraction!r}").limit == fraction


@pytest.mark.parametrize(
    "text",
    ["", "macs", "macs=", "macs=abc", "macs=0.5x", "macs=50%", "=0.5", "foo=0.5", "MACS=0.5", "macs=0.5,params=0.5"],
)
def test_text_that_is_no_budget(text: str) -> None:
    line = rf"^budget '{text}' is not understood: write macs=0\.5, params=0\.4, size=0\.5 or latency=0\.6"
    with pytest.raises(InputError, match=line):
        Budget.parse(text)


@given(st.floats().filter(lambda number: not 0 < number <= 1))
def test_numbers_that_are_no_fraction(number: float) -> None:
    with pytest.raises(InputError, match=r"fractions in \(0, 1\], error="):
        Budget.parse(f"macs={number!r}")


# -- grids -----------------------------------------------------------------------------------


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


@given(st.integers(1, 200), st.integers(1, 32), st.sampled_from(["Gemm", "Conv"]))
def test_a_grid_is_multiples_and_the_width_itself(width: int, step: int, kind: str) -> None:
    widths = grid(Group("g", np.arange(width), ("g",), ("r",), "a", (), None), kind, str(step)).tolist()
    assert widths == sorted(set(widths))
    assert widths[-1] == width
    assert widths[:-1] == list(range(step, width, step))


@pytest.mark.parametrize(("wanted", "got"), [(0.1, 4), (5.9, 4), (6, 4), (6.1, 8), (12, 12), (13, 12), (99, 14)])
def test_snapping_takes_the_nearest_and_the_smaller_of_two(wanted: float, got: int) -> None:
    assert snap(wanted, np.array([4, 8, 12, 14])) == got


# -- costs -----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(chains, st.data())
def test_costs_are_those_counted_by_hand(chain: Chain, data: st.DataObject) -> None:
    hidden = {g.name: data.draw(st.integers(1, g.width)) for g in chain.groups}
    found = chain.costs(chain.fractions(hidden))
    assert found[:2] == pytest.approx([chain.macs(hidden), chain.parameters(hidden)])
    assert chain.costs.total[:2] == pytest.approx([chain.macs({}), chain.parameters({})])


@settings(max_examples=30, deadline=None)
@given(st.one_of(chains, streams), st.data())
def test_costs_along_a_group_are_the_costs(model: Chain | Stream, data: st.DataObject) -> None:
    graph = model.graph
    dependencies = build_dependency_graph(graph)
    costs = Costs(dependencies, {"params": graph.parameters}, {"params": graph.parameters})
    at = {g.name: data.draw(st.integers(1, g.width)) / g.width for g in dependencies.shrinkable}
    shares = np.array([0.25, 0.5, 1.0])
    for name in at:
        expected = [costs({**at, name: float(share)}) for share in shares]
        assert costs.along(name, at, shares) == pytest.approx(np.array(expected))


@settings(max_examples=30, deadline=None)
@given(streams, st.data())
def test_costs_of_a_shared_stream_are_those_counted_by_hand(stream: Stream, data: st.DataObject) -> None:
    graph = stream.graph
    dependencies = build_dependency_graph(graph)
    assert {g.name: g.width for g in dependencies.shrinkable} == stream.full
    costs = Costs(dependencies, {"params": graph.parameters}, {"params": graph.parameters})
    widths = {name: data.draw(st.integers(1, width)) for name, width in stream.full.items()}
    found = costs({name: width / stream.full[name] for name, width in widths.items()})[:2]
    assert found[:2] == pytest.approx([stream.macs(widths), stream.parameters(widths)])
    assert costs.total[:2] == pytest.approx([stream.macs({}), stream.parameters({})])


def test_a_bias_that_the_solve_may_add_is_counted() -> None:
    bare = Chain((4, 6, 3), bias=False)
    assert bare.costs({"g0": 0.5})[:2].tolist() == [4 * 3 + 3 * 3, 4 * 3 + 3 + 3 * 3 + 3]
    assert bare.costs.total[:2].tolist() == [4 * 6 + 6 * 3, 4 * 6 + 6 * 3]


# -- allocation ------------------------------------------------------------------------------


def test_a_budget_that_asks_for_nothing_takes_nothing() -> None:
    chain = Chain((5, 8, 8, 3))
    assert chain.allocate(convex_curves(chain, 0), "macs=1") == {"g0": 8, "g1": 8}


def test_the_group_whose_channels_are_worth_less_gives_them() -> None:
    chain = Chain((10, 10, 10, 10))
    # g0 and g1 cost the same; half of g1 is redundant, and without it 200 of 300 MACs are left.
    curves = {"g0": straight(10, 0.1), "g1": straight(10, 0.1, free=5)}
    widths = chain.allocate(curves, f"macs={200 / 300!r}")
    assert widths == {"g0": 10, "g1": 5}
    assert total(curves, widths) == 0


def test_the_dearer_channels_go_where_the_error_is_the_same() -> None:
    chain = Chain((100, 10, 10, 10))  # a channel of g0 costs 110 MACs, one of g1 only 20
    curves = {"g0": straight(10, 0.1), "g1": straight(10, 0.1)}
    widths = chain.allocate(curves, "macs=0.92")
    assert widths == {"g0": 9, "g1": 10}


def test_slack_is_spent_on_the_best_error_per_cost() -> None:
    chain = Chain((10, 10, 10, 10))
    # The first channel of g0 is dear and the next five are not, so the best step overshoots: from 10 to 4.
    plateau = np.array([9, 8, 7, 6, 0.2, 0.18, 0.16, 0.14, 0.12, 0.1, 0])
    curves = {"g0": plateau, "g1": straight(10, 1.0)}
    assert chain.allocate(curves, "macs=0.9") == {"g0": 8, "g1": 10}


@settings(max_examples=15, deadline=None)
@given(chains, st.integers(0, 999), st.floats(0.05, 1), st.floats(0.05, 1), st.sampled_from(["1", "3", "4"]))
def test_all_budgets_hold_or_are_refused(chain: Chain, seed: int, macs: float, params: float, multiple: str) -> None:
    grids = {g.name: grid(g, "Gemm", multiple) for g in chain.groups}
    narrowest = {name: int(widths[0]) for name, widths in grids.items()}
    try:
        widths = chain.allocate(convex_curves(chain, seed), f"macs={macs}", f"params={params}", multiple=multiple)
    except InputError:
        too_much = chain.macs(narrowest) > macs * chain.macs({})
        assert too_much or chain.parameters(narrowest) > params * chain.parameters({})
        return
    assert all(width in grids[name] for name, width in widths.items())
    assert chain.macs(widths) <= macs * chain.macs({}) * (1 + 1e-9)
    assert chain.parameters(widths) <= params * chain.parameters({}) * (1 + 1e-9)


@settings(max_examples=15, deadline=None)
@example(Stream(2, (0,)), 0, 0.96875, 1.0)
@given(streams, st.integers(0, 999), st.floats(0.05, 1), st.floats(0.05, 1))
def test_all_budgets_hold_where_layers_read_what_they_write(
    stream: Stream, seed: int, macs: float, params: float
) -> None:
    graph = stream.graph
    dependencies = build_dependency_graph(graph)
    grids = {g.name: grid(g, "Gemm", "1") for g in dependencies.shrinkable}
    budgets = [Budget("macs", macs), Budget("params", params)]
    costs = Costs(dependencies, {"params": graph.parameters}, {"params": graph.parameters})
    narrowest = dict.fromkeys(stream.full, 1)
    try:
        widths = allocate(dependencies.shrinkable, curves_of(stream.full, seed), grids, costs, budgets)
    except InputError:
        too_much = stream.macs(narrowest) > macs * stream.macs({})
        assert too_much or stream.parameters(narrowest) > params * stream.parameters({})
        return
    assert stream.macs(widths) <= macs * stream.macs({}) * (1 + 1e-9)
    assert stream.parameters(widths) <= params * stream.parameters({}) * (1 + 1e-9)


@settings(max_examples=15, deadline=None)
@given(chains, st.integers(0, 999), st.floats(0.1, 1))
def test_never_worse_than_the_same_share_of_every_layer(chain: Chain, seed: int, share: float) -> None:
    curves, even = convex_curves(chain, seed), chain.evenly(share)
    widths = chain.allocate(curves, f"macs={chain.macs(even) / chain.macs({})!r}")
    assert total(curves, widths) <= total(curves, even) + 1e-12


def test_usually_much_better_than_the_same_share_of_every_layer() -> None:
    ratios = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        chain = Chain(tuple(int(n) for n in rng.integers(4, 40, size=rng.integers(3, 6))))
        curves, even = convex_curves(chain, seed), chain.evenly(rng.uniform(0.2, 0.9))
        widths = chain.allocate(curves, f"macs={chain.macs(even) / chain.macs({})!r}")
        ratios.append(total(curves, widths) / total(curves, even))
    assert np.median(ratios) < 0.85


@pytest.mark.parametrize("seed", range(5))
def test_more_budget_never_costs_accuracy(seed: int) -> None:
    chain = Chain((20, 30, 25, 12, 10))
    curves = convex_curves(chain, seed)
    errors = [total(curves, chain.allocate(curves, f"macs={share}")) for share in np.linspace(0.2, 1, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1] == 0


def test_a_second_budget_on_the_same_resource_tightens_the_first() -> None:
    chain = Chain((10, 12, 12, 5))
    curves = convex_curves(chain, 3)
    assert chain.allocate(curves, "macs=0.8", "macs=0.4") == chain.allocate(curves, "macs=0.4")


def test_what_cannot_be_reached_is_refused_with_what_can() -> None:
    chain = Chain((10, 10, 10, 10))
    with pytest.raises(InputError, match=r"^budget macs=0.05 is out of reach: .* macs=0.070, params=0.\d+$"):
        chain.allocate(convex_curves(chain, 0), "macs=0.05")


def test_wide_layers_use_the_budget_up() -> None:
    chain = Chain((100, 800, 800, 800, 10))
    curves = convex_curves(chain, 0)
    widths = chain.allocate(curves, "macs=0.3", "params=0.3")
    assert 0.29 < chain.macs(widths) / chain.macs({}) <= 0.3


# -- the plan as a file ----------------------------------------------------------------------


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
