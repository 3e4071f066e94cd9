"""LSTM, GRU and RNN: hidden unit j is one channel, carried by

- rows j, H+j, ... of W (D, kH, I), R (D, kH, H) and of both halves of B (D, 2kH), one for each of the k gates,
- column j of R, at the next step,
- peepholes P and initial states,
- the last axis of Y (S, D, B, H), Y_h and Y_c (D, B, H).

So the cell is a reader of itself. Each direction has units of its own; equally many stay in both, since Y has one H.
Whatever acts unit by unit rides along: activations, `clip`, `input_forget`, peepholes.

A state that is an input or an output of the model is a contract with the caller, and keeps H.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from pcns_onnx.graph.protobuf import array_of
from pcns_onnx.ops.facts import (
    Cell,
    ChannelCount,
    Frozen,
    Labels,
    Linear,
    OpContext,
    OpFacts,
    Tie,
    axes_of,
    describe,
    freeze,
)
from pcns_onnx.ops.recurrent.cell_rows import CellOp
from pcns_onnx.ops.registry import rule
from pcns_onnx.ops.sliding_window import form_of, reads_of

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""Rows of W per unit."""
LENGTHS, INITIAL_H, INITIAL_C, PEEPHOLES = 4, 5, 6, 7
"""Positions of inputs that a cell may have beside X, W, R and B."""
_FILLED = ("Expand", "Tile", "Identity", "Cast", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Gather")
"""Operators that put out nothing but zeros where their first input holds nothing else."""
_DEEP = 24


@rule(*GATES, operands="all")
def recurrent_layer(context: OpContext) -> OpFacts:
    """A cell: every unit is a channel."""
    node, gates = context.node, GATES[context.node.op]
    x, weight, again = (context.known_shape(position) for position in range(3))
    macs = prod(x[:2]) * (prod(weight) + prod(again)) if x and weight and again else 0
    if why := _refusal(context):
        return freeze(context, f"{describe(node)} {why}", macs=macs)
    assert weight is not None and again is not None, "they are stored"
    directions, hidden_size = weight[0], again[2]
    frozen = list[Frozen]()
    reads = reads_of(context, axis=2, rank=3, width=weight[2])
    if reads is None:
        labels = context.labels[0]
        assert labels is not None, "else it reads nothing"
        frozen.append(Frozen(labels, f"{describe(node)} reads channels along another axis"))
        reads = np.full(weight[2], -1, dtype=np.int64)
    hidden = context.fresh(directions * hidden_size).reshape(directions, hidden_size)
    ties, more, zeros, constants = _states(context, hidden)
    backward = (False, True) if directions == 2 else (_direction(context) == "reverse",)
    computed = (at for at in (LENGTHS, INITIAL_H) if _has(context, at) and context.constant(at) is None)
    linear = Linear(
        CellOp(directions, backward),
        weight=1,
        weight_axes=(1, 2),
        bias=3,
        reads=np.concatenate([part for own in hidden for part in (reads, own)]),
        writes=np.concatenate([np.tile(own, gates) for own in hidden]),
        cell=Cell(
            gates, hidden, constants=constants, zeros=zeros, varying=tuple(at for at in computed if at not in zeros)
        ),
    )
    state, steps = hidden[:, None, :], hidden[None, :, None, :]
    return OpFacts(
        (steps, state, state)[: len(node.outputs)],
        "reader",
        linear=linear,
        sizes=(ChannelCount(node.key, "hidden_size", 0, hidden[0]),),
        ties=ties,
        frozen=(*frozen, *more),
        macs=macs,
    )


def _refusal(context: OpContext) -> str:
    """Why a cell is left as it is; '' if it can be narrowed."""
    if context.attr("layout", 0):
        return "has its samples in front (layout 1), which onnxruntime does not run"
    for position, name in ((1, "W"), (2, "R")):
        if context.constant(position) is None:
            return form_of(context, position) or f"has weights that are computed, not stored ('{name}')"
        if why := form_of(context, position):
            return why
        if len(context.readers(context.node.inputs[position])) > 1:
            return "is a recurrent layer whose weights others read, too"
    if any(_has(context, at) and context.constant(at) is None for at in (3, PEEPHOLES)):
        return "has a bias or peepholes that are computed, not stored"
    weight, again = context.constant(1), context.constant(2)
    gates = GATES[context.node.op]
    assert weight is not None and again is not None, "they are stored"
    if weight.ndim != 3 or again.ndim != 3 or again.shape[1] != gates * again.shape[2]:
        return "has weights of sizes that its operator does not allow"
    return ""


def _states(
    context: OpContext, hidden: Labels
) -> tuple[tuple[Tie, ...], list[Frozen], tuple[int, ...], tuple[int, ...]]:
    """Of the initial states and the peepholes: what is tied, what stays, which hold zeros, which are stored."""
    ties, frozen, zeros, constants = list[Tie](), list[Frozen](), list[int](), list[int]()
    for at in (INITIAL_H, INITIAL_C, PEEPHOLES):
        if not _has(context, at):
            continue
        name, labels = context.node.inputs[at], context.labels[at]
        if labels is not None:
            why = f"{describe(context.node)} starts from '{name}', whose channels lie on other axes"
            if labels.ndim == 3 and set(axes_of(labels)) <= {0, 2} and labels.shape[0] in (1, len(hidden)):
                ties.append(Tie(np.broadcast_to(labels[:, 0, :], hidden.shape), hidden, why))
            else:
                frozen += [Frozen(labels, why), Frozen(hidden, why)]
        elif context.constant(at) is not None:
            constants.append(at)
        elif _is_zero(context, name):
            zeros.append(at)
        else:
            frozen.append(Frozen(hidden, _held(context, name)))
    return tuple(ties), frozen, tuple(zeros), tuple(constants)


def _held(context: OpContext, name: str) -> str:
    """Why the units stay where a computed state has no channels that could follow."""
    source, maker = name, context.producer(name)
    for _ in range(_DEEP):
        if maker is None:
            break
        if maker.op == "ConstantOfShape":
            return f"{describe(context.node)} starts from '{name}', which no layer makes"
        if maker.op in _FILLED and context.value(maker.inputs[0]) is not None:  # its size is computed, not the state
            stored = maker.inputs[0]
            return f"{describe(context.node)} starts from '{stored}', which is stored and repeated for every sample"
        varying = [item for item in maker.inputs if item and context.value(item) is None]
        source = varying[0] if varying else source
        maker = context.producer(source) if varying else None
    if maker is None and context.producer(source) is None:
        starts = f"the state '{source}' that {describe(context.node)} starts from"
        return f"{starts} is an input of the model: the caller makes it"
    return f"{describe(context.node)} starts from '{name}', which no layer makes"


def _is_zero(context: OpContext, name: str) -> bool:
    """Whether a tensor is filled with zeros, whatever its size."""
    pending = [name]
    for _ in range(_DEEP):
        if not pending:
            return True
        value, maker = context.value(pending[-1]), context.producer(pending[-1])
        name = pending.pop()
        if value is not None:
            if value.any():
                return False
        elif maker is None or maker.domain:
            return False
        elif maker.op == "ConstantOfShape":
            if np.any(_filling(maker.attrs.get("value"))):
                return False
        elif maker.op in _FILLED or maker.op == "Split":
            pending.append(maker.inputs[0])
        elif maker.op == "Concat":
            pending += maker.inputs
        else:
            return False
    return False


def _filling(value: Any) -> Any:
    """The number that a ConstantOfShape fills with; zero where none is given."""
    return 0 if value is None else array_of(value)


def _direction(context: OpContext) -> str:
    value = context.attr("direction", b"forward")
    return value.decode() if isinstance(value, bytes) else str(value)


def _has(context: OpContext, position: int) -> bool:
    return position < len(context.node.inputs) and bool(context.node.inputs[position])
