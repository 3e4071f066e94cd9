"""Whether padding counts for nothing, found out by running the model: once as fed, once with other padding, once cut.

    f(x) = f(x')  where mask = 1,   x' = x with what mask = 0 stands at replaced by what else is in the batch

Where outputs do not move under that, what a mask masks is padding, and errors there are none. Where they do not move
either when columns that are padding in all samples are taken away, these may be cut off: the model must not count its
positions from the padded end, nor take means over all of them. The same two runs tell where inner tensors have their
positions: the rows that move are those of padding, and no others may.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.data.batch import Batch
from pcns_onnx.data.dataset import Dataset
from pcns_onnx.data.padding import Live, Padding, PositionAxes
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph, TensorSpec
from pcns_onnx.graph.queries import names_of
from pcns_onnx.numerics.arrays import Array, to_numpy
from pcns_onnx.runtime.activations import inputs_of
from pcns_onnx.runtime.engine import Engine, Session, Tensors

SCANNED = 4096
"""Samples among which padding is looked for."""
TRIED = 6
"""Padded samples that are tried, of as different lengths as there are."""
_SAME = 1e-4
"""Largest difference, of the largest value, by which kernels of other shapes may round."""
_MISSHAPEN = "--mask '{}' is not of shape (samples, positions): name an input that is"
_TENSORS = 12
"""Inner tensors that are looked at in one run."""


@dataclass(frozen=True)
class PaddingProof:
    """What is known of padding, None where nothing is; and what is to be said of it, if anything."""

    padding: Padding | None
    note: str | None = None


def find_padding(engine: Engine, graph: Graph, dataset: Dataset, named: str | None = None) -> PaddingProof:
    """What of the samples is padding for `graph`, as an input of 0 and 1 has it that is `named` or called a mask.

    Raises `InputError` where the `named` one is no such input, or what it masks counts.
    """
    spec = _mask_of(graph, named)
    if spec is None:
        return PaddingProof(None)
    if dataset.layout is None or dataset.layout.whole or dataset.layout.axes.get(spec.name) != 0:
        if named is not None:
            raise InputError(_MISSHAPEN.format(named))
        return PaddingProof(None)
    tried = _tried(dataset, spec.name, graph.layout.fixed)
    if tried is None and named:
        raise InputError(f"--mask '{named}' holds other values than 0 and 1: name an input that says what counts")
    if tried is None or not tried.size:
        return PaddingProof(None)
    padding = Padding(spec.name, _shared_axes(graph, spec), False, False, (tried, tried))
    try:
        session = engine.session(graph.program())
        session.run(tried.feeds)
    except InputError:
        return PaddingProof(None)  # the error comes up where the model is needed
    try:
        return _proven(session, replace(padding, pair=(tried, _changed(tried, padding))))
    except _CountsError as counts:
        if named:
            raise InputError(f"--mask '{named}' cannot be used: {counts}") from None
        return PaddingProof(None, f"padding counts like all else, since {counts}")


def shared_padding(engine: Engine, graph: Graph, padding: Padding) -> PaddingProof:
    """What another model of the same inputs and outputs has in common with the one that `padding` was found of."""
    try:
        proof = _proven(engine.session(graph.program()), replace(padding, left=False, right=False, places={}))
    except _CountsError as counts:
        return PaddingProof(None, f"padding counts like all else, since in the second model {counts}")
    own = proof.padding
    assert own is not None, "what is proven is there"
    if any(padding.places.get(name) != place for name, place in own.places.items()):
        return PaddingProof(
            None, "padding counts like all else, since outputs of the two models have it in other places"
        )
    return PaddingProof(replace(own, left=own.left and padding.left, right=own.right and padding.right))


def find_places(engine: Engine, graph: Graph, padding: Padding, names: Iterable[str]) -> None:
    """Find out where tensors of `graph` have their positions; kept in `padding.places`."""
    pair = tuple(padding.cut(batch) for batch in padding.pair)
    pair = pair if not padding.live(pair[0].feeds).all() else padding.pair
    live = padding.live(pair[0].feeds)
    wanted = [name for name in dict.fromkeys(names) if name and name not in padding.places]
    for some in (wanted[start : start + _TENSORS] for start in range(0, len(wanted), _TENSORS)):
        fed = {name: _moved(*(batch.feeds[name] for batch in pair)) for name in some if name in pair[0].feeds}
        padding.places.update({name: _place_of(fed[name], live) if name in fed else None for name in some})
        computed = [name for name in some if name in graph.producers]
        if not computed:
            continue
        session = engine.session(graph.extract(inputs_of(graph), computed).program())
        first, second = (session.run(batch.feeds) for batch in pair)
        for name in computed:
            if _is_array(first[name]) and first[name].shape == second[name].shape:
                padding.places[name] = _place_of(_moved(first[name], second[name]), live)


class _CountsError(Exception):
    """Why what is masked is no padding."""


def _mask_of(graph: Graph, named: str | None) -> TensorSpec | None:
    """The input (N, S) that is `named`, or the only one that is called a mask."""
    if named is not None:
        spec = next((spec for spec in graph.inputs if spec.name == named), None)
        if spec is None:
            raise InputError(f"--mask names '{named}', which is no input: the model has {names_of(graph)}")
        if len(spec.shape) != 2 or spec.dtype.kind not in "biuf":
            raise InputError(_MISSHAPEN.format(named))
        return spec
    called = [spec for spec in graph.inputs if "mask" in spec.name.lower()]
    return called[0] if len(called) == 1 and len(called[0].shape) == 2 and called[0].dtype.kind in "biuf" else None


def _shared_axes(graph: Graph, mask: TensorSpec) -> dict[str, tuple[int, ...]]:
    """By input, the axes that have the name of the mask's positions; none where these have none, or a fixed size."""
    symbol = mask.symbols[1] if mask.symbols and mask.shape[1] is None else ""
    if not symbol or symbol == graph.layout.symbol:
        return {}
    axes = {spec.name: tuple(at for at, own in enumerate(spec.symbols) if own == symbol) for spec in graph.inputs}
    return {name: own for name, own in axes.items() if own}


