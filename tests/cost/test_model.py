"""What a network costs at any widths, against costs counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.hand_counted import Chain, Stream
from pcns_onnx.cost.model import Costs
from pcns_onnx.dependency.dependency_graph import build_dependency_graph

streams = st.builds(Stream, st.integers(2, 30), st.lists(st.integers(0, 20), min_size=1, max_size=4).map(tuple))
chains = st.lists(st.integers(2, 30), min_size=3, max_size=6).map(lambda widths: Chain(tuple(widths)))


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
