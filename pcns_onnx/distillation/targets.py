"""What is learnt at each output, and by what it is measured: read off the graphs and off the original's outputs.

    class scores (rank 2, three columns or more)         KL(softmax(t/T) || softmax(s/T)), T = 4 (Hinton et al. 2015)
    what a Softmax or a Sigmoid makes                    the same through the tensor in front of it
    rows of unit length                                  1 - cosine
    everything else                                      squared error, each channel in its own scale

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
from pcns_onnx.dependency.data_dependence import DataDependence
from pcns_onnx.distillation.options import LossChoice
from pcns_onnx.evaluation.batch_axis import with_samples_first
from pcns_onnx.evaluation.original import counted_fronts
from pcns_onnx.graph import Graph, Node
from pcns_onnx.numerics.arrays import has_unit_rows

Loss = Literal["kl", "binary", "mse", "cosine"]

TEMPERATURE = 4.0
LEAST_CLASSES = 3
_STILL = 1e-5
"""How much rows of scores vary by rounding alone, beside the largest of them."""
_SAME_VALUES = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout"})
_NO_SCORES = frozenset({"Tanh", "LayerNormalization", "Div", "ReduceMean", "ReduceSum", "LpNormalization"})
"""What makes features and not class scores, however many columns there are."""


@dataclass(frozen=True)
class Target:
    """One output as it is learnt: the tensors of the original and of the student that are compared, and how.

    `axis`: of a KL, the one along which classes lie; with `flat` all from it on is one (Softmax before opset 13).
    """

    output: str
    original: str
    student: str
    loss: Loss
    axis: int = -1
    flat: bool = False

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
        }[self.loss]
        return how if self.original == self.output else f"{how}, in front of its activation"


@dataclass(frozen=True)
class Measure:
    """A target with what is needed to measure it.

    `weights` are those of squared errors, and broadcast to an output whose samples, counted by its axis `batch`
    (None: by none), have been put in front; `whole` is what a student misses that says the mean, per sample.
    """

    target: Target
    weights: NDArray[np.float64]
    whole: float
    importance: float
    batch: int | None = 0


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
    original: Graph, small: Graph, tensors: Mapping[str, str], values: Mapping[str, NDArray[Any]], choice: LossChoice
) -> list[Target]:
    """What is learnt of `taught_tensors`; `values` are some of the original's. Those without numbers are left out."""
    # Beside an output that says its classes by a Softmax or a Sigmoid, plain numbers are boxes or the like.
    decided = any(_front(original, name) is not None for name in tensors)
    targets = []
    for name, output in tensors.items():
        if values[name].dtype.kind == "f" or values[name].dtype.name == "bfloat16":
            target = _target(original, small, name, np.asarray(values[name], dtype=np.float32), choice, decided)
            targets.append(replace(target, output=output))
    return targets


def _target(
    original: Graph, small: Graph, name: str, values: NDArray[np.float32], choice: LossChoice, decided: bool
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
    is_scores = (
        not decided
        and values.ndim == 2
        and values.shape[1] >= LEAST_CLASSES
        and _maker(original, name).op not in _NO_SCORES
    )
    return replace(plain, loss="kl") if is_scores else plain


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
    """How the targets vary in the original, gathered over batches of its outputs; `axes` count samples in them."""

    def __init__(self, targets: Sequence[Target], layout: OutputLayout, axes: Mapping[str, int | None]) -> None:
        self._targets, self._layout, self._axes = targets, layout, axes
        self._tallies = {t.original: SpreadTally(t.original, layout) for t in targets if t.loss == "mse"}
        self._rows: dict[str, list[NDArray[np.float64]]] = {t.original: [] for t in targets if t.loss != "mse"}

    def update(self, outputs: Mapping[str, NDArray[Any]], samples: int) -> None:
        """Take a batch in."""
        for target in self._targets:
            values, axis = np.asarray(outputs[target.original], dtype=np.float32), self._axes[target.original]
            if target.loss == "mse":
                rows = with_samples_first(values, axis)
                count = samples if len(rows) % samples == 0 else 1
                self._tallies[target.original].update(rows, axis, count)
            else:
                self._rows[target.original].append(class_rows(target, values).astype(np.float64))

    def measures(self) -> list[Measure]:
        """How each target is measured; what counts nothing, or never varies, is left out."""
        measures = []
        for target in self._targets:
            weights, importance = np.ones(1), _weight(target, self._layout)
            if target.loss == "mse":
                scale = self._tallies[target.original].scale()
                weights, whole = (scale.weight / scale.scale**2)[scale.ids], scale.whole
                importance = scale.importance if target.original == target.output else importance
            else:
                whole = _whole(target, np.concatenate(self._rows[target.original]))
            if importance > 0 and whole > 0:
                measures.append(Measure(target, weights, whole, importance, self._axes[target.original]))
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
