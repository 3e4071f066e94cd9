"""Recurrent cells that are written out, step by step, as layers that share their weights.

Exporters unroll a cell that is called in a loop: an LSTM over 20 steps becomes 20 times its Gemms. Which it is can be
seen from what lies between them: an LSTM has two Tanh for three Sigmoid (or for one, of all gates), a GRU one Tanh for
two and a difference (1 - z), a plain cell has no gates at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pcns_onnx.dependency.groups import Group
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.graph import Graph

LEAST_STEPS = 3
"""Uses of a weight from which on it is called a cell: two are a pair."""


@dataclass(frozen=True)
class WrittenOutCell:
    """The layers of cells of one kind over as many `steps`; `weights` are stored for them."""

    kind: str
    steps: int
    weights: int
    layers: tuple[str, ...]
    operator: str

    def __str__(self) -> str:
        article = "an" if self.kind in ("LSTM", "RNN") else "a"
        many = f"{len(self.layers)} {self.operator}s of {self.weights} weight{'s' if self.weights > 1 else ''}"
        return f"{article} {self.kind} written out over {self.steps} steps, {many}"


def written_out_cells(graph: Graph, layers: Sequence[Layer], groups: Sequence[Group]) -> tuple[WrittenOutCell, ...]:
    """The cells of a graph, by kind and number of steps."""
    units: dict[str, list[Layer]] = {}
    for layer in layers:
        units.setdefault(layer.first_use, []).append(layer)
    repeated = {name: uses for name, uses in units.items() if len(uses) >= LEAST_STEPS}
    circular = {name for name, uses in repeated.items() if _is_circular(graph, uses)}
    by_kind: dict[tuple[str, int], list[list[Layer]]] = {}
    for cell in _joined(repeated, groups):
        if circular.intersection(cell):
            members = [repeated[name] for name in cell]
            kind = _kind(graph, [layer for uses in members for layer in uses])
            by_kind.setdefault((kind, max(map(len, members))), []).extend(members)
    cells = []
    for (kind, steps), members in by_kind.items():
        own = {layer.name: layer for uses in members for layer in uses}
        ordered = [layer for layer in layers if layer.name in own]
        operator = Counter(layer.kind for layer in ordered).most_common(1)[0][0]
        cells.append(WrittenOutCell(kind, steps, len(members), tuple(layer.name for layer in ordered), operator))
    return tuple(cells)


def _joined(units: Mapping[str, Sequence[Layer]], groups: Sequence[Group]) -> Iterator[list[str]]:
    """Units whose layers write a common group (what is made of the step's input, and of the state)."""
    remaining = dict(units)
    by_layer = {name: group.name for group in groups for name in group.writers}
    while remaining:
        cell, visited = [next(iter(remaining))], set[str]()
        while more := [name for name in remaining if name in cell and name not in visited]:
            visited.update(more)
            written = {by_layer[layer.name] for name in more for layer in remaining[name]}
            cell += [n for n, uses in remaining.items() if n not in cell and written & {by_layer[u.name] for u in uses}]
        for name in cell:
            del remaining[name]
        yield cell


def _is_circular(graph: Graph, uses: Sequence[Layer]) -> bool:
    """Whether what the first use makes is read, by way of whatever, by another one."""
    keys, pending, visited = {use.key for use in uses[1:]}, [uses[0].key], set[str]()
    while pending:
        name = pending.pop()
        for reader in graph.consumers.get(name, ()):
            if reader.key in keys:
                return True
            if reader.key not in visited:
                visited.add(reader.key)
                pending += [output for output in reader.outputs if output]
    return False


def _kind(graph: Graph, layers: Sequence[Layer]) -> str:
    """What the cell is called, by the functions between its layers."""
    stops = {layer.key for layer in layers}
    ops, visited, pending = Counter[str](), set[str](), [layer.key for layer in layers]
    while pending:
        for reader in graph.consumers.get(pending.pop(), ()):
            if reader.key not in visited and reader.key not in stops:
                visited.add(reader.key)
                ops[reader.op] += 1
                pending += [output for output in reader.outputs if output]
    gates, tanh = ops["Sigmoid"] + ops["HardSigmoid"], ops["Tanh"]
    if not gates:
        return "RNN" if tanh or ops["Relu"] else "cell"
    if 2 * tanh > gates and not ops["Sub"]:
        return "LSTM"
    return "GRU" if tanh else "gated cell"
