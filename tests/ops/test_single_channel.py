"""One channel that is left is still a channel: no operator takes its axis of size one for something else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from builders.chains import C, Chain, K, ints, node, random
from builders.models import relative, run
from pcns_onnx import shrink

POOLED = node("GlobalAveragePool", "h", "p")
PAIRED = {"W0": np.repeat(random(1, 3, 3, 3), C, axis=0), "b0": np.full(C, 0.3, dtype=np.float32)}
"""A first layer all of whose channels are the same: one is enough."""

CHAINS = {
    "Squeeze": Chain([POOLED, node("Squeeze", "p")], back="gemm"),
    "Squeeze at opset 11": Chain([POOLED, node("Squeeze", "p")], back="gemm", opset=11, batch=4),
    "Squeeze at opset 13": Chain([POOLED, node("Squeeze", "p")], back="gemm", opset=13),
    "Squeeze with axes": Chain([POOLED, node("Squeeze", "p a")], {"a": ints(2, 3)}, back="gemm"),
    "Squeeze of a batch of one": Chain(
        [POOLED, node("Squeeze", "p", "s"), node("Unsqueeze", "s a")], {"a": ints(0)}, back="gemm", batch=1
    ),
    "ReduceMean, then Squeeze": Chain(
        [node("ReduceMean", "h", "p", axes=[2, 3]), node("Squeeze", "p")], back="gemm"
    ),
    "Flatten": Chain([POOLED, node("Flatten", "p")], back="gemm"),
    "Reshape by 0 and -1": Chain([POOLED, node("Reshape", "p s")], {"s": ints(0, -1)}, back="gemm"),
    "Reshape by the number": Chain([POOLED, node("Reshape", "p s")], {"s": ints(-1, C)}, back="gemm"),
    "Expand": Chain([POOLED, node("Expand", "p s")], {"s": ints(1, C, 6, 6)}),
    "Expand by ones": Chain([POOLED, node("Expand", "p s")], {"s": ints(1, 1, 6, 6)}),
    "Mul by its mean over channels' positions": Chain([POOLED, node("Sigmoid", "p", "g"), node("Mul", "h g")]),
    "Mul by a map of one channel": Chain(
        [node("Conv", "x Wm", "map", pads=[1] * 4), node("Mul", "map h")], {"Wm": random(1, 3, 3, 3)}
    ),
    "PRelu with one slope": Chain([node("PRelu", "h s")], {"s": np.full((1, 1, 1), 0.2, dtype=np.float32)}),
    "PRelu with a slope per channel": Chain([node("PRelu", "h s")], {"s": np.full((C, 1, 1), 0.2, dtype=np.float32)}),
    "depthwise Conv": Chain(
        [node("Conv", "h Wd", group=C, pads=[1] * 4)], {"Wd": np.repeat(random(1, 1, 3, 3), C, axis=0)}
    ),
    "Concat with the input": Chain(
        [node("Concat", "h x", "j", axis=1), node("Slice", "j s e a")], {"s": ints(0), "e": ints(C), "a": ints(1)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_a_single_channel_does_what_all_its_copies_did(chain: Chain) -> None:
    model = replace(chain, weights={**chain.weights, **PAIRED}).build()
    samples = 40 if chain.batch == "N" else 40 * int(chain.batch)
    x = np.random.default_rng(5).standard_normal((samples, 3, 6, 6)).astype(np.float32)
    result = shrink(model, x, width=1 / C, multiple="1", refine=0)
    onnx.checker.check_model(result.model, full_check=True)
    assert {group.kept for group in result.report.groups if group.name == "h"} <= {1}
    assert result.report.after.macs < result.report.before.macs
    feed = x[: 7 if chain.batch == "N" else int(chain.batch)]
    small = run(result.model, feed)
    assert small.shape == run(model, feed).shape == (len(feed), K, *small.shape[2:])
    assert relative(run(model, feed), small) < 1e-4


def test_axes_are_written_only_where_one_channel_is_left() -> None:
    chain = CHAINS["Squeeze"]
    model = replace(chain, weights={**chain.weights, **PAIRED}).build()
    x = np.random.default_rng(5).standard_normal((40, 3, 6, 6)).astype(np.float32)
    for width, inputs in ((0.5, 1), (1 / C, 2)):
        small = shrink(model, x, width=width, multiple="1", refine=0).model
        assert [len(item.input) for item in small.graph.node if item.op_type == "Squeeze"] == [inputs]
