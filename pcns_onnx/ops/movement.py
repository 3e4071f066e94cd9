"""Data movement: Flatten, Reshape, Squeeze, Unsqueeze, Transpose, Shape.

Movement acts on labels as it acts on data. A Reshape is first cut into the smallest blocks of
axes whose sizes match, so only axes that really merge or split are expanded.
"""

from __future__ import annotations

from math import prod

import numpy as np

from pcns_onnx.ops.facts import Flow, Frozen, Labels, Site, Size, axes_of, describe, freeze, rule


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
    axes = axes_of(labels)
    for reader in site.readers(0):
        index = site.constant_of(reader, 1) if reader.op == "Gather" else None
        if index is None or any(int(i) % labels.ndim in axes for i in np.ravel(index)):
            reason = f"the number of channels is read by {describe(site.node)}"
            return Flow((None,), frozen=(Frozen(labels, reason),))
    return Flow((None,), "move")


def _moved(site: Site) -> Flow:
    labels = site.labels[0]
    if labels is None:
        return Flow((None,) * len(site.node.outputs))
    before, after = site.known_shape(0), site.known_output()
    if before is None or after is None:
        return freeze(site, f"{describe(site.node)} has a shape that is not known (give --shape or --data)")
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
    concat, after = site.producer(1), site.known_output()
    if concat is None or concat.op != "Concat" or after is None:
        return None
    pieces = [site.constant_of(concat, position) for position in range(len(concat.inputs))]
    if sum(1 if piece is None else piece.size for piece in pieces) != len(after):
        return None
    at = 0
    for position, piece in enumerate(pieces):
        length = 1 if piece is None else int(piece.size)
        if at <= axis < at + length:
            return None if piece is None else (concat.key, position, axis - at, int(np.ravel(piece)[axis - at]))
        at += length
    return None
