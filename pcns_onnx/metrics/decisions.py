"""What the scores of this folder share: the original's outputs as the truth, all samples at once, and which output.

A head is recognised by the shapes of the original's outputs in the first batch, and the small model is read in the
same way, so that a model gone wrong cannot pass for a head of another kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.errors import InputError

Array: TypeAlias = NDArray[Any]
Outputs: TypeAlias = Mapping[str, Array]


class DecisionMetric:
    """Agreement with the original's decisions, in percent; NaN where it decides nothing."""

    def update(self, outputs: Outputs, labels: Array | None, *, reference: Outputs, size: int) -> None:
        """Count one batch of `size` samples; `reference` are the original's outputs of the same samples."""
        raise NotImplementedError

    def compute(self) -> float:
        """The score of all batches so far, 100 at best."""
        raise NotImplementedError

    def __call__(
        self, outputs: Outputs, labels: Array | None = None, *, reference: Outputs, size: int | None = None
    ) -> float:
        """The score of these outputs alone; whatever was counted before plays no part and is kept."""
        alone = deepcopy(self)
        alone.reset()
        first = next(iter(reference.values()))
        alone.update(outputs, labels, reference=reference, size=len(first) if size is None else size)
        return alone.compute()

    def reset(self) -> None:
        """Forget what was counted."""
        raise NotImplementedError


def f1(expected: int, marked: int, common: int) -> float:
    """2 |A and B| / (|A| + |B|) in percent; NaN where both are empty."""
    total = expected + marked
    return 200 * common / total if total else float("nan")


def shapes_of(outputs: Outputs) -> str:
    """The outputs by name and shape, for messages."""
    return ", ".join(f"'{name}' {list(array.shape)}" for name, array in outputs.items())


def unlike(what: str, outputs: Outputs, wanted: str) -> InputError:
    """No output looks like the head that was asked for."""
    return InputError(f"metric {what}: no output looks like {wanted}; there are {shapes_of(outputs)}")


def sigmoid(values: Array) -> Array:
    """1 / (1 + exp(-x)), as float64."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * values.astype(np.float64))))


def class_shares(values: Array) -> Array:
    """The softmax exp(x) / sum(exp(x)) over the last axis, as float64."""
    shifted = np.exp(values.astype(np.float64) - values.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def is_share(values: Array) -> bool:
    """Whether all values lie between 0 and 1, as scores do that are no logits (rounding is forgiven)."""
    return bool(values.size == 0 or (values.min() >= -1e-3 and values.max() <= 1 + 1e-3))
