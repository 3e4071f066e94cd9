"""Data movement: Flatten, Reshape, Squeeze, Unsqueeze, Transpose, Shape.

Movement acts on labels as it acts on data. A Reshape is first cut into the smallest blocks of
axes whose sizes match, so only axes that really merge or split are expanded.
"""

from __future__ import annotations

from math import prod

import numpy as np

from pcns_onnx.graph import Node
from pcns_onnx.ops.facts import Flow, Labels, Site, Size, axes_of, describe, freeze, rule


@rule("Flatten")
def flatten(site: Site) -> Flow:
    """A channel becomes H*W columns."""
    return _moved(site)


@rule("Squeeze", "Unsqueeze")
def squeeze(site: Site) -> Flow:
    """Axes of size one come or go."""
    return _moved(site)


@rule("Transpose")
def transpose(site: Site) -> Flow:
    """Axes change places."""
    labels = site.labels[0]
    if labels is None:
        return Flow((None,))
    order = site.attr("perm", None) or tuple(reversed(range(labels.ndim)))
    return Flow((np.transpose(labels, order),), "move")


@rule("Reshape")
def reshape(site: Site) -> Flow:
    """Static or exporter-style; a stored size of an axis that carries channels is kept in step."""
    if site.labels[0] is None:
        return Flow((None,))
    flow = _moved(site)
    labels = flow.outputs[0]
    if labels is None:
        return flow
    sizes = []
    for axis in axes_of(labels):
        source = _element(site, axis)
        if source is None:
            return freeze(site, f"{describe(site.node)} computes the size of the channel axis")
        key, position, element, value = source
        if value == -1 or (value == 0 and not site.attr("allowzero", 0)):
            continue
        if key != site.node.key and len(site.readers(key)) != 1:
            return freeze(site, f"{describe(site.node)} shares the size of the channel axis with another node")
        vector = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
        if vector.shape[1] != 1:
            return freeze(site, f"{describe(site.node)} splits channels over several axes")
        sizes.append(Size(key, position, element, vector[:, 0]))
    if len(axes_of(labels)) > 1:
        return freeze(site, f"{describe(site.node)} splits channels over several axes")
    return Flow((labels,), "move", sizes=tuple(sizes))


@rule("Shape")
def shape(site: Site) -> Flow:
    """Harmless when only the sizes of other axes are taken from it."""
    labels = site.labels[0]
    if labels is None:
        return Flow((None,))
    axes = list(range(labels.ndim))[site.attr("start", 0) : site.attr("end", None)]
    readers = site.readers(site.node.outputs[0])
    taken = [axes] if site.exposed[0] else [_picked(site, reader, axes) for reader in readers]
    if any(axis in axes_of(labels) for picked in taken for axis in picked):
        return freeze(site, f"the number of channels is read by {describe(site.node)}")
    return Flow((None,), "move")


def _picked(site: Site, reader: Node, axes: list[int]) -> list[int]:
    """Which of the sizes of `axes` a reader of Shape's output takes; all, unless it is seen to take fewer."""
    given = [site.value(name) for name in reader.inputs[1:]]
    if reader.op == "Gather" and given[0] is not None:
        return [axes[int(i)] for i in np.ravel(given[0])]
    if reader.op == "Slice" and len(given) < 4:
        start, end = given[:2] or (reader.attrs["starts"], reader.attrs["ends"])
        if start is not None and end is not None:
            return axes[int(start[0]) : int(end[0])]
    return axes


def _moved(site: Site) -> Flow:
    labels = site.labels[0]
    if labels is None:
        return Flow((None,) * len(site.node.outputs))
    before, after = site.known_shape(0), site.known_output()
    if before is None or after is None:
        return freeze(site, f"{describe(site.node)} has a shape that cannot be inferred")
    moved = reshape_labels(labels, before, after)
    if moved is None:
        return freeze(site, f"{describe(site.node)} regroups channels in a way that is not understood")
    return Flow((moved,), "move")


def reshape_labels(labels: Labels, before: tuple[int, ...], after: tuple[int, ...]) -> Labels | None:
    """Labels of a tensor reshaped from `before` to `after`; None if the sizes do not match."""
    if prod(before) != prod(after) or 0 in before:
        return None
    ends_before, ends_after = np.cumprod(before), np.cumprod(after)
    cuts = sorted({*ends_before.tolist()} & {*ends_after.tolist()} - {1}) or [1]
    block_before = np.searchsorted(cuts, ends_before)
    block_after = np.searchsorted(cuts, ends_after)
    varying = {int(block_before[axis]) for axis in axes_of(labels)}
    expanded = [size if block in varying else 1 for size, block in zip(before, block_before, strict=True)]
    shape = [size if block in varying else 1 for size, block in zip(after, block_after, strict=True)]
    return np.broadcast_to(labels, expanded).reshape(shape)


def _element(site: Site, axis: int) -> tuple[str, int, int, int] | None:
    """Where the target size of `axis` is stored: (node key, input, element, value)."""
    stored = site.constant(1)
    if stored is not None:
        return site.node.key, 1, axis, int(stored[axis])
    concat = site.producer(site.node.inputs[1])
    if concat is None or concat.op != "Concat":
        return None
    at = 0
    for position, name in enumerate(concat.inputs):
        piece, size = site.value(name), site.size(name)
        if size is None or size[0] is None:
            return None
        if at <= axis < at + size[0]:
            return None if piece is None else (concat.key, position, axis - at, int(piece[axis - at]))
        at += size[0]
    return None
