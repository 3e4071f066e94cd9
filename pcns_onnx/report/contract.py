"""What a caller must know of states that have got narrower: both shapes, and what of a saved state is left."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from pcns_onnx.graph import Array, Graph, TensorSpec
from pcns_onnx.rewrite.contract import shapes_of_states

Size = int | str


class KeptPlaces(msgspec.Struct, frozen=True):
    """Along `axis` these `places` are left; where rows keep places of their own, those of row `row` of axis `of`."""

    axis: int
    places: list[int]
    of: int | None = None
    row: int | None = None


class NarrowedState(msgspec.Struct, frozen=True):
    """A state that the caller carries from `output` to `input`: its sizes before and after, names for open ones.

    What of a saved state is left is said axis by axis, or row by row (`kept`): `numpy.take(state, places, axis)`.
    `narrow` does so.
    """

    input: str
    output: str
    old: list[Size]
    new: list[Size]
    kept: list[KeptPlaces]

    def narrow(self, state: Array) -> Array:
        """What is left of a state that was saved, (sizes `old`) -> (sizes `new`)."""
        rows = list[Array]()
        for kept in self.kept:
            if kept.of is None or kept.row is None:
                state = np.take(state, kept.places, axis=kept.axis)
            else:
                rows.append(np.take(np.take(state, [kept.row], axis=kept.of), kept.places, axis=kept.axis))
        return np.concatenate(rows, axis=self.kept[0].of) if rows else state

    def __str__(self) -> str:
        old, new = (" x ".join(map(str, sizes)) for sizes in (self.old, self.new))
        return f"the contract changes: state '{self.input}' (given back as '{self.output}') is {new}, it was {old}"


def narrowed_states(original: Graph, small: Graph) -> list[NarrowedState]:
    """The states that are narrower in `small`, whose states are open, in the order of the inputs."""
    specs = {spec.name: spec for spec in original.inputs}
    ends, rows = {state.input: state.output for state in small.layout.states}, []
    for name, (old, places) in shapes_of_states(small).items():
        sizes = _sizes(specs[name])
        new = [places.shape[axis] if old[axis] > 1 else size for axis, size in enumerate(sizes)]
        rows.append(NarrowedState(name, ends[name], sizes, new, list(_kept(old, places))))
    return rows


def _sizes(spec: TensorSpec) -> list[Size]:
    symbols = spec.symbols or ("",) * len(spec.shape)
    return [(symbol or "?") if size is None else size for size, symbol in zip(spec.shape, symbols, strict=True)]


def _kept(old: Sequence[int], places: NDArray[np.int64]) -> list[KeptPlaces]:
    coordinates = np.unravel_index(places, old)
    axes = [axis for axis, size in enumerate(old) if size > 1]
    along = {axis: np.moveaxis(coordinates[axis], axis, -1).reshape(-1, places.shape[axis]) for axis in axes}
    if all((rows == rows[0]).all() for rows in along.values()):
        narrowed = (axis for axis in axes if places.shape[axis] < old[axis])
        return [KeptPlaces(axis, along[axis][0].tolist()) for axis in narrowed]
    axis = next(axis for axis in axes if not (along[axis] == along[axis][0]).all())
    of = next(other for other in axes if other != axis)
    return [KeptPlaces(axis, row.tolist(), of, number) for number, row in enumerate(along[axis])]