def _tried(dataset: Dataset, mask: str, fixed: int | None) -> Batch | None:
    """Some padded samples, as many as can be run at once; none (size 0) without padding, None for other values."""
    scanned = 0
    for batch in dataset.batches(fixed or (1 if dataset.is_single else 64)):
        values = np.asarray(batch.feeds[mask])
        if not ((values == 0) | (values == 1)).all():
            return None
        counts, scanned = (values != 0).sum(axis=1), scanned + batch.size
        padded = np.flatnonzero((counts < values.shape[1]) & (counts > 0))
        if len(padded) and (fixed is None or batch.size == fixed):
            if fixed is not None or dataset.is_single:
                return batch
            order = padded[np.argsort(counts[padded], kind="stable")]
            return batch.rows(np.unique(order[np.linspace(0, len(order) - 1, TRIED).round().astype(int)]))
        if scanned >= SCANNED:
            break
    return batch.rows(slice(0, 0))


def _changed(batch: Batch, padding: Padding) -> Batch:
    """The batch with values from elsewhere in it where nothing counts."""
    live, feeds = padding.live(batch.feeds), dict(batch.feeds)
    generator, differs = np.random.default_rng(0), False
    for name, array in batch.feeds.items():
        axes = padding.place(batch, name)
        if axes is None:
            continue
        moved = np.moveaxis(array, axes, (0, 1)).copy()
        pool = moved[live]
        moved[~live] = pool[generator.integers(len(pool), size=int((~live).sum()))]
        feeds[name] = np.ascontiguousarray(np.moveaxis(moved, (0, 1), axes))
        differs |= not np.array_equal(feeds[name], array)
    if not differs:
        raise _CountsError(f"no input has other values where '{padding.mask}' is 0, so that nothing can be tried")
    return replace(batch, feeds=feeds)


