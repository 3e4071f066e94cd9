"""Biases that the solve has added, moved into the fused operator behind them where that has an input for one.

MatMul, Add b, SkipLayerNormalization(x, skip, g, h)  ->  MatMul, SkipLayerNormalization(x, skip, g, h, b)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pcns_onnx.graph import Graph

BIAS_INPUTS: Mapping[str, tuple[int, tuple[int, ...]]] = {
    "SkipLayerNormalization": (4, (0, 1)),
    "SkipSimplifiedLayerNormalization": (3, (0, 1)),
    "BiasGelu": (1, (0,)),
    "FastGelu": (1, (0,)),
}
"""Operators of onnxruntime, the input that holds a bias, and those that it is added to."""


def merge_biases(graph: Graph, added: Iterable[str]) -> None:
    """Merge, in place, each of these Adds of a stored bias into its only reader."""
    outputs = {output.name for output in graph.outputs}
    for key in added:
        add = graph.producers.get(key)
        readers = graph.consumers.get(key, ())
        if add is None or add.op != "Add" or key in outputs or len(readers) != 1:
            continue
        reader, bias = readers[0], graph.constant(add.inputs[1])
        place, operands = BIAS_INPUTS.get(reader.op, (0, ()))
        if reader.domain != "com.microsoft" or bias is None or list(reader.inputs).index(key) not in operands:
            continue
        name = reader.inputs[place] if place < len(reader.inputs) else ""
        old = graph.constant(name) if name else None
        if name and (old is None or old.shape != bias.shape):
            continue
        graph.bypass(key)
        graph.set_input(reader.key, place, bias if old is None else bias + old, add.inputs[1])
