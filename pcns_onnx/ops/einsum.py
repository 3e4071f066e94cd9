"""Einsum of two operands that is a MatMul in disguise: a layer, or a product of two computed tensors.

With a stored operand W and a computed one x,

    y[p, k] = sum_c W[k, c] x[p, c]

is a layer: c are the indices that are summed over, k those that W brings to the output, p all others. W may
have its axes in any order, and several for k or c: exporters write the projection to all heads of attention as
'btd,dnh->btnh' and the one back as 'btnh,nhd->btd'. As where a Reshape splits channels, the same places go in
every head then (or whole heads).

Of two computed operands one index may be summed over: 'bhid,bhjd->bhij' (Q Kᵀ), 'bhij,bhjd->bhid' (P V).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.graph import Array, Node
from pcns_onnx.numerics.arrays import namespace_of
from pcns_onnx.ops.facts import Heads, Labels, Linear, OpContext, OpFacts, axes_of, describe, freeze
from pcns_onnx.ops.linear import Operand, product, rows_of
from pcns_onnx.ops.registry import rule
from pcns_onnx.ops.sliding_window import alike, form_of
from pcns_onnx.ops.unsupported import MIXES

Term = tuple[str, ...]
"""The indices of a tensor, one for each axis; '.' stands for an ellipsis."""
_ELLIPSIS = "."


@dataclass(frozen=True)
class Equation:
    """The indices of the operands and of the result."""

    operands: tuple[Term, ...]
    result: Term

    @classmethod
    def of(cls, node: Node) -> Equation:
        """As the node has it; a result that is left out has the indices that stand once, in alphabetical order."""
        equation = node.attrs["equation"]
        text = equation.decode() if isinstance(equation, bytes) else str(equation)
        left, arrow, right = text.replace(" ", "").replace("...", _ELLIPSIS).partition("->")
        operands = tuple(tuple(term) for term in left.split(","))
        every = list(chain(*operands))
        implied = [index for index in sorted(set(every)) if every.count(index) == 1 or index == _ELLIPSIS]
        return cls(operands, tuple(right) if arrow else tuple(implied))

    @property
    def is_diagonal(self) -> bool:
        """Whether an index stands twice in one term."""
        return any(len(set(term)) < len(term) for term in (*self.operands, self.result))

    def expanded(self, ranks: tuple[int, ...]) -> Equation:
        """With an index for every axis that an ellipsis stands for, counted from the last of these."""
        counts = [rank - len(term) + 1 for term, rank in zip(self.operands, ranks, strict=True)]
        operands = tuple(_expanded(term, count) for term, count in zip(self.operands, counts, strict=True))
        if any(len(term) != rank for term, rank in zip(operands, ranks, strict=True)):
            raise ValueError("the terms of the equation are not as long as its operands have axes")
        most = max((n for term, n in zip(self.operands, counts, strict=True) if _ELLIPSIS in term), default=0)
        return Equation(operands, _expanded(self.result, most))


def _expanded(term: Term, count: int) -> Term:
    named = [_ELLIPSIS + str(number) for number in reversed(range(count))]
    return tuple(chain(*(named if index == _ELLIPSIS else [index] for index in term)))


@dataclass(frozen=True)
class LayerForm:
    """Which operand is the weight, of what shape; the indices that it sums over and those that it makes."""

    weight: int
    shape: tuple[int, ...]
    equation: Equation
    summed: Term
    written: Term

    @classmethod
    def of(cls, node: Node, value: Callable[[str], Array | None]) -> LayerForm | None:
        """From the node and the constants by name; None where it is no layer."""
        shapes = [None if (constant := value(name)) is None else constant.shape for name in node.inputs]
        at = 0 if shapes[0] is not None else 1
        shape = shapes[at] if len(shapes) == 2 else None
        if shape is None or shapes[1 - at] is not None:
            return None
        equation = Equation.of(node)
        own, other, result = equation.operands[at], equation.operands[1 - at], equation.result
        if len(own) == len(shape) + 1 and _ELLIPSIS in own:  # an ellipsis that stands for nothing
            own = tuple(index for index in own if index != _ELLIPSIS)
        summed = tuple(index for index in other if index in own and index not in result)
        written = tuple(index for index in result if index in own and index not in other)
        is_layer = (
            bool(summed and written)
            and not equation.is_diagonal
            and len(own) == len(shape)
            and set(own) == {*summed, *written}
            and set(other) - set(summed) == set(result) - set(written)
            and _ELLIPSIS not in result[result.index(written[0]) :]
        )
        return cls(at, shape, equation, summed, written) if is_layer else None

    @property
    def own(self) -> Term:
        """The indices of the weight."""
        return tuple(index for index in self.equation.operands[self.weight] if index != _ELLIPSIS)

    @property
    def sizes(self) -> dict[str, int]:
        """Of the weight's indices."""
        return dict(zip(self.own, self.shape, strict=True))


