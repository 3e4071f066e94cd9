"""Times of layers that nobody measured."""

from __future__ import annotations

from collections.abc import Callable

from pcns_onnx.cost.layer_latency import LayerLatency, Measured, widths


def layer_times(cost: Callable[[int, int], float], full: tuple[int, int]) -> LayerLatency:
    """As if a layer of this cost had been measured."""
    (reads, inside_reads), (writes, inside_writes) = (widths(n) for n in full)
    return Measured(
        reads,
        writes,
        [[cost(a, b) for b in writes] for a in reads],
        {a: cost(a, full[1]) for a in inside_reads},
        {b: cost(full[0], b) for b in inside_writes},
    ).times()
