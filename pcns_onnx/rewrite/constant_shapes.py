"""Sizes that never change are constants.

Exporters compute in the graph what they could have written down: the scale 1/sqrt(d) of attention
from the shape of Q, the width of a Reshape from the shape of a residual stream. When channels go,
such a number would change with them, and the function with it. So, before anything else, what is
taken from a Shape along axes of known size becomes the number that it has always been. Axes that
follow the batch or are open stay computed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.graph import Graph, Node

Dims = list[int | None]


def store_constant_shapes(graph: Graph) -> Graph:
    """A copy of `graph` in which all sizes that never change are stored, those too that follow from others."""
    while (following := fix_sizes(graph)) is not graph:
        graph = following
    return graph


def fix_sizes(graph: Graph) -> Graph:
    """A copy of `graph` in which every Gather or Slice that takes known sizes from a Shape is stored."""
    fixed = _fixed_dims(graph)
    outputs = {o.name for o in graph.outputs}
    result = graph
    for node in graph.nodes:
        if node.op != "Shape" or node.domain or node.inputs[0] not in fixed:
            continue
        dims = fixed[node.inputs[0]][node.attrs.get("start", 0) : node.attrs.get("end", None)]
        for reader in graph.consumers.get(node.key, ()):
            value = _taken(graph, reader, dims) if reader.inputs[0] == node.key else None
            if value is not None and reader.key not in outputs:
                result = graph.copy() if result is graph else result
                result.make_constant(reader.key, reader.inputs[1], value)
    return result


def _fixed_dims(graph: Graph) -> dict[str, Dims]:
    """Every tensor's sizes; None where they are open or follow the batch."""
    one, more = graph.shapes(batch=2), graph.shapes(batch=3)
    return {
        name: [a if a == b else None for a, b in zip(shape, more[name], strict=True)]
        for name, shape in one.items()
        if name in more and len(more[name]) == len(shape)
    }


def _taken(graph: Graph, reader: Node, dims: Dims) -> NDArray[np.int64] | None:
    """What a Gather or Slice takes of `dims`, None if some of it is not known."""
    constants = [graph.constant(name) if name else None for name in reader.inputs[1:]]
    if reader.domain or not constants or constants[0] is None:
        return None
    if reader.op == "Gather":
        sizes = [dims[int(i)] for i in np.ravel(constants[0])]
        shape = constants[0].shape
    elif reader.op == "Slice" and constants[1] is not None and (len(constants) < 4 or (constants[3] is not None)):
        step = int(np.ravel(constants[3])[0]) if len(constants) > 3 and constants[3] is not None else 1
        sizes = dims[int(np.ravel(constants[0])[0]) : int(np.ravel(constants[1])[0]) : step]
        shape = (len(sizes),)
    else:
        return None
    known = [size for size in sizes if size is not None]
    return np.asarray(known, dtype=np.int64).reshape(shape) if len(known) == len(sizes) else None
