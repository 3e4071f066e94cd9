"""The allocation against all that could be chosen, with seconds among the costs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from builders.hand_counted import Chain, Curves, Stream, convex_curves, curves_of, total
from builders.layer_latency import layer_times
from pcns_onnx.cost.latency_model import LatencyModel, Rest
from pcns_onnx.cost.model import Costs
from pcns_onnx.cost.resources import RESOURCES
from pcns_onnx.dependency.dependency_graph import DependencyGraph, build_dependency_graph, kept_classes
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.planning.allocation import allocate
from pcns_onnx.planning.budget import Budget
from pcns_onnx.planning.grids import grid

tiny = st.lists(st.integers(2, 5), min_size=3, max_size=5).map(lambda widths: Chain(tuple(widths)))
small = st.one_of(
    st.lists(st.integers(2, 12), min_size=3, max_size=5).map(lambda widths: Chain(tuple(widths))),
    st.builds(Stream, st.integers(2, 12), st.lists(st.integers(0, 8), min_size=1, max_size=2).map(tuple)),
)
SHARES = st.floats(0.2, 1)


def timed(graph: Graph, step: int = 1, pool: float = 3.0) -> tuple[DependencyGraph, Costs]:
    """As if kernels took whole steps of channels, each run a while, and a pool behind the first layer too."""
    dependencies = build_dependency_graph(graph)

    def seconds(read: int, written: int) -> float:
        return float(-(-read // step) * -(-written // step))

    layers = {}
    for layer in dependencies.layers:
        full = len(layer.linear.reads), len(layer.linear.writes)
        layers[layer.name] = layer_times(seconds, full)
    rest = (Rest("pool", pool, dependencies.layers[0].linear.writes),)
    latency_model = LatencyModel(layers, rest, 1.0, 0.5, {group.name: step for group in dependencies.groups})
    return dependencies, Costs(dependencies, {"params": graph.parameters}, {"params": graph.parameters}, latency_model)


def choices(dependencies: DependencyGraph) -> Iterator[dict[str, int]]:
    """All widths that could be chosen."""
    names = [group.name for group in dependencies.shrinkable]
    for widths in itertools.product(*(range(1, group.width + 1) for group in dependencies.shrinkable)):
        yield dict(zip(names, widths, strict=True))


def spent(
    dependencies: DependencyGraph, costs: Costs, widths: Mapping[str, int]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    full = {group.name: group.width for group in dependencies.shrinkable}
    shares = costs({name: width / full[name] for name, width in widths.items()}) / costs.total
    return np.asarray(shares, dtype=np.float64)


def chosen(dependencies: DependencyGraph, costs: Costs, curves: Curves, budgets: list[Budget]) -> dict[str, int]:
    grids = {group.name: grid(group, "Gemm", "1") for group in dependencies.shrinkable}
    return allocate(dependencies.shrinkable, curves, grids, costs, budgets)


@settings(max_examples=8, deadline=None)
@given(tiny, st.integers(0, 999), SHARES, SHARES, SHARES, st.integers(1, 3))
def test_it_holds_all_budgets_whenever_some_widths_do_and_is_near_the_best(
    chain: Chain, seed: int, macs: float, params: float, latency: float, step: int
) -> None:
    dependencies, costs = timed(chain.graph, step)
    curves = convex_curves(chain, seed)
    limits = np.array([macs, params, 1.0, latency])
    budgets = [Budget(resource, limit) for resource, limit in zip(RESOURCES, limits, strict=True)]
    allowed = [w for w in choices(dependencies) if (spent(dependencies, costs, w) <= limits * (1 + 1e-9)).all()]
    try:
        widths = chosen(dependencies, costs, curves, budgets)
    except InputError as error:
        narrowest = next(choices(dependencies))
        assert str(error).startswith("budget macs=") and "latency=" in str(error)
        assert (spent(dependencies, costs, narrowest) > limits).any()
        return
    assert widths in allowed
    best, found = min(total(curves, w) for w in allowed), total(curves, widths)
    worst = max(total(curves, w) for w in allowed)
    assert best <= found <= best + 0.35 * (worst - best) + 1e-12


def test_it_is_the_best_of_all_on_most_tiny_models() -> None:
    exact, lost = 0, []
    for seed in range(8):
        draw = np.random.default_rng(seed)
        chain = Chain(tuple(int(n) for n in draw.integers(2, 6, size=draw.integers(4, 6))))
        dependencies, costs = timed(chain.graph)
        curves, limit = convex_curves(chain, seed), float(draw.uniform(0.3, 0.9))
        allowed = [w for w in choices(dependencies) if (spent(dependencies, costs, w)[[0, 2]] <= limit).all()]
        if not allowed:
            continue
        widths = chosen(dependencies, costs, curves, [Budget("macs", limit), Budget("latency", limit)])
        best, even = (min(total(curves, w) for w in which) for which in (allowed, [allowed[0]]))
        gap = (total(curves, widths) - best) / max(even - best, 1e-12)
        exact += gap < 1e-9
        lost.append(gap)
    assert len(lost) > 5
    assert exact > 0.7 * len(lost) and np.mean(lost) < 0.02


@settings(max_examples=10, deadline=None)
@given(small, st.integers(0, 999), st.floats(0.1, 1), st.integers(1, 4))
def test_never_worse_than_the_same_share_of_every_layer(
    model: Chain | Stream, seed: int, share: float, step: int
) -> None:
    dependencies, costs = timed(model.graph, step)
    full = {group.name: group.width for group in dependencies.shrinkable}
    curves = curves_of(full, seed)
    even = {name: max(1, int(share * width)) for name, width in full.items()}
    limits = spent(dependencies, costs, even)
    budgets = [Budget(resource, float(limit)) for resource, limit in zip(RESOURCES, limits, strict=True)]
    widths = chosen(dependencies, costs, curves, budgets)
    assert (spent(dependencies, costs, widths) <= limits * (1 + 1e-9)).all()
    assert total(curves, widths) <= total(curves, even) + 1e-12


def test_a_latency_budget_leaves_alone_what_would_save_no_time() -> None:
    """Kernels take blocks of 16: at 20 of 32 channels a layer takes as long as at 32."""
    dependencies, costs = timed(Chain((16, 32, 32, 16)).graph, 16, pool=0.0)
    curves = {name: np.linspace(0.1, 0, 33) for name in ("g0", "g1")}
    for limit in (0.9, 0.75):
        widths = chosen(dependencies, costs, curves, [Budget("latency", limit)])
        assert set(widths.values()) <= {16, 32} and min(widths.values()) == 16
        assert spent(dependencies, costs, widths)[-1] <= limit


def test_the_tightest_of_several_budgets_decides() -> None:
    chain = Chain((10, 12, 12, 5))
    dependencies, costs = timed(chain.graph)
    curves = convex_curves(chain, 3)
    tight = chosen(dependencies, costs, curves, [Budget("latency", 0.4)])
    loose = [Budget("macs", 1.0), Budget("params", 1.0), Budget("latency", 0.9), Budget("latency", 0.4)]
    assert chosen(dependencies, costs, curves, loose) == tight


def test_what_takes_too_long_is_refused_with_what_can_be_reached() -> None:
    chain = Chain((10, 10, 10, 10))
    dependencies, costs = timed(chain.graph)
    least = spent(dependencies, costs, {"g0": 1, "g1": 1})
    told = ", ".join(f"{resource}={share:.3f}" for resource, share in zip(RESOURCES, least, strict=True))
    with pytest.raises(InputError, match=rf"^budget latency=0.01 is out of reach: .* has {told}$"):
        chosen(dependencies, costs, convex_curves(chain, 0), [Budget("latency", 0.01)])


# -- costs in seconds ------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(small, st.integers(1, 4), st.data())
def test_seconds_along_a_group_are_the_seconds(model: Chain | Stream, step: int, data: st.DataObject) -> None:
    dependencies, costs = timed(model.graph, step)
    at = {g.name: data.draw(st.integers(1, g.width)) / g.width for g in dependencies.shrinkable}
    for group in dependencies.shrinkable:
        shares = np.arange(1, group.width + 1) / group.width
        expected = np.array([costs({**at, group.name: float(share)}) for share in shares])
        assert costs.along(group.name, at, shares) == pytest.approx(expected)


@settings(max_examples=15, deadline=None)
@given(tiny, st.data())
def test_seconds_are_those_added_up_by_hand(chain: Chain, data: st.DataObject) -> None:
    dependencies, costs = timed(chain.graph)
    hidden = {g.name: data.draw(st.integers(1, g.width)) for g in dependencies.shrinkable}
    widths = [chain.widths[0], *(hidden.get(f"g{i}", n) for i, n in enumerate(chain.widths[1:-1])), chain.widths[-1]]
    layers = sum(n * k - 0.5 for n, k in itertools.pairwise(widths))  # what starting takes is counted as fixed
    expected = 1.0 + layers + 3.0 * widths[1] / chain.widths[1]
    assert costs(chain.fractions(hidden))[-1] == pytest.approx(expected)
    assert costs.resources == tuple(RESOURCES)


@settings(max_examples=20, deadline=None)
@given(small, st.data())
def test_costs_by_classes_are_those_by_widths(model: Chain | Stream, data: st.DataObject) -> None:
    dependencies, costs = timed(model.graph)
    keep = {
        g.name: g.labels[sorted(data.draw(st.sets(st.integers(0, g.width - 1), min_size=1)))]
        for g in dependencies.shrinkable
    }
    shares = {g.name: len(keep[g.name]) / g.width for g in dependencies.shrinkable}
    assert costs.of_classes(kept_classes(dependencies, keep)) == pytest.approx(costs(shares))


# -- multiply-adds and parameters ------------------------------------------------------------


def straight(width: int, slope: float, free: int = 0) -> NDArray[np.float64]:
    """An error of `slope` for every channel below the last `free` ones, which cost nothing."""
    return np.array([slope * max(width - free - kept, 0) for kept in range(width + 1)])


streams = st.builds(Stream, st.integers(2, 30), st.lists(st.integers(0, 20), min_size=1, max_size=4).map(tuple))
chains = st.lists(st.integers(2, 30), min_size=3, max_size=6).map(lambda widths: Chain(tuple(widths)))


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
def test_never_worse_in_costs_than_the_same_share_of_every_layer(chain: Chain, seed: int, share: float) -> None:
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
    with pytest.raises(
        InputError, match=r"^budget macs=0.05 is out of reach: .* macs=0.070, params=0.\d+, size=0.\d+$"
    ):
        chain.allocate(convex_curves(chain, 0), "macs=0.05")


def test_wide_layers_use_the_budget_up() -> None:
    chain = Chain((100, 800, 800, 800, 10))
    curves = convex_curves(chain, 0)
    widths = chain.allocate(curves, "macs=0.3", "params=0.3")
    assert 0.29 < chain.macs(widths) / chain.macs({}) <= 0.3
