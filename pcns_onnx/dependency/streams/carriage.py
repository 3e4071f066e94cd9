"""Which operators carry a vector on one axis and treat all of its entries alike, whatever basis it is in.

A node carries where every output vector is a sum of input vectors times numbers that do not depend on the channel. So
it commutes with any matrix on the channels, and the axis that they lie on can be followed through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pcns_onnx.graph import Graph, Node, Shape

Sizes = Mapping[str, Shape]
_FLOATS = (1, 10, 11, 16)
"""Element types of ONNX that hold numbers of any size: float32, float16, float64, bfloat16."""


@dataclass(frozen=True)
class Carriage:
    """The inputs of a node that carry, and its outputs, each with the axis of the channels.

    `constants` are inputs that are stored, with the axis counted from the end. `shifts`: whether what is added to all
    vectors on the way in is no longer the same on the way out.
    """

    inputs: Mapping[int, int]
    outputs: Mapping[int, int]
    constants: Mapping[int, int] = field(default_factory=dict)
    shifts: bool = False


Rule = Callable[[Graph, Sizes, Node, int, int], Carriage | None]
"""Of a node and the axis of an input or, where negative, that of the first output: how it carries."""


def carriage(graph: Graph, sizes: Sizes, node: Node, name: str, axis: int) -> Carriage | None:
    """How `node` carries tensor `name`, an input or an output of it, with channels on `axis`; None if it does not."""
    rule = _RULES.get(node.op) if not node.domain else None
    out = node.outputs[0]
    names = [*node.inputs[:1], out] if node.op in _ONE else [*(item for item in node.inputs if item), out]
    if rule is None or any(sizes.get(item) is None for item in names):
        return None
    where = list(node.inputs).index(name) if name in node.inputs else -1
    return rule(graph, sizes, node, where, axis)


def _rank(sizes: Sizes, name: str) -> int:
    return len(sizes[name])


def _same(graph: Graph, sizes: Sizes, node: Node, where: int, axis: int) -> Carriage | None:
    is_whole = node.op == "Cast" and int(node.attrs["to"]) not in _FLOATS
    return None if where > 0 or is_whole else Carriage({0: axis}, {0: axis}, shifts=node.op == "Neg")


def _width(sizes: Sizes, name: str, from_end: int) -> int:
    """Size of an axis counted from the end (1 for the last); 1 where there is no such axis."""
    shape = sizes[name]
    return 1 if len(shape) < from_end else shape[-from_end] or 0


def _sum(graph: Graph, sizes: Sizes, node: Node, where: int, axis: int) -> Carriage | None:
    """Every operand carries, or is stored: then it is one more vector that is written."""
    name = node.inputs[where] if where >= 0 else node.outputs[0]
    from_end = _rank(sizes, name) - axis
    width = _width(sizes, node.outputs[0], from_end)
    inputs, constants = {}, {}
    for position, operand in enumerate(node.inputs):
        if graph.is_constant(operand):
            constants[position] = from_end
        elif _width(sizes, operand, from_end) == width:
            inputs[position] = _rank(sizes, operand) - from_end
        else:
            return None
    is_negated = node.op == "Sub" and 1 in constants
    return None if is_negated else Carriage(inputs, {0: _rank(sizes, node.outputs[0]) - from_end}, constants, True)


def _product(graph: Graph, sizes: Sizes, node: Node, where: int, axis: int) -> Carriage | None:
    """One operand carries, the other has one number for all channels."""
    name = node.inputs[where] if where >= 0 else node.outputs[0]
    from_end = _rank(sizes, name) - axis
    width = _width(sizes, node.outputs[0], from_end)
    carrying = [at for at, operand in enumerate(node.inputs) if _width(sizes, operand, from_end) == width]
    if len(carrying) != 1 or (node.op == "Div" and carrying != [0]) or width == 1:
        return None
    place, other = carrying[0], node.inputs[1 - carrying[0]]
    value = graph.constant(other)
    inputs, stored = {place: _rank(sizes, node.inputs[place]) - from_end}, {}
    if graph.is_constant(node.inputs[place]):
        inputs, stored = {}, {place: from_end}
    out = {0: _rank(sizes, node.outputs[0]) - from_end}
    return Carriage(inputs, out, stored, value is None or value.size != 1)


def _reshape(graph: Graph, sizes: Sizes, node: Node, where: int, axis: int) -> Carriage | None:
    """The channels are last and stay that, or all axes up to theirs are the same."""
    here, there = node.inputs[0], node.outputs[0]
    if where < 0:
        here, there = there, here
    one, other = sizes[here], sizes[there]
    if axis == len(one) - 1 and other and other[-1] == one[-1]:
        end = len(other) - 1
    elif one[: axis + 1] == other[: axis + 1]:
        end = axis
    else:
        return None
    return _one_input(graph, node, *((axis, end) if where >= 0 else (end, axis)), len(sizes[node.inputs[0]]))


def _one_input(graph: Graph, node: Node, source: int, target: int, rank: int, *, shifts: bool = False) -> Carriage:
    if graph.is_constant(node.inputs[0]):
        return Carriage({}, dict.fromkeys(range(len(node.outputs)), target), {0: rank - source}, shifts)
    return Carriage({0: source}, dict.fromkeys(range(len(node.outputs)), target), shifts=shifts)


def _transpose(graph: Graph, sizes: Sizes, node: Node, where: int, axis: int) -> Carriage | None:
    rank = _rank(sizes, node.inputs[0])
    order = [int(at) for at in node.attrs.get("perm", range(rank)[::-1])]
    source, target = (axis, order.index(axis)) if where >= 0 else (order[axis], axis)
    return _one_input(graph, node, source, target, rank)


def _other_axes(graph: Graph, sizes: Sizes, node: Node, where: int, axis: int) -> Carriage | None:
    """Slice, Split, Pad, Tile, Expand: other axes than that of the channels, which keeps its place from the end."""
    source, target = sizes[node.inputs[0]], sizes[node.outputs[0]]
    from_end = (len(source) if where >= 0 else len(target)) - axis
    if _width(sizes, node.inputs[0], from_end) != _width(sizes, node.outputs[0], from_end):
        return None
    at = len(source) - from_end
    if node.op == "Pad" and not _pads_zeros(graph, node):
        return None
    if node.op in ("Slice", "Split") and at in (_axes(graph, node, len(source)) or (at,)):
        return None
    return _one_input(graph, node, at, len(target) - from_end, len(source), shifts=node.op == "Pad")


def _pads_zeros(graph: Graph, node: Node) -> bool:
    """Whether a Pad puts zeros, or what is there already, around a tensor."""
    if node.attrs.get("mode", b"constant") not in (b"constant", "constant"):
        return True
    if len(node.inputs) < 3 or not node.inputs[2]:
        return not node.attrs.get("value", 0.0)
    value = graph.constant(node.inputs[2])
    return value is not None and not value.any()


def _axes(graph: Graph, node: Node, rank: int) -> tuple[int, ...] | None:
    """The axes that a Slice, a Split or a reduction names; None where that is not known."""
    if node.op == "Split":
        return (int(node.attrs.get("axis", 0)) % rank,)
    stated = node.attrs.get("axes")
    place = 3 if node.op == "Slice" else 1
    if stated is None and place < len(node.inputs) and node.inputs[place]:
        value = graph.constant(node.inputs[place])
        stated = None if value is None else value.reshape(-1).tolist()
    return None if stated is None else tuple(int(at) % rank for at in stated)


def _gather(graph: Graph, sizes: Sizes, node: Node, where: int, axis: int) -> Carriage | None:
    rank, extra = _rank(sizes, node.inputs[0]), _rank(sizes, node.inputs[1]) - 1
    along = int(node.attrs.get("axis", 0)) % rank
    source = axis if where >= 0 else axis if axis < along else axis - extra
    if where > 0 or source == along or (where < 0 and along <= axis <= along + extra):
        return None
    return _one_input(graph, node, source, source if source < along else source + extra, rank)


def _concat(graph: Graph, sizes: Sizes, node: Node, where: int, axis: int) -> Carriage | None:
    rank = _rank(sizes, node.outputs[0])
    if int(node.attrs["axis"]) % rank == axis:
        return None
    stored = {at: rank - axis for at, name in enumerate(node.inputs) if graph.is_constant(name)}
    return Carriage({at: axis for at in range(len(node.inputs)) if at not in stored}, {0: axis}, stored, True)


def _where(graph: Graph, sizes: Sizes, node: Node, where: int, axis: int) -> Carriage | None:
    """Chosen by position: one of two vectors, of which one may be stored."""
    name = node.inputs[where] if where >= 0 else node.outputs[0]
    from_end = _rank(sizes, name) - axis
    if where == 0 or _width(sizes, node.inputs[0], from_end) != 1:
        return None
    stored = {at: from_end for at in (1, 2) if graph.is_constant(node.inputs[at])}
    inputs = {at: _rank(sizes, node.inputs[at]) - from_end for at in (1, 2) if at not in stored}
    width = _width(sizes, node.outputs[0], from_end)
    if any(_width(sizes, node.inputs[at], from_end) != width for at in inputs):
        return None
    return Carriage(inputs, {0: _rank(sizes, node.outputs[0]) - from_end}, stored, True)


def _reduce(graph: Graph, sizes: Sizes, node: Node, where: int, axis: int) -> Carriage | None:
    """A mean or a sum over positions."""
    rank = _rank(sizes, node.inputs[0])
    axes = _axes(graph, node, rank)
    if axes is None:
        return None
    kept = [at for at in range(rank) if at not in axes or node.attrs.get("keepdims", 1)]
    source = axis if where >= 0 else kept[axis]
    if source in axes:
        return None
    return _one_input(graph, node, source, kept.index(source), rank, shifts=node.op == "ReduceSum")


_ONE = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Pad", "Tile", "Expand", "ReduceMean",
                  "ReduceSum", "Dropout"})  # fmt: skip
"""What reads a tensor, and beside it numbers that say where."""

_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("Identity", "Cast", "Dropout", "Neg"), _same),
    **dict.fromkeys(("Add", "Sub", "Sum"), _sum),
    **dict.fromkeys(("Mul", "Div"), _product),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("Slice", "Split", "Pad", "Tile", "Expand"), _other_axes),
    **dict.fromkeys(("ReduceMean", "ReduceSum"), _reduce),
    "Transpose": _transpose,
    "Gather": _gather,
    "Concat": _concat,
    "Where": _where,
}


def sizes_in_shape(node: Node, sizes: Sizes, carried: Carriage) -> tuple[int, int] | None:
    """Input of a node that names the size of the channels of its output, and the element (from the start), if any."""
    if node.op not in ("Reshape", "Expand") or len(node.inputs) < 2:
        return None
    length = sizes.get(node.inputs[1], (None,))[0]
    element = carried.outputs[0] - len(sizes[node.outputs[0]]) + (length or 0)
    return None if length is None or element < 0 else (1, element)


def literal(graph: Graph, sizes: Sizes, name: str, element: int) -> int | None:
    """Element of a list of sizes, if it is stored there; None where it is computed."""
    value = graph.constant(name)
    if value is not None:
        return int(value.reshape(-1)[element])
    maker = graph.producers.get(name)
    if maker is None or maker.op != "Concat":
        return None
    return _literal_of(graph, sizes, maker.inputs, element)


def _literal_of(graph: Graph, sizes: Sizes, pieces: Sequence[str], element: int) -> int | None:
    for piece in pieces:
        count = 1
        for size in sizes.get(piece, (None,)):
            if size is None:
                return None
            count *= size
        if element < count:
            return literal(graph, sizes, piece, element)
        element -= count
    return None
