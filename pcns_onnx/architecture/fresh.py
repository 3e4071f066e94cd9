"""The same architecture with new weights: He initialisation, seeded, ready to train.

Weights are normal with variance 2 / fan_in (He et al. 2015), biases zero; norms scale by one, shift by
zero and hold the statistics of standardised data. Every layer is made as wide as its weight says and
reads as many channels as its input really has, so a graph whose layers were narrowed, dropped or ungrouped comes
out whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod, sqrt

import numpy as np

from pcns_onnx.graph import Array, Graph, Node
from pcns_onnx.graph.queries import bias_add

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_NEUTRAL: Mapping[str, tuple[float, ...]] = {
    "BatchNormalization": (1.0, 0.0, 0.0, 1.0),
    "InstanceNormalization": (1.0, 0.0),
    "GroupNormalization": (1.0, 0.0),
    "LayerNormalization": (1.0, 0.0),
    "PRelu": (0.25,),
}
"""What inputs 1, 2, ... of a node are before training (PRelu: He et al. 2015, section 2)."""

Feeds = Mapping[str, Sequence[int]]


def initialise(graph: Graph, seed: int | None, feeds: Feeds | None = None) -> None:
    """Give every layer of `graph` new weights that fit its input, in place; all zero where `seed` is None.

    `feeds` are the shapes of inputs that the model leaves open.
    """
    drawn = 0
    for key in [node.key for node in graph.nodes]:
        node = graph.node(key)
        if node.op in LAYERS and not node.domain and graph.constant(node.inputs[1]) is not None:
            _layer(graph, node, None if seed is None else np.random.default_rng([seed, drawn]), feeds)
            drawn += 1
        for position, value in enumerate(_NEUTRAL.get(node.op, ()) if not node.domain else (), start=1):
            old = graph.constant(node.inputs[position]) if position < len(node.inputs) else None
            if old is not None:
                graph.set_input(key, position, np.full(old.shape, value))


def ungroup(graph: Graph) -> tuple[str, ...]:
    """Every grouped Conv reads all channels, in place; the names of those that did not. Weights are to be made anew."""
    names = []
    for node in graph.nodes:
        groups, weight = conv_groups(node), graph.constant(node.inputs[1]) if node.op in LAYERS else None
        if groups > 1 and weight is not None:
            names.append(node.label)
            wide = [weight.shape[0], weight.shape[1] * groups, *weight.shape[2:]]
            graph.set_attributes(node.key, group=1)
            graph.set_input(node.key, 1, np.zeros(wide))
    return tuple(names)


def conv_groups(node: Node) -> int:
    """The number of groups of a Conv or ConvTranspose, 1 for all else."""
    return int(node.attrs.get("group", 1)) if node.op in ("Conv", "ConvTranspose") and not node.domain else 1


def _layer(graph: Graph, node: Node, generator: np.random.Generator | None, feeds: Feeds | None) -> None:
    writes, reads = _axes(node)
    shape = list(_stored(graph, node, 1).shape)
    source = graph.shapes(feeds).get(node.inputs[0]) or (None,)
    channels = source[1 if node.op.startswith("Conv") else 0 if node.attrs.get("transA", 0) else -1]
    if channels is not None and conv_groups(node) == 1:
        shape[reads] = channels
    scale = np.float32(sqrt(2.0 / max(shape[reads] * prod(shape[2:]), 1)))
    weight = np.zeros(shape, np.float32) if generator is None else generator.standard_normal(shape, np.float32) * scale
    graph.set_input(node.key, 1, weight)
    if node.op == "Gemm":
        graph.set_attributes(node.key, **{name: 1.0 for name in ("alpha", "beta") if name in node.attrs})
    holder = bias_add(graph, node, (shape[writes],)) if node.op == "MatMul" else node
    for position in (2,) if holder is node else (0, 1):
        old = None if holder is None or len(holder.inputs) <= position else graph.constant(holder.inputs[position])
        if holder is not None and old is not None:
            graph.set_input(holder.key, position, np.zeros(old.shape))


def _axes(node: Node) -> tuple[int, int]:
    """Which axis of the weight counts outputs, which inputs."""
    return (0, 1) if node.op == "Conv" or node.attrs.get("transB", 0) else (1, 0)


def _stored(graph: Graph, node: Node, position: int) -> Array:
    value = graph.constant(node.inputs[position])
    assert value is not None, "the caller looked"
    return value
