"""Every sample is drawn as often as any other, in an order that the seed decides, whatever the room."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from builders.mlp import mlp
from pcns_onnx.data.dataset import open_data
from pcns_onnx.distillation.pool import Pool
from pcns_onnx.graph import Graph
from pcns_onnx.runtime.samples import Samples

GRAPH = Graph.load(mlp())


def samples(count: int = 100, batch: int = 10, *, fixed: bool = False) -> Samples:
    values = np.arange(count, dtype=np.float32)[:, None] * np.ones((1, 6), dtype=np.float32)
    return Samples(open_data({"x": values}, GRAPH.inputs), batch, fixed)


def drawn(pool: Pool, batch: int, steps: int) -> list[list[int]]:
    return [
        [int(v) for shown in block.take(units) for v in shown.batch.feeds["x"][:, 0]]
        for block, units in islice(pool.draws(batch), steps)
    ]


@pytest.mark.parametrize("room", [1 << 30, 1500, 10])
def test_one_time_round_draws_every_sample_once(room: int) -> None:
    steps = drawn(Pool(samples(), room, seed=3), 10, 20)
    for turn in (steps[:10], steps[10:]):
        assert sorted(value for step in turn for value in step) == list(range(100))
    assert steps[:10] != steps[10:]
    assert steps == drawn(Pool(samples(), room, seed=3), 10, 20) != drawn(Pool(samples(), room, seed=4), 10, 20)


def test_memory_does_not_grow_with_the_pool() -> None:
    pool = Pool(samples(1000), 2400, seed=0)
    assert pool.whole is None
    assert all(sum(g.size for g in block.groups) <= 100 for block, _ in islice(pool.draws(10), 100))


def test_what_takes_one_at_a_time_gets_one_at_a_time() -> None:
    for batch in (1, 4):
        pool = Pool(samples(batch=batch, fixed=True), 1 << 30, seed=0)
        (block, units), *_ = islice(pool.draws(16), 1)
        shown = block.take(units)
        assert [one.batch.size for one in shown] == [batch] * (16 // batch)
        assert all(np.diff(one.batch.feeds["x"][:, 0]).tolist() == [1.0] * (batch - 1) for one in shown)


def test_less_than_a_step_is_a_smaller_step() -> None:
    assert [len(step) for step in drawn(Pool(samples(7), 1 << 30, seed=0), 64, 3)] == [7, 7, 7]
