"""Which channels can go, and what goes with them: layers and groups, from the facts of a propagation.

A *class* is a set of channels tied to one another. Layers that write to a common class belong to
one *group*: the unit that is narrowed, by the same subset of classes for all its writers, with a
re-fit of its own for every reader. A class that reaches something that cannot follow must stay;
a group all of whose classes must stay is frozen, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.dependency.layers import Layer
from pcns_onnx.dependency.propagation import Propagation
from pcns_onnx.dependency.states.carried_states import with_uniform
from pcns_onnx.graph import Shape
from pcns_onnx.ops import Bilinear, Labels, OperandPart

_MIXABLE = ("scaling", "linear", "move", "select")


@dataclass(frozen=True)
class Product:
    """A product of two computed tensors, `names`, that sums over channels in every head.

    `orders` are the axes of each as (heads..., positions, channels), None for one that it lacks; `labels` the
    classes of the channels. `heads` (H,) are, for each, which of its own heads every head of the product takes:
    fewer where several share one. `parts` are what is read of each, None for all of it as it is.
    """

    key: str
    names: tuple[str, str]
    orders: tuple[tuple[int | None, ...], tuple[int | None, ...]]
    labels: Labels
    heads: tuple[NDArray[np.int64], NDArray[np.int64]]
    parts: tuple[OperandPart | None, OperandPart | None] = (None, None)


@dataclass(frozen=True)
class Group:
    """Classes that are narrowed together: `labels`, sorted; `frozen` says why they must stay.

    A class is `unit` channels of the writers. `coupled` groups are shared by several blocks
    through a sum or a concatenation. `mixable`: nothing but linear maps that treat all channels
    alike lies between writers and readers, so that any change of basis can be absorbed. Of each of
    `sides`, the units of the directions of a `recurrent` layer, or what caches of one shape hold, equally many stay.
    `states` are inputs of the model that hold some of the classes, and get narrower with them.
    """

    name: str
    labels: Labels
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    activation: str
    path: tuple[str, ...]
    frozen: str | None
    unit: int = 1
    coupled: bool = False
    mixable: bool = False
    products: tuple[Product, ...] = ()
    sides: tuple[Labels, ...] = ()
    recurrent: bool = False
    states: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """Widths are multiples of this."""
        return max(len(self.sides), 1)

    @property
    def width(self) -> int:
        """Number of classes."""
        return len(self.labels)


def form_groups(propagation: Propagation, layers: Sequence[Layer]) -> Iterator[Group]:
    """Layers that write to a common class, together; those of which all classes must stay likewise."""
    written = [set(np.unique(layer.linear.writes).tolist()) for layer in layers]
    free = [classes - propagation.frozen.keys() for classes in written]
    remaining = dict(enumerate(a or b for a, b in zip(free, written, strict=True)))
    uniform = propagation.states.uniform(propagation.classes, propagation.frozen)
    while remaining:
        first, classes = next(iter(remaining.items()))
        members, classes = {first}, with_uniform(classes, uniform)
        while more := {i for i, c in remaining.items() if i not in members and c & classes}:
            members |= more
            classes = with_uniform(classes.union(*(remaining[i] for i in more)), uniform)
        for i in members:
            del remaining[i]
        sides = {tuple(side.tolist()): side for sides in uniform for side in sides if classes.issuperset(side.tolist())}
        yield _group(propagation, [layers[i] for i in sorted(members)], classes, layers, tuple(sides.values()))


def _group(
    propagation: Propagation,
    writers: Sequence[Layer],
    classes: set[int],
    layers: Sequence[Layer],
    uniform: tuple[Labels, ...],
) -> Group:
    labels = np.array(sorted(classes), dtype=np.int64)
    readers = tuple(layer.name for layer in layers if np.isin(layer.linear.reads, labels).any())
    products = tuple(_products(propagation, labels))
    coupled = not propagation.coupled.isdisjoint(classes)
    frozen = next((propagation.frozen[c] for c in sorted(classes) if c in propagation.frozen), None)
    if frozen is None and not readers and not products:
        frozen = "no linear layer reads it"
    if frozen is None and len(labels) < 2:
        single = all(layer.width < 2 for layer in writers)
        frozen = "it has a single channel" if single else "its channels can only go all at once"
    unit = max(_channels_per_class(layer) for layer in writers)
    sides, states = uniform or _sides(writers), propagation.states.holding(propagation.classes, classes)
    if frozen is None and sides:
        frozen = _lopsided(propagation, writers, sides, labels, is_uniform=bool(uniform))
    activation, path = _path(propagation, writers, classes)
    kinds = {node.key: facts.kind for node, facts in propagation.node_facts}
    return Group(
        name=writers[0].name,
        labels=labels,
        writers=tuple(layer.name for layer in writers),
        readers=readers,
        activation=activation,
        path=path,
        frozen=frozen,
        unit=unit,
        coupled=coupled,
        mixable=not states
        and all(kinds[key] in _MIXABLE for key in path)
        and all(layer.cell is None for layer in writers),
        products=products,
        sides=sides,
        recurrent=any(layer.cell is not None for layer in writers),
        states=states,
    )


def _channels_per_class(layer: Layer) -> int:
    """How many channels of a layer are one class; the rows of a unit's gates are one."""
    gates = 1 if layer.cell is None else layer.cell.gates
    return int(np.unique(layer.linear.writes, return_counts=True)[1].max()) // gates


