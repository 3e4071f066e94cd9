"""Channels taken out or repeated: all that carries them is sliced, and every number that counts them follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.dependency.dependency_graph import DependencyGraph, kept_classes
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.graph import Array, Graph
from pcns_onnx.numerics.quantization import Takes
from pcns_onnx.ops import ChannelCount, Labels
from pcns_onnx.rewrite.contract import take_states
from pcns_onnx.rewrite.layer_weights import has_value_per_row, stored
from pcns_onnx.rewrite.patch import Edit, Patch, SetAttributes, SetInput, SetNumbers, TakeInput
from pcns_onnx.rewrite.recurrent_cells import take_units


def narrow(graph: Graph, dependencies: DependencyGraph, keep: Mapping[str, Labels]) -> Patch:
    """Slice everything that carries a channel not in `keep` (group name -> classes that stay)."""
    return repeat(graph, dependencies, kept_classes(dependencies, keep).astype(np.int64))


def repeat(graph: Graph, dependencies: DependencyGraph, copies: NDArray[np.int64]) -> Patch:
    """Everything that carries channels, with class c there copies[c] times: 0 takes it out, 2 doubles it.

    `copies` is (dependencies.born + 1,), the last element 1 for what belongs to no class. Copies are alike
    in every constant, so a reader sees a class copies[c] times (`methods.expansion` shares its weights out).
    """
    biases = {layer.bias.key for layer in dependencies.layers}
    edits: list[Edit] = []
    for layer in dependencies.layers:
        edits += _repeat_layer(graph, layer, copies)
    for key, constant in dependencies.per_channel:
        if key in biases:
            continue
        if sum(size > 1 for size in constant.labels.shape) > 1 and (copies[constant.labels] != 1).any():
            value = _by_rows(stored(graph, key, constant.position), constant.labels, copies)
            edits.append(SetInput(key, constant.position, value))
            continue
        takes = _takes(constant.labels, copies)
        if takes:
            edits.append(TakeInput(key, constant.position, takes))
    for index in dependencies.channel_indices:
        if (copies[index.labels] != 1).any():
            places = stored(graph, index.key, index.position)
            edits.append(SetInput(index.key, index.position, _renumbered(places, index.labels, copies)))
    edits += take_states(graph, dependencies.labels, copies)
    edits += _named_axes(dependencies, copies)
    edits += [
        SetAttributes(number.key, ((number.name, number.value),))
        for number in dependencies.implied_numbers
        if (copies[number.labels] != 1).any()
    ]
    return (*edits, *_resize(graph, dependencies, copies))


def _named_axes(dependencies: DependencyGraph, copies: NDArray[np.int64]) -> Iterator[Edit]:
    """Axes written down where a single channel would else be taken for one of them."""
    for key, implied in {item.key: item for item in dependencies.implied_axes if copies[item.labels].sum() < 2}.items():
        if isinstance(implied.place, int):
            yield SetInput(key, implied.place, np.array(implied.axes, dtype=np.int64))
        else:
            yield SetAttributes(key, ((implied.place, list(implied.axes)),))


def layout(labels: Labels, copies: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """An axis with these classes when class c is there copies[c] times: (old place, number of the copy) of each entry.

    Entries of one class that lie side by side (the positions of a flattened channel, the channels of a
    block) are copied as a whole: [a a b] doubled is [a a a' a' b b'].
    """
    if not labels.size:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(np.concatenate([[True], labels[1:] != labels[:-1]]))
    lengths, times = np.diff(np.append(starts, len(labels))), copies[labels[starts]]
    run = np.repeat(np.arange(len(starts)), times)
    number = np.arange(len(run)) - np.repeat(np.cumsum(times) - times, times)
    sizes = lengths[run]
    inside = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.repeat(starts[run], sizes) + inside, np.repeat(number, sizes)


def _renumbered(places: Array, labels: Labels, copies: NDArray[np.int64]) -> Array:
    """Places along an axis with these labels, brought up to date; a single place stays, in its first copy."""
    index, number = layout(labels, copies)
    place_of = np.zeros((len(labels), max(int(copies[labels].max()), 1)), dtype=np.int64)
    place_of[index, number] = np.arange(len(index))
    if not places.ndim:
        return np.asarray(place_of[places, 0])
    chosen, which = layout(labels[places], copies)
    return np.asarray(place_of[places[chosen], which])


def _resize(graph: Graph, dependencies: DependencyGraph, copies: NDArray[np.int64]) -> Iterator[Edit]:
    """Numbers that count channels, brought up to date."""
    by_number: dict[tuple[str, int | str], list[ChannelCount]] = {}
    for size in dependencies.sizes:
        by_number.setdefault((size.key, size.place), []).append(size)
    for (key, place), sizes in by_number.items():
        if all((copies[size.labels if size.along is None else size.along] == 1).all() for size in sizes):
            continue
        if isinstance(place, int) and graph.is_computed(key, place):
            yield SetNumbers(key, place, tuple((size.element, int(copies[size.labels].sum())) for size in sizes))
            continue
        old = _numbers(graph, key, place)
        new = np.zeros(len(sizes), dtype=np.int64) if old is None else old.reshape(-1).astype(np.int64)
        for size in sizes:
            new[size.element] = int(copies[size.labels].sum())
        for name in {size.replaces for size in sizes} & graph.node(key).attrs.keys():
            yield SetAttributes(key, ((name, None),))
        if isinstance(place, int):
            yield SetInput(key, place, new if old is None else new.reshape(old.shape))
        else:
            yield SetAttributes(key, ((place, new.tolist() if old is None or old.ndim else int(new[0])),))


def _numbers(graph: Graph, key: str, place: int | str) -> Array | None:
    """What a node holds at an input or an attribute, None where that is absent."""
    node = graph.node(key)
    if isinstance(place, str):
        return np.asarray(node.attrs[place]) if place in node.attrs else None
    return stored(graph, key, place) if place < len(node.inputs) and node.inputs[place] else None


def _takes(labels: Labels, copies: NDArray[np.int64]) -> Takes:
    """What to take of a constant so that its channels are there as often as `copies` says; labels have its rank."""
    by_axis = (
        take(axis, np.moveaxis(labels, axis, 0).reshape(size, -1)[:, 0], copies)
        for axis, size in enumerate(labels.shape)
        if size > 1
    )
    return [one for one in by_axis if one is not None]


def _by_rows(value: Array, labels: Labels, copies: NDArray[np.int64]) -> Array:
    """A stored state (D, 1, H), whose directions have channels of their own."""
    return np.stack([row[:, layout(own.reshape(-1), copies)[0]] for row, own in zip(value, labels, strict=True)])


def take(axis: int, labels: Labels, copies: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]] | None:
    """The places of `axis`, whose entries are of the classes `labels`, as often as `copies` says; None for all."""
    changed = (copies[labels] != 1).any()
    return (axis, layout(labels, copies)[0]) if changed else None


def _repeat_layer(graph: Graph, layer: Layer, copies: NDArray[np.int64]) -> list[Edit]:
    linear = layer.linear
    rows, columns = linear.writes, linear.reads
    if (copies[rows] == 1).all() and (copies[columns] == 1).all():
        return []
    if layer.cell is not None:
        inputs = columns[: stored(graph, layer.key, linear.weight).shape[2]]
        units = [layout(own, copies)[0] for own in layer.cell.hidden]
        return take_units(graph, layer, units, layout(inputs, copies)[0])
    sizes = stored(graph, layer.key, linear.weight).shape
    takes = [  # of blocks that are alike, the first
        take(axis, labels[: sizes[axis]], copies)
        for axis, labels in zip(linear.weight_axes, (rows, columns), strict=True)
    ]
    edits: list[Edit] = [TakeInput(layer.key, linear.weight, [one for one in takes if one is not None])]
    if not layer.bias.absent and (copies[rows] != 1).any():
        bias, axis = stored(graph, layer.bias.key, layer.bias.position), linear.bias_axes[-1]
        if has_value_per_row(bias, layer):
            taken = take(axis % bias.ndim, rows[: bias.shape[axis]], copies)
            edits.append(TakeInput(layer.bias.key, layer.bias.position, [] if taken is None else [taken]))
    return edits
