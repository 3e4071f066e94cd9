"""A BatchNormalization is folded into its neighbour where that is exact.

At inference y = a*(x - mean) + B with a = scale / sqrt(var + epsilon). Behind a linear layer
the rows of W are scaled and the bias shifted. In front of one, its columns are scaled and
W (B - a*mean) goes into its bias; that needs a layer without zero padding (the border would
see a shifted zero), or a shift of zero. A weight that several layers read would have to be stored
for each of them: it is scaled only where the same norm stands behind all.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.graph import Graph, Node
from pcns_onnx.graph.quantized_weights import is_quantized
from pcns_onnx.graph.queries import bias_of, constant_uses, stored_value

_WEIGHTED = {"Conv", "ConvTranspose", "Gemm"}


def fold_batch_norms(graph: Graph) -> tuple[Graph, tuple[str, ...]]:
    """A copy of `graph` with every exactly foldable BatchNormalization gone, and their names."""
    folded: list[str] = []
    result, bound = graph.copy(), _bound(graph)
    while True:
        node = next((n for n in result.nodes if _is_inference_norm(result, n) and _fold(result, n, bound)), None)
        if node is None:
            return (result if folded else graph), tuple(folded)
        folded.append(node.label)


def _is_inference_norm(graph: Graph, node: Node) -> bool:
    return (
        node.op == "BatchNormalization"
        and not node.domain
        and not node.attrs.get("training_mode", 0)
        and len([o for o in node.outputs if o]) == 1
        and all(graph.constant(name) is not None for name in node.inputs[1:5])
    )


def _bound(graph: Graph) -> set[str]:
    """Keys of layers whose weight is read elsewhere, too, unless the same norm stands behind all that read it."""
    bound = set[str]()
    for uses in constant_uses(graph).values():
        nodes = [graph.node(use.key) for use in uses if use.key and use.position == 1]
        layers = [node for node in nodes if node.op in _WEIGHTED and not node.domain]
        if len(uses) > 1 and not (len(layers) == len(uses) and _is_same_behind(graph, layers)):
            bound.update(node.key for node in layers)
    return bound


def _is_same_behind(graph: Graph, layers: list[Node]) -> bool:
    """Whether layers with one weight have the same bias and one norm behind them, with equal constants."""
    behind = []
    for node in layers:
        norms = [norm for norm in graph.consumers.get(node.key, ()) if _is_inference_norm(graph, norm)]
        alone = norms and _only_reader(graph, node.key, norms[0]) and _can_scale(graph, node)
        if not alone or any(_is_inference_norm(graph, norm) for norm in graph.consumers.get(norms[0].key, ())):
            return False
        scale, shift = _affine(graph, norms[0])
        behind.append(np.stack([scale, shift, bias_of(graph, node, len(scale))]))
    return all(np.array_equal(constants, behind[0]) for constants in behind)


def _fold(graph: Graph, norm: Node, bound: set[str]) -> bool:
    scale, shift = _affine(graph, norm)
    before = graph.producers.get(norm.inputs[0])
    if (
        before is not None
        and before.key not in bound
        and _can_scale(graph, before)
        and _only_reader(graph, norm.inputs[0], norm)
    ):
        _scale_rows(graph, before, scale, shift)
        graph.bypass(norm.key)
        return True
    readers = graph.consumers.get(norm.key, ())
    if (
        len(readers) == 1
        and readers[0].key not in bound
        and _only_reader(graph, norm.key, readers[0])
        and _can_shift(graph, readers[0], shift)
    ):
        _scale_columns(graph, readers[0], scale, shift)
        graph.drop_into_reader(norm.key)
        return True
    return False


def _affine(graph: Graph, norm: Node) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    gamma, beta, mean, var = (stored_value(graph, name) for name in norm.inputs[1:5])
    scale = gamma / np.sqrt(var + float(norm.attrs.get("epsilon", 1e-5)))
    return scale, beta - scale * mean


def _only_reader(graph: Graph, name: str, reader: Node) -> bool:
    alone = [n.key for n in graph.consumers.get(name, ())] == [reader.key]
    return alone and list(reader.inputs).count(name) == 1 and name not in {o.name for o in graph.outputs}


def _can_scale(graph: Graph, node: Node) -> bool:
    bias_known = len(node.inputs) < 3 or not node.inputs[2] or _bias_is_vector(graph, node)
    known = node.op in _WEIGHTED and not node.domain and graph.constant(node.inputs[1]) is not None and bias_known
    return known and not is_quantized(graph, node.inputs[1])  # it would have to be rounded anew


def _bias_is_vector(graph: Graph, node: Node) -> bool:
    value = graph.constant(node.inputs[2])
    return value is not None and (value.ndim < 2 or value.shape[0] == 1)


def _can_shift(graph: Graph, node: Node, shift: NDArray[np.float64]) -> bool:
    if node.op not in ("Conv", "Gemm") or not _can_scale(graph, node) or node.attrs.get("group", 1) != 1:
        return False
    if node.op == "Gemm" and node.attrs.get("transA", 0):
        return False
    auto = node.attrs.get("auto_pad", b"NOTSET")
    unpadded = auto in (b"NOTSET", b"VALID") and not any(node.attrs.get("pads", ()))
    return node.op == "Gemm" or unpadded or not shift.any()


def _set(graph: Graph, node: Node, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
    graph.set_input(node.key, 1, weight)
    graph.set_input(node.key, 2, bias)
    if node.op == "Gemm":
        graph.set_attributes(node.key, beta=1.0)


def _scale_rows(graph: Graph, node: Node, scale: NDArray[np.float64], shift: NDArray[np.float64]) -> None:
    weight = stored_value(graph, node.inputs[1])
    bias = bias_of(graph, node, len(scale)) * scale + shift
    if node.op == "ConvTranspose":  # (C, K/groups, *kernel): each group of C has its own outputs
        groups = node.attrs.get("group", 1)
        parts = weight.reshape(groups, -1, *weight.shape[1:])
        weight = (parts * scale.reshape(groups, 1, -1, *(1,) * (weight.ndim - 2))).reshape(weight.shape)
    elif node.op == "Gemm" and not node.attrs.get("transB", 0):
        weight = weight * scale
    else:
        weight = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    _set(graph, node, weight, bias)


def _scale_columns(graph: Graph, node: Node, scale: NDArray[np.float64], shift: NDArray[np.float64]) -> None:
    weight = stored_value(graph, node.inputs[1])
    alpha = float(node.attrs.get("alpha", 1.0)) if node.op == "Gemm" else 1.0
    if node.op == "Gemm":
        matrix = weight if node.attrs.get("transB", 0) else weight.T
        bias = bias_of(graph, node, len(matrix)) + alpha * matrix @ shift
        scaled = matrix * scale
        _set(graph, node, scaled if node.attrs.get("transB", 0) else scaled.T, bias)
        return
    bias = bias_of(graph, node, len(weight)) + np.tensordot(weight.sum(tuple(range(2, weight.ndim))), shift, 1)
    _set(graph, node, weight * scale.reshape(1, -1, *(1,) * (weight.ndim - 2)), bias)
