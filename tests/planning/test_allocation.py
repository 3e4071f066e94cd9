"""The allocation against all that could be chosen, with seconds among the costs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
