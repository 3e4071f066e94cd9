"""Channels that several layers share: what makes a group, that it goes without a trace, what it costs, what it corrects."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from conftest import relative, run
from contract import surveyed
from test_ops import permuted, sample
from topologies import TOPOLOGIES

from pcns_onnx import shrink


def planted(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every other class of each group a copy of the one before it."""
    graph, census = surveyed(model)
    copies = {int(b): int(a) for g in census.shrinkable for a, b in zip(g.labels[::2], g.labels[1::2], strict=True)}
    twin = permuted(graph, census, copies, reads=False)
    x = sample(model)
    assert relative(run(graph.proto, x), run(twin.proto, x)) > 1e-3
    return twin.proto


def samples(model: onnx.ModelProto, seed: int, count: int = 200) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *sample(model).shape[1:])).astype(np.float32)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_copies_go_without_a_trace(name: str) -> None:
    model = planted(TOPOLOGIES[name]())
    result = shrink(model, samples(model, 0), width=0.5, multiple="1")
    _, census = surveyed(model)
    assert {n: (e.width, e.of) for n, e in result.plan.groups.items()} == {
        g.name: (g.width // 2, g.width) for g in census.shrinkable
    }
    x = samples(model, 1, 20)
    assert relative(run(model, x), run(result.model, x)) < 1e-4
