"""Which inputs of a model are states, and which outputs give them back.

What a caller carries from run to run is known by what reads it:

- the state of a recurrent operator: initial_h comes back as Y_h, initial_c as Y_c,
- the cache of K and V: `past` and `present` of a fused operator, or a Concat of what was there with what is new,
- whatever `--carry OUTPUT=INPUT` names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

from pcns_onnx.graph import CarriedState, Graph, Node, TensorSpec
from pcns_onnx.ops.attention.kernels import kernel_of
from pcns_onnx.ops.recurrent import GATES

REORDERING = (
    "Identity", "Cast", "Gather", "Slice", "Split", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Flatten",
)  # fmt: skip
"""What stands between a state's ends and what reads and makes it."""
_INITIAL = {5: (1, 0), 6: (2,)}
"""By position of an initial state: the outputs of a recurrent operator that give it back, Y after Y_h."""


def carried_states(graph: Graph, carries: Mapping[str, str]) -> tuple[CarriedState, ...]:
    """The states of a model, by the operators that read them or named in `carries` (input -> output)."""
    states = list[CarriedState]()
    taken = {*carries.values(), *(state.output for state in graph.layout.states)}
    captured = {name for node in graph.nodes for name in node.captures}
    outputs = {spec.name: spec for spec in graph.outputs}
    opened = {state.input: state for state in graph.layout.states}
    for spec in graph.inputs:
        if spec.name in opened:
            states.append(opened[spec.name])
            continue
        if spec.dtype.kind not in "fV" or len(spec.shape) < 2 or spec.name in captured:
            continue
        named = carries.get(spec.name)
        end = _given_back(graph, spec, outputs, taken if named is None else outputs.keys() - {named})
        if named is not None and end is None:
            end = named, _all_axes(graph, spec), False
        if end is not None:
            taken.add(end[0])
            states.append(CarriedState(spec.name, end[0], "", end[1], end[2]))
    return tuple(states)


def _all_axes(graph: Graph, spec: TensorSpec) -> tuple[int, ...]:
    """All axes but that of the samples."""
    return tuple(axis for axis in range(len(spec.shape)) if axis != graph.layout.axes.get(spec.name))


def _given_back(
    graph: Graph, spec: TensorSpec, outputs: Mapping[str, TensorSpec], taken: Set[str]
) -> tuple[str, tuple[int, ...], bool] | None:
    """The output that gives an input back, the axes of its channels, and whether it is a cache."""
    for name, reader in _readers(graph, spec.name):
        at = list(reader.inputs).index(name)
        ends, axes, is_cache = list[str](), _all_axes(graph, spec), False
        kernel = kernel_of(reader)
        if reader.op in GATES and not reader.domain and at in _INITIAL:
            ends = [reader.outputs[place] for place in _INITIAL[at] if place < len(reader.outputs)]
            axes = (0, 2) if len(spec.shape) == 3 else axes
        elif kernel is not None and at in kernel.past:
            place = kernel.present[kernel.past.index(at)]
            ends, axes, is_cache = list(reader.outputs[place : place + 1]), (1, 3), True
        elif reader.op == "Concat" and name == spec.name:
            axis = int(reader.attrs.get("axis", 0)) % len(spec.shape)
            ends, is_cache = [reader.key], len(spec.shape) > 3
            axes = tuple(own for own in axes if own != axis)
        for end in filter(None, ends):
            output = next((o for o in _reached(graph, end) if o not in taken and _fits(spec, outputs.get(o))), None)
            if output is not None:
                return output, axes, is_cache
    return None


def _readers(graph: Graph, name: str) -> Iterator[tuple[str, Node]]:
    """What reads a tensor, by way of what only reorders it, with the name that it reads."""
    pending, visited = [name], set[str]()
    while pending:
        source = pending.pop(0)
        for reader in graph.consumers.get(source, ()):
            yield source, reader
            if reorders(reader, source) and reader.key not in visited:
                visited.add(reader.key)
                pending += [output for output in reader.outputs if output]


def _reached(graph: Graph, name: str) -> Iterator[str]:
    """The outputs of the model that hold a tensor, whole or a part of it, perhaps beside others."""
    exposed, pending, visited = {spec.name for spec in graph.outputs}, [name], set[str]()
    while pending:
        source = pending.pop(0)
        if source in exposed:
            yield source
        for reader in graph.consumers.get(source, ()):
            if (reorders(reader, source) or reader.op == "Concat") and reader.key not in visited:
                visited.add(reader.key)
                pending += [output for output in reader.outputs if output]


def reorders(node: Node, source: str) -> bool:
    """Whether a node only moves about what it reads of a tensor, or takes some of it."""
    return node.op in REORDERING and not node.domain and node.inputs[0] == source


def _fits(spec: TensorSpec, other: TensorSpec | None) -> bool:
    """Whether an output may have the shape of an input, as far as both say."""
    if other is None or len(other.shape) != len(spec.shape) or other.dtype != spec.dtype:
        return False
    return all(a == b or None in (a, b) for a, b in zip(spec.shape, other.shape, strict=True))
