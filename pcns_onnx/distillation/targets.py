"""What is learnt at each output, and by what it is measured: read off the graphs and off the original's outputs.

    class scores (rank 2, three columns or more)         KL(softmax(t/T) || softmax(s/T)), T = 4 (Hinton et al. 2015)
    what a Softmax or a Sigmoid makes                    the same through the tensor in front of it
    rows of unit length                                  1 - cosine
    means over positions, and the like of them           |s - t|^2 / (2 |t|^2): 1 - cosine, where lengths agree
    everything else                                      squared error, each channel in its own scale

Beside the outputs there may be the hidden states that residual blocks hand on (`dependency.residual`): squared errors,
too. What is padding (`runtime.padding`) counts for nothing anywhere.

Every loss is a share of what it would be if the student always said the original's mean: so those of several outputs
can be added, by the weight that --output-weight gives them. What has no numbers (texts, indices) teaches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.output_layout import OutputLayout
from pcns_onnx.calibration.output_scale import SpreadTally
from pcns_onnx.data.conform import is_floating
from pcns_onnx.data.padding import Live, PositionAxes
from pcns_onnx.dependency.data_dependence import DataDependence
from pcns_onnx.distillation.options import LossChoice
from pcns_onnx.evaluation.batch_axis import with_samples_first
from pcns_onnx.evaluation.original import counted_fronts
from pcns_onnx.graph import Graph, Node
from pcns_onnx.numerics.arrays import has_unit_rows

Loss = Literal["kl", "binary", "mse", "cosine", "row"]

_Forced = Literal["auto", "kl", "mse", "cosine"]

TEMPERATURE = 4.0
LEAST_CLASSES = 3
_STILL = 1e-5
"""How much rows of scores vary by rounding alone, beside the largest of them."""
_SAME_VALUES = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout"})
_NO_SCORES = frozenset({"Tanh", "LayerNormalization", "Div", "ReduceMean", "ReduceSum", "LpNormalization"})
"""What makes features and not class scores, however many columns there are."""
_POOLED = frozenset({"Div", "ReduceMean", "ReduceSum", "ReduceMax", "Gather", "Slice", "LayerNormalization"})
"""What makes one row of features of the positions of a text."""


@dataclass(frozen=True)
class Target:
    """One output as it is learnt: the tensors of the original and of the student that are compared, and how.

    `axis`: of a KL, the one along which classes lie; with `flat` all from it on is one (Softmax before opset 13).
    `inner`: it is a hidden state and no output.
    """

    output: str
    original: str
    student: str
    loss: Loss
    axis: int = -1
    flat: bool = False
    inner: bool = False

    @property
    def shown_as(self) -> str:
        """The output, or the tensor that stands for it with its name."""
        stands_for = self.original != self.output and self.loss == "mse"
        return f"{self.original}, in front of {self.output}" if stands_for else self.output

    def __str__(self) -> str:
        how = {
            "kl": f"KL of the classes at temperature {TEMPERATURE:g}",
            "binary": f"KL of yes and no at temperature {TEMPERATURE:g}",
            "mse": "squared error, each channel in its own scale",
            "cosine": "1 - cosine",
            "row": "squared error, each row by its length",
        }[self.loss]
        return how if self.original == self.output else f"{how}, in front of its activation"


@dataclass(frozen=True)
class Measure:
    """A target with what is needed to measure it.

    `weights` are those of squared errors, and broadcast to an output whose samples, counted by its axis `batch`
    (None: by none), have been put in front; `whole` is what a student misses that says the mean, per sample.
    Where `place` has padding, all is of the positions that count, of which a sample has `rows` on average.
    """

    target: Target
    weights: NDArray[np.float64]
    whole: float
    importance: float
    batch: int | None = 0
    place: PositionAxes | None = None
    rows: float = 1.0


@dataclass(frozen=True)
class _Front:
    tensor: str
    loss: Loss
    axis: int = -1
    flat: bool = False


def taught_tensors(original: Graph, small: Graph) -> dict[str, str]:
    """The tensors that are learnt, each with the output that it is or stands for.

    Of an output whose size depends on what is found (boxes after their suppression) what stands in front is learnt.
    """
    dependence = DataDependence(original)
    counted = dependence.counted | dependence.strange | original.containers
    fronts = counted_fronts(original, small, dependence)
    return {spec.name: spec.name for spec in original.outputs if spec.name not in counted} | fronts


def targets_of(
    original: Graph,
    small: Graph,
    tensors: Mapping[str, str],
    values: Mapping[str, NDArray[Any]],
    choice: LossChoice,
    *,
    pooled: bool = False,
) -> list[Target]:
    """What is learnt of `taught_tensors`; `values` are some of the original's. Those without numbers are left out.

    `choice`: by what each output is, or one loss for all of them. `pooled`: samples are sequences, so that an output of
    one row per sample may be made of all its positions.
    """
    forced: _Forced = "auto" if choice == "outputs" or choice == "states" else choice
    # Beside an output that says its classes by a Softmax or a Sigmoid, plain numbers are boxes or the like.
    decided = any(_front(original, name) is not None for name in tensors)
    targets = []
    for name, output in tensors.items():
        if is_floating(values[name].dtype):
            array = np.asarray(values[name], dtype=np.float32)
            target = _target(original, small, name, array, forced, decided=decided, pooled=pooled)
            targets.append(replace(target, output=output))
    return targets


def _target(
    original: Graph,
    small: Graph,
    name: str,
    values: NDArray[np.float32],
    choice: _Forced,
    *,
    decided: bool,
    pooled: bool,
) -> Target:
    a, b = _front(original, name), _front(small, name)
    plain = Target(name, name, name, "mse")
    if a is not None and b is not None and (a.loss, a.axis, a.flat) == (b.loss, b.axis, b.flat):
        behind = Target(name, a.tensor, b.tensor, a.loss, a.axis, a.flat)
        return behind if choice == "auto" or choice == "kl" else replace(behind, loss=choice)
    if choice == "kl":
        return replace(plain, loss="kl") if values.ndim > 1 and values.shape[-1] > 1 else plain
    if choice != "auto":
        return replace(plain, loss=choice)
    if has_unit_rows(values):
        return replace(plain, loss="cosine")
    if values.ndim != 2 or values.shape[1] < LEAST_CLASSES:
        return plain
    maker = _maker(original, name)
    if pooled and maker.op in _POOLED:
        return replace(plain, loss="row")
    return replace(plain, loss="kl") if not decided and maker.op not in _NO_SCORES else plain


def _maker(graph: Graph, name: str) -> Node:
    """The node that makes the values of a tensor."""
    node = graph.producers[name]
    while node.op in _SAME_VALUES and node.inputs[0] in graph.producers:
        node = graph.producers[node.inputs[0]]
    return node


def _front(graph: Graph, name: str) -> _Front | None:
    """What stands in front of the Softmax or Sigmoid that makes an output; what changes its shape alone is skipped."""
    if name not in graph.producers:
        return None
    node = _maker(graph, name)
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op == "Sigmoid":
        return _Front(node.inputs[0], "binary")
    if node.op in ("Softmax", "LogSoftmax"):
        axis = int(node.attrs.get("axis", -1 if graph.opset >= 13 else 1))
        return _Front(node.inputs[0], "kl", axis, flat=graph.opset < 13)
    return None


class Spreads:
    """How the targets vary in the original, gathered over batches of its outputs; `axes` count samples in them, and
    `places` are where positions are that may be padding."""

    def __init__(
        self,
        targets: Sequence[Target],
        layout: OutputLayout,
        axes: Mapping[str, int | None],
        places: Mapping[str, PositionAxes | None] | None = None,
    ) -> None:
        self._targets, self._layout, self._axes, self._places = targets, layout, axes, places or {}
        self._samples, self._live = 0, 0
        self._tallies = {t.original: SpreadTally(t.original, layout) for t in targets if t.loss == "mse"}
        self._rows: dict[str, list[NDArray[np.float64]]] = {t.original: [] for t in targets if t.loss != "mse"}

    def update(self, outputs: Mapping[str, NDArray[Any]], samples: int, live: Live | None = None) -> None:
        """Take a batch in, of which the positions that are `live` count."""
        self._samples, self._live = self._samples + samples, self._live + (0 if live is None else int(live.sum()))
        for target in self._targets:
            values, axis = np.asarray(outputs[target.original], dtype=np.float32), self._axes[target.original]
            place = self._places.get(target.original)
            if place is not None and live is not None and place.fits(values.shape, live):
                values = place.only(values, live)
            else:
                place = None
            if target.loss == "mse":
                rows = with_samples_first(values, axis)
                count = samples if place or len(rows) % samples == 0 else 1
                self._tallies[target.original].update(rows, axis, count)
            else:
                self._rows[target.original].append(class_rows(target, values).astype(np.float64))

    def measures(self) -> list[Measure]:
        """How each target is measured; what counts nothing, or never varies, is left out."""
        measures = []
        for target in self._targets:
            weights, importance = np.ones(1), 1.0 if target.inner else _weight(target, self._layout)
            if target.loss == "mse":
                scale = self._tallies[target.original].scale()
                weights, whole = (scale.weight / scale.scale**2)[scale.ids], scale.whole
                if target.original == target.output and not target.inner:
                    importance = scale.importance
            else:
                whole = _whole(target, np.concatenate(self._rows[target.original]))
            if importance > 0 and whole > 0:
                place, rows = self._places.get(target.original), self._live / max(self._samples, 1)
                measures.append(Measure(target, weights, whole, importance, self._axes[target.original], place, rows))
        return measures


def _weight(target: Target, layout: OutputLayout) -> float:
    """The weight of a whole output by the user's word."""
    whole = [item.weight for item in layout.weights if item.output == target.output and item.stop is None]
    return whole[-1] if whole else 1.0


