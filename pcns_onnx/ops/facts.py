"""What an operator may state about channels.

A *label* is a number that names one channel (one neuron). The labels of a tensor are an
integer array with the tensor's rank whose axes have the tensor's size where the channel
varies along them and size 1 elsewhere; -1 marks positions that belong to no channel. So the
labels of a Conv output N,C,H,W have the shape 1,C,1,1, and after Flatten 1,C*H*W: data
movement acts on labels exactly as it acts on data.

Labels that must come and go together are *tied* (the two sides of an Add, the same place in
every block of a grouped Conv). `propagation` merges tied labels into one class as it goes, and
shows rules one label per class, so an axis along which a class does not vary has size 1.

A rule looks at one node (`OpContext`) and returns what is true of it (`OpFacts`). It never goes
through the graph and never edits it: `dependency` does the one, `rewrite` the other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.graph import Array, Node, Shape
from pcns_onnx.numerics.arrays import namespace_of

Labels = NDArray[np.int64]

Kind = Literal["pointwise", "scaling", "affine", "linear", "channelwise", "move", "select", "reader", "opaque"]
"""How a node treats channels: one scalar function for all ('pointwise', or 'scaling' where it is
linear), per-channel constants ('affine'), commutes with any mixing of channels ('linear'), per
channel but not linear ('channelwise', e.g. MaxPool), relabels only ('move'), takes some of them
('select'), solved for ('reader'), unknown ('opaque')."""


Heads = Literal["width", "whole"]
"""What can go where the last axis splits into heads: the same dimensions of all, or whole ones."""


class Window(Protocol):
    """Which input positions an output position sees."""

    def grid(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Sizes of the output's axes other than those of samples and channels."""

    def positions(self, x_shape: tuple[int, ...]) -> int:
        """Output positions per sample for an input of this shape."""

    def places(self, x_shape: tuple[int, ...], at: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Flat input positions that the output positions `at` of a sample read, (P, taps); -1 for none."""


class LinearOp(Window, Protocol):
    """The numeric face of a linear layer: y = V x + c at every position.

    With `conv_groups` > 1 input and output channels are cut into as many equal blocks, and each block
    of V sees its own block of channels only: V is (K, C/conv_groups*taps), `part(b)` is block b alone.
    """

    @property
    def conv_groups(self) -> int:
        """Number of equal blocks; 1 where every output sees every input channel."""

    def part(self, block: int) -> LinearOp:
        """Block `block` as a layer of its own: its rows of V, its share of inputs and outputs."""

    @property
    def layout(self) -> Hashable:
        """How V lies in the weight: two layers that store the same weight, of the same layout, have the same V."""

    @property
    def taps(self) -> int:
        """Columns of V per input channel of the weight: k*k for Conv, 1 otherwise."""

    @property
    def padded(self) -> bool:
        """Whether positions near a border see zeros that no channel made."""

    @property
    def mixed(self) -> bool:
        """Whether rows do not come sample by sample."""

    @property
    def axis(self) -> int:
        """The axis of the input that channels lie on and go from."""

    def matrix(self, weight: Array) -> Array:
        """The weight as V, shape (K, C*taps)."""

    def weight(self, matrix: Array, like: Array) -> Array:
        """V back in the layout of the weight `like` (whose widths may differ)."""

    def owners(self, reads: Labels) -> Labels:
        """Which channel each column of V reads, from the labels `reads` of the weight's inputs."""

    def positions_of(self, y_shape: tuple[int, ...]) -> int:
        """The same, from the shape of the output."""

    def inputs(self, x: Any, at: NDArray[np.int64] | None) -> Any:
        """Rows x (R, C*taps), sample-major, at the output positions `at` of each sample (None: all)."""

    def outputs(self, y: Any, at: NDArray[np.int64] | None) -> Any:
        """The rows y (R, K) that belong to them, from the output or any tensor of its shape."""


@dataclass(frozen=True)
class Cell:
    """What sets a recurrent layer apart: V = [W R] of every direction reads the step's input and the state before it.

    `hidden` (D, H) labels the units of each direction, of which equally many stay. Input `recurrence` of the node is
    R (D, kH, H); `constants` are further stored inputs whose last axis holds the units of a direction, once or several
    times (peepholes, initial states); `zeros` are inputs that hold nothing but zeros and can be left away;
    `varying` are lengths and initial states that are neither.
    """

    gates: int
    hidden: Labels
    recurrence: int = 2
    constants: tuple[int, ...] = ()
    zeros: tuple[int, ...] = ()
    varying: tuple[int, ...] = ()

    @property
    def sides(self) -> tuple[Labels, ...]:
        """The units of each direction."""
        return tuple(self.hidden)


@dataclass(frozen=True)
class Linear:
    """A layer whose weight can be solved for.

    `weight` and `bias` are input positions (bias None: no such input can exist, the bias is the Add behind
    the node), `source` is that of what the layer reads. `weight_axes` are the axes that outputs and inputs go
    from, `bias_axes` those of the bias, counted from its end, that hold one value per row of V, in V's order:
    outputs go from the last of these. `reads` labels the input channels (before taps), `writes` the rows of V;
    where an axis of the weight has fewer entries, its labels are the first of these, and the others repeat
    them. `resets` are attributes that must be set when the weight is replaced, since V has absorbed them.
    `cell`: of a recurrent layer, what else there is to it.
    """

    op: LinearOp
    weight: int
    weight_axes: tuple[int, int]
    bias: int | None
    reads: Labels
    writes: Labels
    bias_scale: float = 1.0
    resets: tuple[tuple[str, float], ...] = ()
    source: int = 0
    bias_axes: tuple[int, ...] = (-1,)
    cell: Cell | None = None


@dataclass(frozen=True)
class PerChannelConstant:
    """Constant input `position` of the node has these labels: it is sliced along with them."""

    position: int
    labels: Labels


@dataclass(frozen=True)
class ChannelCount:
    """A number in the model that counts these labels: the length of an axis, a number of blocks.

    It is element `element` of what node `key` holds at `place`: a constant input (by position) or
    an attribute (by name). `replaces` names an attribute that says the same and has to go. One
    that counts from the end of the axis `along` is stored anew as soon as any of these go.
    """

    key: str
    place: int | str
    element: int
    labels: Labels
    replaces: str = ""
    along: Labels | None = None


@dataclass(frozen=True)
class ImpliedAxes:
    """Node `key` names no axes and acts on those of size one, `axes`: where `labels` become one, these are named.

    They belong at `place`, an input (by position) or an attribute (by name).
    """

    key: str
    place: int | str
    axes: tuple[int, ...]
    labels: Labels


@dataclass(frozen=True)
class ImpliedNumber:
    """Attribute `name` of node `key`, which follows from how many of `labels` there are where it is not given.

    It keeps the value that it has: `value` is written down as soon as any of them go.
    """

    key: str
    name: str
    value: float
    labels: Labels


@dataclass(frozen=True)
class ChannelIndex:
    """Constant input `position` of node `key` holds places along an axis with these labels."""

    key: str
    position: int
    labels: Labels


@dataclass(frozen=True)
class Tie:
    """Equal places of `a` and `b` (same shape) come and go together; -1 opposite a label: it must stay."""

    a: Labels
    b: Labels
    reason: str


@dataclass(frozen=True)
class OperandPart:
    """What a product reads of a tensor: places `first` to `first + count` of `axis` (all for a count of 0).

    These are seen as axes of `sizes`, as many as there are; -1 is what remains. So heads that lie side by side on
    one axis get an axis of their own.
    """

    axis: int
    first: int
    count: int
    sizes: tuple[int, ...]

    def of(self, x: Any) -> Any:
        """The part of a tensor."""
        xp = namespace_of(x)
        if self.count:
            index = [slice(None)] * x.ndim
            index[self.axis] = slice(self.first, self.first + self.count)
            x = x[tuple(index)]
        shape = tuple(int(size) for size in x.shape)
        return xp.reshape(x, (*shape[: self.axis], *self._sizes(shape[self.axis]), *shape[self.axis + 1 :]))

    def shape(self, shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """The shape of the part of a tensor of this shape."""
        size = self.count or shape[self.axis]
        return (*shape[: self.axis], *self._sizes(size), *shape[self.axis + 1 :])

    def _sizes(self, size: int | None) -> tuple[int | None, ...]:
        known = prod(one for one in self.sizes if one != -1)
        return tuple((None if size is None else size // known) if one == -1 else one for one in self.sizes)


@dataclass(frozen=True)
class Bilinear:
    """A product of two inputs that sums over channels of both: sum_j a_j b_j in every head.

    The positions of the second of `inputs` are the last axis of the result (keys, which a Softmax normalises
    over). `orders` are the axes of each as (heads..., positions, channels), None for one that it lacks and is
    repeated over; `a` and `b` are the labels in that order, of one shape. Where only `parts` of the inputs are
    multiplied, these are their axes.
    """

    inputs: tuple[int, int]
    orders: tuple[tuple[int | None, ...], tuple[int | None, ...]]
    a: Labels
    b: Labels
    parts: tuple[OperandPart | None, OperandPart | None] = (None, None)


@dataclass(frozen=True)
class Frozen:
    """These channels must stay, for this reason."""

    labels: Labels
    reason: str


@dataclass(frozen=True)
class OpFacts:
    """Everything a rule states about one node.

    `ties` merge labels, `coupled` are labels that several layers share (a sum, a concatenation).
    `largest` are the positions of which each output has the largest value (MaxPool).
    `scales` labels what the cost of a node that is not solved for is proportional to. `macs` are
    its multiply-adds for the whole inferred batch: 0 where a shape is not known, None
    for operators that are not counted. `reason` says why one that is counted is not solved for.
    """

    outputs: tuple[Labels | None, ...] = ()
    kind: Kind = "opaque"
    per_channel: tuple[PerChannelConstant, ...] = ()
    sizes: tuple[ChannelCount, ...] = ()
    channel_indices: tuple[ChannelIndex, ...] = ()
    implied_axes: tuple[ImpliedAxes, ...] = ()
    implied_numbers: tuple[ImpliedNumber, ...] = ()
    ties: tuple[Tie, ...] = ()
    coupled: tuple[Labels, ...] = ()
    frozen: tuple[Frozen, ...] = ()
    linear: Linear | None = None
    bilinear: Bilinear | None = None
    largest: Window | None = None
    scales: Labels | None = None
    macs: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class OpContext:
    """One node with what is known of its surroundings.

    Per input: `labels` (None: carries no channels), `shapes` (None: not inferred), `constants` (None: computed),
    `batched` (axes whose size follows the batch). Per output: `exposed` (it is an output of the model). `heads` says
    what to take from attention, `opset` the version of the default operators. `fresh(n)` makes n new labels. Of any
    tensor by name: `producer` makes it, `readers` read it, `value` is its constant (None: computed), `size` its
    inferred shape, `carried` its labels, `leaves` says whether it is an output of the model, `sparse` whether it is a
    constant that is stored sparsely (its value is None), `writable` whether new values of a constant take no more room,
    `given_back` whether it only goes back to the caller, as a state that may get narrower.
    """

    node: Node
    labels: tuple[Labels | None, ...]
    shapes: tuple[Shape | None, ...]
    outputs: tuple[Shape | None, ...]
    constants: tuple[Array | None, ...]
    batched: tuple[tuple[int, ...], ...]
    exposed: tuple[bool, ...]
    heads: Heads
    opset: int
    fresh: Callable[[int], Labels]
    producer: Callable[[str], Node | None]
    readers: Callable[[str], tuple[Node, ...]]
    value: Callable[[str], Array | None]
    size: Callable[[str], Shape | None]
    carried: Callable[[str], Labels | None]
    leaves: Callable[[str], bool]
    sparse: Callable[[str], bool]
    writable: Callable[[str], bool]
    given_back: Callable[[str], bool] = lambda name: False

    def constant(self, position: int) -> Array | None:
        """Constant input `position`, None if absent or computed."""
        return self.constants[position] if position < len(self.constants) else None

    def attr(self, name: str, default: Any) -> Any:
        """An attribute or its default."""
        return self.node.attrs.get(name, default)

    def known_shape(self, position: int) -> tuple[int, ...] | None:
        """Shape of input `position` if every axis is known."""
        return _complete(self.shapes[position]) if position < len(self.shapes) else None

    def known_output(self, position: int = 0) -> tuple[int, ...] | None:
        """Shape of output `position` if every axis is known."""
        return _complete(self.outputs[position])


MUST_STAY = "that must stay"
"""How a reason ends that has its cause elsewhere: `dependency` says which tensor is meant, and why it stays."""


def freeze(context: OpContext, reason: str, *, macs: int | None = None) -> OpFacts:
    """All channels that enter the node must stay; its outputs carry none."""
    frozen = tuple(Frozen(labels, reason) for labels in context.labels if labels is not None)
    return OpFacts(outputs=(None,) * len(context.node.outputs), frozen=frozen, macs=macs, reason=reason)


def describe(node: Node) -> str:
    """The operator and the node's label, as reasons name them."""
    op = f"{node.domain}.{node.op}" if node.domain else node.op
    return f"{op} '{node.label}'"


def axes_of(labels: Labels) -> tuple[int, ...]:
    """Axes along which the channel varies."""
    return tuple(axis for axis, size in enumerate(labels.shape) if size > 1)


def along(labels: Labels, axis: int, rank: int) -> Labels | None:
    """Labels as a vector if they vary along `axis` only, else None."""
    if labels.ndim != rank or any(a != axis % rank for a in axes_of(labels)):
        return None
    return labels.reshape(-1)


def spread(vector: Labels, axis: int, rank: int) -> Labels:
    """A vector of labels laid along `axis` of a tensor of `rank`."""
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)


def _complete(shape: Shape | None) -> tuple[int, ...] | None:
    if shape is None or any(d is None for d in shape):
        return None
    return tuple(int(d) for d in shape if d is not None)