def _proven(session: Session, padding: Padding) -> PaddingProof:
    """What two runs say, and two more with the padding cut off; raises `_CountsError`."""
    batch, changed = padding.pair
    live = padding.live(batch.feeds)
    whole = session.run(batch.feeds)
    try:
        other = session.run(changed.feeds)
    except InputError:
        raise _CountsError(f"the model does not run with other values under '{padding.mask}'") from None
    places = dict[str, PositionAxes | None]()
    for name, values in whole.items():
        if not _is_array(values) or values.shape != other[name].shape:
            raise _CountsError(f"output '{name}' has not the same size with other values under '{padding.mask}'")
        moved = _moved(values, other[name])
        places[name] = _place_of(moved, live)
        if places[name] is None and moved.any():
            raise _CountsError(f"output '{name}' changes with what '{padding.mask}' masks")
    padding = replace(padding, places=places)
    ends = [_is_same_cut(session, end, whole) for end in (replace(padding, left=True), replace(padding, right=True))]
    proven = replace(padding, left=ends[0] is None, right=ends[1] is None)
    note = f"what '{padding.mask}' masks does not count: "
    if proven.cuts:
        return PaddingProof(proven, f"{note}batches are cut to their longest sample; errors on padding do not count")
    why = next((f"; it is not cut off, since {end}" for end in ends if end), "")
    return PaddingProof(proven, f"{note}errors on padding do not count{why}")


def _is_same_cut(session: Session, padding: Padding, whole: Tensors) -> str | None:
    """None where outputs are the same for what counts without the padding of one end; '' where there is none of it."""
    batch = padding.pair[0]
    cut = padding.cut(batch)
    if cut is batch:
        return ""
    first, last = padding.extents(batch)
    columns = slice(int(first.min()), int(last.max()))
    live, all_live = padding.live(cut.feeds), padding.live(batch.feeds)
    try:
        parts = session.run(cut.feeds)
    except InputError:
        return "the model does not run without it"
    for name, part in parts.items():
        place = padding.places[name]
        full = _cut_as(to_numpy(whole[name]), to_numpy(part), place, all_live, columns)
        if full is None or (place is not None and not place.fits(part.shape, live)):
            return f"output '{name}' has another size without it"
        sides = [full, to_numpy(part)]
        if place is not None:
            sides = [place.only(side, live) for side in sides]
        if _moved(*sides).any():
            return f"output '{name}' changes"
    return None


def _cut_as(
    full: NDArray[np.generic], part: NDArray[np.generic], place: PositionAxes | None, live: Live, columns: slice
) -> NDArray[np.generic] | None:
    """An output of all positions (those of `live`) at `columns` of them; None where it has not the size of `part`."""
    if full.ndim != part.ndim:
        return None
    if place is not None and place.positions is None:
        split = full.reshape(*full.shape[: place.samples], *live.shape, *full.shape[place.samples + 1 :])
        full = split.take(range(columns.start, columns.stop), place.samples + 1)
        return full.reshape(part.shape) if full.size == part.size else None
    length = live.shape[1]
    sizes = zip(full.shape, part.shape, strict=True)
    full = full[tuple(columns if size == length and size != own else slice(None) for size, own in sizes)]
    return full if full.shape == part.shape else None


def _is_array(values: Array) -> bool:
    return hasattr(values, "shape") and getattr(values, "dtype", np.dtype("O")).kind in "biuf"


def _moved(a: Array, b: Array) -> NDArray[np.bool_]:
    """Where two tensors differ by more than rounding."""
    first, second = to_numpy(a), to_numpy(b)
    if first.dtype.kind != "f":
        return np.asarray(first != second)
    known = np.abs(first[np.isfinite(first)].astype(np.float64))
    scale = float(known.max(initial=0.0))
    with np.errstate(invalid="ignore"):
        close = np.abs(first.astype(np.float64) - second) <= _SAME * scale
    return np.asarray(~(close | (first == second) | (np.isnan(first) & np.isnan(second))))


def _place_of(moved: NDArray[np.bool_], live: Live) -> PositionAxes | None:
    """The place by which something moves where nothing counts, and nothing elsewhere."""
    if not moved.any():
        return None
    for place in _places(moved.ndim):
        if place.fits(moved.shape, live) and not (moved & place.spread(live, moved.ndim)).any():
            return place
    return None


def _places(rank: int) -> Iterator[PositionAxes]:
    axes: Sequence[int] = range(rank)
    yield from (
        PositionAxes(*pair) for pair in sorted(permutations(axes, 2), key=lambda pair: (pair[0] > pair[1], pair))
    )
    yield from (PositionAxes(axis, None) for axis in axes)