def _bias_shape(node: Node, value: Callable[[str], Array | None]) -> tuple[int, ...] | None:
    form = LayerForm.of(node, value)
    if form is None:
        return None
    result = form.equation.result
    return tuple(form.sizes[index] if index in form.written else 1 for index in result[result.index(form.written[0]) :])


@dataclass(frozen=True)
class EinsumOp:
    """Rows of x and y in one order of positions; `x`, `y` and `w` are axes as (positions..., c...) and (k..., c...).

    The last axes of c and of k are those that channels go from. `reads` and `writes` say on how many axes they lie.
    """

    x: tuple[int, ...]
    y: tuple[int, ...]
    w: tuple[int, ...]
    reads: int
    writes: int
    mixed: bool

    conv_groups = 1
    taps = 1
    padded = False

    @property
    def axis(self) -> int:
        """The one that channels go from."""
        return self.x[-1]

    def part(self, block: int) -> EinsumOp:
        """There is one block."""
        return self

    @property
    def layout(self) -> tuple[str, tuple[int, ...], int]:
        """The order of the weight's axes, and how many of them are outputs."""
        return "einsum", self.w, self.writes

    def matrix(self, weight: Array) -> Array:
        """The weight's own layout -> (K, C)."""
        moved = np.transpose(weight, self.w)
        return moved.reshape(prod(moved.shape[: self.writes]), -1)

    def weight(self, matrix: Array, like: Array) -> Array:
        """(K, C) -> the weight's own layout, where the axes that channels go from may have another size."""
        k, c = self.w[: self.writes], self.w[self.writes :]
        heads_k, heads_c = ([like.shape[axis] for axis in axes[:-1]] for axes in (k, c))
        rows, columns = (size // prod(heads) for size, heads in zip(matrix.shape, (heads_k, heads_c), strict=True))
        return np.transpose(matrix.reshape(*heads_k, rows, *heads_c, columns), np.argsort(self.w))

    def owners(self, reads: Labels) -> Labels:
        """One column per channel."""
        return reads

    def grid(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Sizes of the axes between samples and channels."""
        return tuple(x_shape[axis] for axis in self.x[1 : -self.reads])

    def positions(self, x_shape: tuple[int, ...]) -> int:
        """Rows per sample."""
        return 1 if self.mixed else prod(self.grid(x_shape))

    def positions_of(self, y_shape: tuple[int, ...]) -> int:
        """Rows per sample."""
        return 1 if self.mixed else prod(y_shape[axis] for axis in self.y[1 : -self.writes])

    def places(self, x_shape: tuple[int, ...], at: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Every position reads itself."""
        return (np.arange(self.positions(x_shape)) if at is None else at)[:, None]

    def inputs(self, x: Any, at: NDArray[np.int64] | None) -> Any:
        """Rows (R, C); `at` picks positions within each sample."""
        return _flat_rows(x, self.x, self.reads, at)

    def outputs(self, y: Any, at: NDArray[np.int64] | None) -> Any:
        """Rows (R, K)."""
        return _flat_rows(y, self.y, self.writes, at)


def _flat_rows(tensor: Any, order: tuple[int, ...], channels: int, at: NDArray[np.int64] | None) -> Any:
    """Rows of a tensor whose axes in this `order` end with as many of `channels`."""
    xp = namespace_of(tensor)
    moved = xp.permute_dims(tensor, order)
    width = prod(int(size) for size in moved.shape[-channels:])
    return rows_of(xp.reshape(moved, (*moved.shape[:-channels], width)), at)


@rule("Einsum", operands="all", bias_behind=_bias_shape)
def einsum(context: OpContext) -> OpFacts:
    """A layer or a product; what is neither keeps the channels that enter it."""
    if any(shape is None for shape in context.shapes):
        return freeze(context, f"{describe(context.node)} has an input of unknown rank", macs=0)
    equation = Equation.of(context.node).expanded(tuple(len(shape or ()) for shape in context.shapes))
    macs = _multiply_adds(context, equation)
    if len(equation.operands) != 2:
        return freeze(context, f"{describe(context.node)} {MIXES}", macs=macs)
    if why := form_of(context, 0) or form_of(context, 1):
        return freeze(context, f"{describe(context.node)} {why}", macs=macs)
    if form := LayerForm.of(context.node, context.value):
        return _layer(context, form, equation, macs)
    is_computed = all(constant is None for constant in context.constants)
    facts = _product(context, equation, macs) if is_computed and not equation.is_diagonal else None
    return facts or freeze(context, f"{describe(context.node)} {MIXES}", macs=macs)


def _multiply_adds(context: OpContext, equation: Equation) -> int:
    """One for every value of all indices together; 0 where a size is not known."""
    sizes: dict[str, int] = {}
    for term, shape in zip(equation.operands, context.shapes, strict=True):
        for index, size in zip(term, shape or (), strict=True):
            sizes[index] = 0 if size is None else max(size, sizes.get(index, 1))
    return prod(sizes.values())


def _layer(context: OpContext, form: LayerForm, equation: Equation, macs: int) -> OpFacts:
    source, sizes, own, result = 1 - form.weight, form.sizes, form.own, equation.result
    term, shape, labels = equation.operands[source], context.shapes[source] or (), context.labels[source]
    lying = () if labels is None else tuple(term[axis] for axis in axes_of(labels))
    fits = all(shape[term.index(index)] in (None, sizes[index]) for index in form.summed)
    if not fits or not set(lying) <= set(form.summed):
        return freeze(context, f"{describe(context.node)} reads channels along another axis", macs=macs)
    written = _kept_last(form.written, form.written, context.heads)
    summed = _kept_last(form.summed, lying, context.heads)
    positions = tuple(index for index in term if index not in summed)
    order = tuple(map(term.index, (*positions, *summed)))
    writes = context.fresh(prod(sizes[index] for index in written))
    entering = np.full((1,) * len(term), -1, dtype=np.int64) if labels is None else np.transpose(labels, order)
    entering = entering.reshape(entering.shape[len(positions) :])  # no channels lie along positions
    reads = np.broadcast_to(entering, [sizes[index] for index in summed]).reshape(-1)
    in_order = positions[:1] == term[:1] == result[:1] and tuple(i for i in result if i not in written) == positions
    op = EinsumOp(
        x=order,
        y=tuple(map(result.index, (*positions, *written))),
        w=tuple(map(own.index, (*written, *summed))),
        reads=len(summed),
        writes=len(written),
        mixed=not in_order or any(context.batched[source]),
    )
    linear = Linear(
        op,
        weight=form.weight,
        weight_axes=(own.index(written[-1]), own.index(summed[-1])),
        bias=None,
        reads=reads,
        writes=writes,
        source=source,
        bias_axes=tuple(result.index(index) - len(result) for index in written),
    )
    blocks = len(writes) // sizes[written[-1]], len(reads) // sizes[summed[-1]]
    ties = (*alike(writes, blocks[0], context), *alike(reads, blocks[1], context))
    return OpFacts((_spread(writes, written, result, sizes),), "reader", linear=linear, macs=macs, ties=ties)


def _kept_last(indices: Term, lying: Term, heads: Heads) -> Term:
    """The index that channels go from put last: the one that they lie on, else the last one, or that of the heads."""
    choice = [index for index in indices if index in lying] or list(indices)
    kept = choice[-2] if heads == "whole" and len(choice) > 1 else choice[-1]
    return (*(index for index in indices if index != kept), kept)


def _spread(labels: Labels, indices: Term, result: Term, sizes: dict[str, int]) -> Labels:
    """A vector of labels on the axes of these indices, laid along those of the result."""
    order = [index for index in result if index in indices]
    block = labels.reshape([sizes[index] for index in indices])
    block = np.transpose(block, [indices.index(index) for index in order])
    return block.reshape([sizes[index] if index in indices else 1 for index in result])


def _product(context: OpContext, equation: Equation, macs: int) -> OpFacts | None:
    """As (heads..., rows, columns): rows and columns are the last index of the result that only one operand has.

    No channels lie along it, where there is a choice: a head of K for several of Q has an index of its own in Q.
    """
    a, b = equation.operands
    result, both = equation.result, set(a) & set(b)
    summed = both - set(result)
    if len(summed) != 1 or set(result) != {*a, *b} - summed or _spreads(context, equation):
        return None
    own = [
        _own(labels, term, [i for i in result if i in term and i not in both])
        for labels, term in zip(context.labels, (a, b), strict=True)
    ]
    first = 1 if own[0] is not None and own[0] == result[-1] else 0  # the keys come second
    heads = [index for index in result if index not in own]
    left, right = (
        Operand(
            position,
            [
                equation.operands[position].index(i) if i in equation.operands[position] else None
                for i in (*heads, own[position] or "", *summed)
            ],
        )
        for position in (first, 1 - first)
    )
    facts = product(context, left, right, macs)
    labels = facts.outputs[0]
    if labels is None:
        return facts
    by_axis = [*heads, own[first], own[1 - first]]
    absent = tuple(axis for axis, index in enumerate(by_axis) if index is None)
    order = [index for index in by_axis if index is not None]
    moved = np.transpose(np.squeeze(labels, absent), [order.index(index) for index in result])
    return replace(facts, outputs=(moved,))


def _own(labels: Labels | None, term: Term, indices: list[str]) -> str | None:
    """The last of the indices that only one operand has, channels lying along no other if that can be."""
    plain = [index for index in indices if labels is None or labels.shape[term.index(index)] == 1]
    return next(reversed(plain or indices), None)


def _spreads(context: OpContext, equation: Equation) -> bool:
    """Whether an axis of size one stands beside a larger one with the same index."""
    sizes = [
        dict(zip(term, shape or (), strict=True)) for term, shape in zip(equation.operands, context.shapes, strict=True)
    ]
    return any((sizes[0][index] == 1) != (sizes[1][index] == 1) for index in sizes[0].keys() & sizes[1].keys())
