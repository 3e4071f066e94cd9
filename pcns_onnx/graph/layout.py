"""Along which axis of each input the samples lie, from the names that exporters give to open sizes.

    x (N, 16), state (2, N, 128), sr ()     ->     x: 0, state: 1, sr: the same in every run

The samples are counted by a size whose name says so (N, batch, batch_size), else by the first axis that is open.
Inputs that have that size have their samples there. Where every first axis has a size of its own, the batch is fixed.
Sizes without names, and names of other meaning, leave a doubt, which the data settles (`data.placement`), or a run of
the model (`runtime.batching`): a graph of 34 nodes is one sample, not 34.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from pcns_onnx.graph.protobuf import TensorSpec

_WORDS = frozenset({"n", "b", "bs", "bsz", "nb"})
"""Names of a size that counts samples, beside all that speak of a batch."""
_AUTOMATIC = ("dynamic_axes", "unk__", "_dim_")
"""Exporters number sizes that nobody named; two of them may be the same."""


@dataclass(frozen=True)
class CarriedState:
    """A state that the caller carries from run to run: `output` gives back what `input` takes at the next one.

    Channels lie along `axes`. A cache (`is_cache`) gets longer from run to run, other states keep their shape. All that
    reads the input reads tensor `key` in its place (`editing.interface`).
    """

    input: str
    output: str
    key: str
    axes: tuple[int, ...]
    is_cache: bool = False


@dataclass(frozen=True)
class Layout:
    """`axes`: by input, the axis along which its samples lie, None where it is the same in every run.

    `symbol` is the name of the size that counts samples ('' where it has none), `fixed` the model's own batch.
    `tentative` are the inputs whose axis is a guess: their array may be the same in every run. The layout is
    `certain` where names or the caller say what counts samples. `whole`: what is fed at once is one sample,
    whatever its sizes. `stored` are inputs that the model had before they were made constants. `states`: those that the
    caller carries along and whose channels may go.
    """

    axes: Mapping[str, int | None]
    symbol: str = ""
    fixed: int | None = None
    tentative: frozenset[str] = frozenset()
    certain: bool = True
    whole: bool = False
    stored: frozenset[str] = frozenset()
    states: tuple[CarriedState, ...] = ()

    def as_whole(self) -> Layout:
        """The layout of a model that is fed one sample at a time, no axis of which counts samples."""
        return replace(self, axes=dict.fromkeys(self.axes), symbol="", fixed=None, whole=True)

    def without(self, names: Collection[str]) -> Layout:
        """The layout of the model with these inputs as constants."""
        axes = {name: axis for name, axis in self.axes.items() if name not in names}
        return replace(self, axes=axes, tentative=self.tentative - set(names), stored=self.stored | set(names))

    @property
    def batch(self) -> int:
        """A batch whose sizes show which axes follow it: the model's own, else 2; 1 where no axis counts samples."""
        return self.fixed or (1 if self.whole or all(axis is None for axis in self.axes.values()) else 2)

    def named_axis(self, spec: TensorSpec) -> int | None:
        """The axis of an output that has the name of the samples' size; None where none has."""
        has_one = not self.whole and self.symbol and spec.symbols.count(self.symbol) == 1
        return spec.symbols.index(self.symbol) if has_one else None


def layout_of(inputs: Sequence[TensorSpec], stated: Mapping[str, int | None] | None = None) -> Layout:
    """The layout that the names of sizes speak for; `stated` are axes that the caller knows."""
    stated = stated or {}
    symbol, certain = _symbol(inputs, stated)
    is_open = symbol is not None
    if not is_open:
        fixed = _fixed(inputs, stated)
        axes = {spec.name: stated.get(spec.name, _fixed_axis(spec, fixed)) for spec in inputs}
        certain = bool(stated) or len({spec.shape[:1] for spec in inputs}) < 2
        guessed = {s.name for s in inputs if axes[s.name] is not None and s.shape[0] != fixed} - stated.keys()
        return Layout(axes, "", fixed, frozenset(guessed), certain)
    axes, tentative = dict[str, int | None](), set[str]()
    for spec in inputs:
        axis, is_guess = _open_axis(spec, symbol or "")
        axes[spec.name] = stated.get(spec.name, axis)
        if is_guess and spec.name not in stated:
            tentative.add(spec.name)
    return Layout(axes, symbol or "", None, frozenset(tentative), certain)


def is_named(symbol: str) -> bool:
    """Whether a person named this size."""
    return bool(symbol) and not any(mark in symbol for mark in _AUTOMATIC)


def _is_batch(symbol: str) -> bool:
    return symbol.lower() in _WORDS or "batch" in symbol.lower()


def _symbol(inputs: Sequence[TensorSpec], stated: Mapping[str, int | None]) -> tuple[str | None, bool]:
    """The name of the size that counts samples, '' for one without, None where none is open; and whether it says so."""
    for spec in inputs:
        axis = stated.get(spec.name)
        if axis is not None and spec.shape[axis] is None:
            return _name(spec, axis), True
    for spec in inputs:
        for axis, symbol in enumerate(spec.symbols):
            if _is_batch(symbol) and spec.shape[axis] is None and spec.symbols.count(symbol) == 1:
                return symbol, True
    for spec in inputs:
        if spec.name not in stated and spec.shape and spec.shape[0] is None:
            return _name(spec, 0), False
    return None, False


def _name(spec: TensorSpec, axis: int) -> str:
    return spec.symbols[axis] if spec.symbols else ""


def _open_axis(spec: TensorSpec, symbol: str) -> tuple[int | None, bool]:
    """The axis of the samples where their number is open, and whether that is a guess."""
    if symbol and symbol in spec.symbols:
        return spec.symbols.index(symbol), False
    if spec.shape and spec.shape[0] is None:
        return 0, is_named(_name(spec, 0))
    free = [axis for axis, size in enumerate(spec.shape) if size is None]
    if len(free) == 1 and not is_named(_name(spec, free[0])):
        return free[0], True
    return None, False


def _fixed(inputs: Sequence[TensorSpec], stated: Mapping[str, int | None]) -> int | None:
    """The batch that the model is fixed at: the first size of its inputs, 1 where they differ and one has it."""
    known = [spec.shape[axis] for spec in inputs if (axis := stated.get(spec.name)) is not None]
    firsts = known or [spec.shape[0] for spec in inputs if spec.shape and spec.name not in stated]
    return 1 if 1 in firsts else next(iter(firsts), None)


def _fixed_axis(spec: TensorSpec, fixed: int | None) -> int | None:
    if spec.shape and (spec.shape[0] == fixed or fixed is None):
        return 0
    return spec.shape.index(1) if fixed == 1 and 1 in spec.shape else None
