"""What is stored once stays stored once.

Edits address the inputs of nodes, so a constant that several nodes read comes apart when these are edited. Where
they have been given equal values, they are made to read one constant again: in every form of a model, and in what
is written. Biases are no exception while the layers share their weight; else each weight gets a bias of its own
before anything is counted, since it will be solved for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pcns_onnx.graph import Array, Graph
from pcns_onnx.graph.queries import bias_add, constant_uses, stored_root
from pcns_onnx.ops import bias_behind

Slot = tuple[str, int]
"""An input of a node: the node's key and the position."""


def store_once(graph: Graph, *earlier: Graph) -> None:
    """Let inputs that read one constant in an earlier state, and equal ones in `graph`, read one there, in place.

    So do inputs that are new, of nodes that have another constant in common (the bias of layers without one).
    """
    for before in earlier:
        for root, uses in constant_uses(before).items():
            keys = [use.key for use in uses if use.key and use.position >= 0]
            if len(keys) > 1:
                _merge(graph, root, [(use.key, use.position) for use in uses])
                for position in _new_positions(graph, before, keys):
                    _merge(graph, "", [(key, position) for key in keys])


def own_biases(graph: Graph) -> Graph:
    """A copy in which no bias is stored for layers of different weights, nor for anything else."""
    weight_of = dict(_biases(graph))
    result = graph
    for root, uses in constant_uses(graph).items():
        owners: dict[str, list[Slot]] = {}
        for use in uses:
            owners.setdefault(weight_of.get((use.key, use.position), ""), []).append((use.key, use.position))
        names = sorted(owners, key=lambda owner: (owner != "", list(owners).index(owner)))
        for owner in names[1:]:
            result = graph.copy() if result is graph else result
            for key, position in owners[owner]:
                value = graph.constant(root)
                assert value is not None, "it is stored"
                result.set_input(key, position, value)
            _merge(result, "", owners[owner])
    return result


def _biases(graph: Graph) -> Iterator[tuple[Slot, str]]:
    """Where a bias is stored, and the weight that it goes with."""
    for node in graph.nodes:
        if node.op in ("Conv", "ConvTranspose", "Gemm") and not node.domain and len(node.inputs) > 2:
            if graph.is_constant(node.inputs[1]) and node.inputs[2]:
                yield (node.key, 2), stored_root(graph, node.inputs[1])
            continue
        shape = bias_behind(node, graph.constant)
        add = None if shape is None else bias_add(graph, node, shape)
        weights = [name for name in node.inputs if name and graph.is_constant(name)]
        if add is not None and weights:
            yield (add.key, 1 - list(add.inputs).index(node.key)), stored_root(graph, weights[0])


def _new_positions(graph: Graph, before: Graph, keys: Sequence[str]) -> list[int]:
    """Positions at which nodes have an input that they had not."""
    positions = set[int]()
    for key in keys:
        if key in graph.producers and key in before.producers:
            old = before.node(key).inputs
            now = enumerate(graph.node(key).inputs)
            positions |= {at for at, name in now if name and (at >= len(old) or not old[at])}
    return sorted(positions)


def _merge(graph: Graph, preferred: str, slots: Sequence[Slot]) -> None:
    """Let inputs with equal initializers read one, that of the `preferred` name if it is among them; in place."""
    alike: list[tuple[Array, dict[str, list[Slot]]]] = []
    for key, position in dict.fromkeys(slots):
        node = graph.producers.get(key)
        name = node.inputs[position] if node is not None and 0 <= position < len(node.inputs) else ""
        value = graph.constant(name) if name and name not in graph.producers else None
        if value is None:
            continue
        by_name = next((names for other, names in alike if _is_equal(value, other)), None)
        if by_name is None:
            alike.append((value, by_name := {}))
        by_name.setdefault(name, []).append((key, position))
    for _, by_name in alike:
        chosen = preferred if preferred in by_name else next(iter(by_name))
        for name, others in by_name.items():
            for key, position in others if name != chosen else ():
                graph.read_same(key, position, chosen)


def _is_equal(a: Array, b: Array) -> bool:
    return a is b or (a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