def class_rows(target: Target, values: NDArray[Any]) -> NDArray[Any]:
    """Values of a target with its classes, or the numbers of a vector, along the last of two axes."""
    if target.flat:
        return values.reshape(int(np.prod(values.shape[: target.axis % values.ndim])), -1)
    if target.loss == "binary":
        return values.reshape(len(values), -1)
    moved = np.moveaxis(values, target.axis, -1)
    return moved.reshape(-1, moved.shape[-1])


def _whole(target: Target, rows: NDArray[np.float64]) -> float:
    """The mean loss of a student that always says the original's mean; 0 where rows differ by rounding alone."""
    known = np.where(np.isfinite(rows), rows, 0.0)
    if known.std(axis=0).max(initial=0.0) <= _STILL * np.abs(known).max(initial=0.0):
        return 0.0
    if target.loss == "cosine":
        units = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return float(1 - np.linalg.norm(units.mean(axis=0)))
    if target.loss == "row":
        powers = np.maximum((rows**2).sum(axis=1), 1e-24)
        return float(np.mean(((rows - rows.mean(axis=0)) ** 2).sum(axis=1) / (2 * powers)))
    if target.loss == "binary":
        yes = 1 / (1 + np.exp(-np.clip(rows / TEMPERATURE, -50, 50)))
        return float(np.mean(_entropy(yes.mean(axis=0)) - _entropy(yes).mean(axis=0)))
    exponents = np.exp((rows - rows.max(axis=1, keepdims=True)) / TEMPERATURE)
    shares = exponents / exponents.sum(axis=1, keepdims=True)
    mean = shares.mean(axis=0)
    return float(np.mean((shares * np.log(np.maximum(shares, 1e-30) / np.maximum(mean, 1e-30))).sum(axis=1)))


def _entropy(yes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of a yes with these probabilities, in nats."""
    no = 1 - yes
    return np.asarray(-yes * np.log(np.maximum(yes, 1e-30)) - no * np.log(np.maximum(no, 1e-30)))
