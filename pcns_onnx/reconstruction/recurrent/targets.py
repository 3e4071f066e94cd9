"""What a recurrent layer is solved from: its sequences in both models, and what its gates sum up in the original."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.dependency.layers import Layer
from pcns_onnx.graph import Graph, Node
from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.numerics.ridge import VALID
from pcns_onnx.ops.recurrent import CellOp, previous
from pcns_onnx.rewrite.recurrent_cells import cell_of, stored_cell
from pcns_onnx.runtime.executor import Sides

Floats = NDArray[Any]
Feeds = dict[str, Floats]

LENGTHS, INITIAL_H, INITIAL_C = 4, 5, 6
"""Positions of inputs of the node."""
ROOM = 1 << 27
"""Bytes of what gates sum up that are kept from one round to the next."""


def fed_by(graph: Graph, layer: Layer) -> list[str]:
    """The tensors that a layer takes in `graph`: its source, of a recurrent layer also its lengths and first states."""
    if layer.cell is None:
        return [layer.source]
    return [name for name in graph.node(layer.key).inputs if name and not graph.is_constant(name)]


@dataclass
class CellObserver:
    """What a recurrent layer is fed with in both models, and what it makes of that in the original, as `room` allows.

    Whole sequences: a cell runs over them again and again.
    """

    of_shrunk: Sequence[str]
    of_original: Sequence[str]
    layer: Layer
    room: int
    batches: dict[int, tuple[Feeds, Feeds]] = field(default_factory=dict)

    @classmethod
    def of(cls, original: Graph, shrunk: Graph, layer: Layer, room: int) -> CellObserver:
        """For a layer of these models."""
        return cls(fed_by(shrunk, layer), fed_by(original, layer), layer, room)

    def begin(self, sides: Sides) -> None:
        """There is nothing to settle."""

    def update(self, index: int, sides: Sides) -> None:
        """Take a batch in, if there is room."""
        shrunk, original = sides
        fed: Feeds = {name: to_numpy(shrunk[name]) for name in self.of_shrunk}
        whole: Feeds = {name: to_numpy(original[name]) for name in (*self.of_original, self.layer.output)}
        size = sum(array.nbytes for array in (*fed.values(), *whole.values()))
        if size <= self.room or not self.batches:
            self.room -= size
            self.batches[index] = fed, whole

    def merge(self, other: CellObserver) -> None:
        """Add what was observed of later batches."""
        self.batches |= other.batches


@dataclass(frozen=True)
class StepRows:
    """One batch: the shrunk cell's input x (S, B, I') and the state in front of every step `before` (S, D, B, H').

    `of_x` and `of_h` (S, D, B, kH') are what the original's gates take of input and state, `train` and `valid` (S, B)
    which steps count to solve on and to choose by.
    """

    x: Floats
    before: Floats
    of_x: Floats
    of_h: Floats
    train: NDArray[np.bool_]
    valid: NDArray[np.bool_]

    def both(self, direction: int) -> Floats:
        """[x h] of a direction, (S, B, I' + H')."""
        return np.concatenate([self.x, self.before[:, direction]], axis=-1)


@dataclass
class CellSequences:
    """The sequences of one cell in both models; `stays` says which classes do.

    What the original's gates sum up is kept for the next round where `room` bytes hold it, else worked out again.
    """

    original: Graph
    shrunk: Graph
    layer: Layer
    observed: CellObserver
    stays: NDArray[np.bool_]
    room: int = ROOM
    _targets_of: dict[int, tuple[Floats, Floats]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        op = self.layer.linear.op
        assert isinstance(op, CellOp), "recurrent layers have one"
        self.backward = op.backward
        self.units = [np.flatnonzero(self.stays[own]) for own in cell_of(self.layer).hidden]
        self.whole, self.kept = stored_cell(self.original, self.layer), stored_cell(self.shrunk, self.layer)
        self.batches = [self.observed.batches[index] for index in sorted(self.observed.batches)]
        self.aside = [_kept_aside(index, next(iter(fed.values()))) for index, (fed, _) in enumerate(self.batches)]

    @cached_property
    def node(self) -> Node:
        """The cell in the original."""
        return self.original.node(self.layer.key)

    @property
    def gates(self) -> int:
        """Rows of W per unit."""
        return int(self.whole.r.shape[1]) // self.whole.units

    @property
    def reset(self) -> bool:
        """Whether it has a reset gate."""
        return self.node.op == "GRU"

    @property
    def is_reset_last(self) -> bool:
        """Whether what R makes of the state is reset, and not the state."""
        return bool(self.node.attrs.get("linear_before_reset", 0))

    def _input(self, graph: Graph, feeds: Feeds, position: int) -> Floats | None:
        """An input of the cell, fed or stored; None where there is none."""
        inputs = graph.node(self.layer.key).inputs
        name = inputs[position] if position < len(inputs) else ""
        return feeds[name] if name in feeds else graph.constant(name) if name else None

    def _before(self, graph: Graph, feeds: Feeds, states: Floats) -> Floats:
        """(S, D, B, H): the states in front of every step."""
        first = self._input(graph, feeds, INITIAL_H)
        return np.asarray(previous(states, self.backward, self._input(graph, feeds, LENGTHS), first), np.float64)

    def _targets(self, batch: int) -> tuple[Floats, Floats]:
        """W x + Wb and R h + Rb of the kept units' gates, (S, D, B, kH') each; where a candidate reads r h, of that."""
        if batch in self._targets_of:
            return self._targets_of[batch]
        whole = self.batches[batch][1]
        x = np.asarray(self._input(self.original, whole, 0), np.float64)
        before = self._before(self.original, whole, whole[self.layer.output])
        of_input, carried, size = [], [], self.whole.units
        for d, own in enumerate(self.units):
            w, r, wb, rb = (getattr(self.whole, part)[d] for part in ("w", "r", "wb", "rb"))
            rows = (np.arange(self.gates)[:, None] * size + own).reshape(-1)
            of_x, of_h = x @ w[rows].T + wb[rows], before[:, d] @ r[rows].T + rb[rows]
            if self.reset and not self.is_reset_last:
                gate, last = slice(size, 2 * size), 2 * size + own
                sums = x @ w[gate].T + wb[gate] + before[:, d] @ r[gate].T + rb[gate]
                of_h[..., 2 * len(own) :] = (self.gate_of(sums, d) * before[:, d]) @ r[last].T + rb[last]
            of_input.append(of_x)
            carried.append(of_h)
        targets = np.stack(of_input, axis=1), np.stack(carried, axis=1)
        self.room -= sum(part.nbytes for part in targets)
        if self.room > 0:
            self._targets_of[batch] = targets
        return targets

    def gate_of(self, s: Floats, direction: int) -> Floats:
        """The function of the gates."""
        clip = self.node.attrs.get("clip")
        return self._gate(direction)(s if clip is None else np.clip(s, -clip, clip))

    def _gate(self, direction: int) -> Callable[[Floats], Floats]:
        """The function of the gates of a direction."""
        names = [_text(name) for name in self.node.attrs.get("activations", ())]
        each = len(names) // len(self.units)
        return _GATES.get(names[direction * each] if names else "Sigmoid", _sigmoid)

    @property
    def is_known(self) -> bool:
        """Whether what the candidate of a GRU reads can be worked out: it takes the function of its gates."""
        names = [_text(name) for name in self.node.attrs.get("activations", ())]
        has_own = any(name in self.node.attrs for name in ("activation_alpha", "activation_beta"))
        return not self.reset or self.is_reset_last or (not has_own and {*names[::2]} <= _GATES.keys())

    @cached_property
    def expected(self) -> list[Floats]:
        """By batch, the original's states of the kept units, which are aimed at, (S, D, B, H')."""
        return [
            np.stack([whole[self.layer.output][:, d][..., own] for d, own in enumerate(self.units)], axis=1)
            for _, whole in self.batches
        ]

    def steps(self, states: Sequence[Floats] | None = None) -> Iterator[StepRows]:
        """What the cell is solved from, batch by batch, with these `states` of its own; the original's without them."""
        own = self.expected if states is None else states
        masks = zip(self.masks(False), self.masks(True), strict=True)
        for at, ((fed, _), before, (train, valid)) in enumerate(zip(self.batches, own, masks, strict=True)):
            x = np.asarray(self._input(self.shrunk, fed, 0), np.float64)
            yield StepRows(x, self._before(self.shrunk, fed, before), *self._targets(at), train, valid)

    def first_of(
        self, fed: Feeds, chosen: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """What the shrunk cell takes of some samples: X (S, B, I'), and the states h and c that it starts from."""
        x = np.asarray(self._input(self.shrunk, fed, 0), np.float32)[:, chosen]
        whole = np.zeros((len(self.units), x.shape[1], self.kept.units), dtype=np.float32)
        states = (self._input(self.shrunk, fed, at) for at in (INITIAL_H, INITIAL_C))
        h, c = (
            whole if state is None else whole + (state if state.shape[1] == 1 else state[:, chosen]) for state in states
        )
        return x, h, c

    def masks(self, aside: bool) -> list[NDArray[np.bool_]]:
        """By batch, (S, B): which steps count, of samples kept `aside` or of the others."""
        masks = []
        for (fed, _), own in zip(self.batches, self.aside, strict=True):
            steps = np.asarray(self._input(self.shrunk, fed, 0)).shape[0]
            mask = np.repeat((own if aside else ~own)[None, :], steps, axis=0)
            lengths = self._input(self.shrunk, fed, LENGTHS)
            if lengths is not None:
                mask &= np.arange(steps)[:, None] < lengths.reshape(1, -1)
            masks.append(mask)
        return masks

    @property
    def rows(self) -> int:
        """Steps that it is solved on."""
        return int(sum(mask.sum() for mask in self.masks(False)))


def _kept_aside(index: int, fed: Floats) -> NDArray[np.bool_]:
    """Which samples (B,) of a batch are kept aside: one in `VALID`; of batches of fewer, every `VALID`th."""
    samples = fed.shape[1]
    if samples < VALID:
        return np.full(samples, index % VALID == VALID - 1)
    return np.asarray(np.arange(samples) < samples // VALID)


def _sigmoid(s: Floats) -> Floats:
    return 0.5 * (1.0 + np.tanh(0.5 * s))


_GATES: dict[str, Callable[[Floats], Floats]] = {
    "Sigmoid": _sigmoid,
    "Tanh": np.tanh,
    "Relu": lambda s: np.maximum(s, 0.0),
    "HardSigmoid": lambda s: np.clip(0.2 * s + 0.5, 0.0, 1.0),
}
"""Functions of gates by the operator's names for them."""


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