def _sides(writers: Sequence[Layer]) -> tuple[Labels, ...]:
    """The units of each direction, where these are different classes."""
    for layer in writers:
        if layer.cell is not None and len(np.unique(layer.cell.hidden)) > layer.cell.hidden.shape[1]:
            return tuple(np.sort(side) for side in layer.cell.hidden)
    return ()


def _units(layer: Layer) -> tuple[Labels, ...]:
    """The units of each direction of a recurrent layer."""
    return () if layer.cell is None else tuple(np.sort(side) for side in layer.cell.hidden)


def _lopsided(
    propagation: Propagation, writers: Sequence[Layer], sides: Sequence[Labels], labels: Labels, *, is_uniform: bool
) -> str | None:
    """Why equally many units of every direction cannot be taken, None if they can."""
    whole = np.concatenate(sides)
    stays = next((propagation.frozen[c] for c in sorted(whole.tolist()) if c in propagation.frozen), None)
    if stays is not None:
        return stays
    known = {tuple(side) for side in sides}
    cells = [layer for layer in writers if layer.cell is not None]
    if is_uniform:
        alike = all({tuple(side) for side in _units(layer)} <= known for layer in cells)
    else:
        alike = all({tuple(side) for side in _sides([layer])} == known for layer in cells)
    if not alike or not np.array_equal(np.sort(whole), labels):
        return "its directions share units in a way that leaves no equal numbers"
    return None


def _products(propagation: Propagation, labels: Labels) -> Iterator[Product]:
    for node, facts in propagation.node_facts:
        bilinear: Bilinear | None = facts.bilinear
        if bilinear is None:
            continue
        classes = propagation.classes.of(bilinear.a.reshape(-1, bilinear.a.shape[-1])[0])
        if np.isin(classes, labels).all():
            names = (node.inputs[bilinear.inputs[0]], node.inputs[bilinear.inputs[1]])
            whole = [propagation.shapes.get(name, ()) for name in names]
            shapes = [
                part.shape(shape) if shape and part is not None else shape
                for shape, part in zip(whole, bilinear.parts, strict=True)
            ]
            leads = [_leading(shape, order) for shape, order in zip(shapes, bilinear.orders, strict=True)]
            heads = _heads(leads[0], leads[1], propagation.batch)
            yield Product(node.key, names, bilinear.orders, classes, heads, bilinear.parts)


def _leading(shape: Shape, order: Sequence[int | None]) -> list[int]:
    """Sizes of all but the last two axes of `order`; none of a tensor of unknown shape, 0 for an unknown size."""
    return [1 if axis is None else shape[axis] or 0 for axis in order[:-2]] if shape else []


def _heads(a: Sequence[int], b: Sequence[int], batch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which matrix of each, of one sample's, every head of a product takes; one for all where that is not known."""
    one = np.zeros(1, dtype=np.int64)
    if not a or not b or a[0] != b[0] or 0 in a or 0 in b or a[0] % batch:
        return one, one
    blocks = np.broadcast_shapes(a, b)
    heads = int(np.prod(blocks)) // batch
    numbers = (np.broadcast_to(np.arange(np.prod(side)).reshape(side), blocks) for side in (a, b))
    first, second = (np.asarray(side.reshape(-1)[:heads], dtype=np.int64) for side in numbers)
    return first, second


def _path(propagation: Propagation, writers: Sequence[Layer], group_classes: set[int]) -> tuple[str, tuple[str, ...]]:
    """The tensor after the activation, and the keys of all nodes between writers and readers.

    The activation ends where the pointwise nodes behind the layer come back to a single tensor
    (x * sigmoid(x) does); where they do not, it is the layer's own output.
    """
    carries = {name for name, carried in propagation.carried.items() if not group_classes.isdisjoint(carried)}
    biases = {layer.output for layer in writers}
    between = [
        (node, facts)
        for node, facts in propagation.node_facts
        if facts.linear is None and node.key not in biases and carries.intersection(node.inputs)
    ]
    inside = {writers[0].output}
    for node, facts in between:
        if facts.kind in ("pointwise", "scaling") and inside.issuperset(carries.intersection(node.inputs)):
            inside.update(name for name in node.outputs if name in carries)  # what one channel gates does not
    consumers = propagation.graph.consumers
    exits = [
        name
        for name in sorted(inside)
        if name in propagation.exposed or any(reader.key not in inside for reader in consumers.get(name, ()))
    ]
    activation = exits[0] if len(exits) == 1 else writers[0].output
    return activation, tuple(node.key for node, _ in between)
