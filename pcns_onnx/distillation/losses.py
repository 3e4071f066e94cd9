"""The losses of `distillation.targets` in PyTorch: what a student misses, as a share of what saying the mean misses.

    KL      mean over places of sum_c p_c (log p_c - log q_c), p = softmax(t/T), q = softmax(s/T)
    binary  the same of a yes with p = sigmoid(t/T)
    MSE     sum_c w_c (s_c - t_c)^2 / s_c^2, per sample
    cosine  1 - s.t / (|s| |t|)
    row     |s - t|^2 / (2 |t|^2), which is 1 - cosine where |s| = |t|

The factor T^2 that keeps gradients of one size over temperatures (Hinton et al. 2015) is in what a loss is divided by,
and Adam does not see it. A place where the original has no finite number (what an attention mask or a suppressed class
leaves) counts for nothing, nor does one that is padding: losses are sums over what counts, divided by what the samples
have of that on average, so that short batches are no more than long ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pcns_onnx.data.padding import Live, PositionAxes
from pcns_onnx.distillation.targets import TEMPERATURE, Measure

_NOTHING = -1e4
"""The score of a class that is masked out: its share is 0 in float32, and its gradient, too."""


class DistillationLoss:
    """The loss of a batch: the mean of the outputs' shares by importance, and `inner` times the mean of those of hidden
    states."""

    def __init__(self, measures: Sequence[Measure], device: str, inner: float = 0.0) -> None:
        self._measures = [measure for measure in measures if inner or not measure.target.inner]
        self._weights = [torch.from_numpy(m.weights).to(device, torch.float32) for m in self._measures]
        total = sum(measure.importance for measure in measures if not measure.target.inner)
        hidden = max(sum(measure.target.inner for measure in measures), 1)
        self.inner = inner if any(measure.target.inner for measure in measures) else 0.0
        self._shares = [inner / hidden if m.target.inner else m.importance / total for m in self._measures]

    @property
    def axes(self) -> dict[str, int | None]:
        """The axis that counts samples, by the original's tensors."""
        return {measure.target.original: measure.batch for measure in self._measures}

    def __call__(
        self, student: Mapping[str, Tensor], original: Mapping[str, Tensor], samples: int, live: Live | None = None
    ) -> Tensor:
        """Of the outputs of `samples` samples, by the names of either model's tensors; `live`: which of their positions
        count."""
        losses = [
            share * _missed(measure, weights, student, original, samples, live) / measure.whole
            for share, measure, weights in zip(self._shares, self._measures, self._weights, strict=True)
        ]
        return torch.stack(losses).sum()


def _missed(
    measure: Measure,
    weights: Tensor,
    student: Mapping[str, Tensor],
    original: Mapping[str, Tensor],
    samples: int,
    live: Live | None,
) -> Tensor:
    target, place = measure.target, measure.place
    s, t = student[target.student].float(), original[target.original].float()
    share, is_padded = 1.0, place is not None and live is not None and place.fits(tuple(t.shape), live)
    if place is not None and live is not None and is_padded:
        chosen = torch.from_numpy(np.flatnonzero(live)).to(t.device)
        s, t = _only(s, place, chosen), _only(t, place, chosen)
        share = samples * measure.rows / max(len(chosen), 1)
    there = torch.isfinite(t)
    if target.loss == "mse":
        squares = torch.where(there, s - t, 0.0) ** 2
        squares = squares[None] if measure.batch is None else squares.movedim(measure.batch, 0)
        return (squares * weights).sum() / (samples if is_padded or len(squares) % samples == 0 else 1)
    if target.loss == "row":
        squares = (torch.where(there, s - t, 0.0) ** 2).sum(dim=-1)
        powers = (torch.where(there, t, 0.0) ** 2).sum(dim=-1)
        return (squares / (2 * powers.clamp(min=1e-24))).mean() / share
    s, t = torch.where(there, s, _NOTHING), torch.where(there, t, _NOTHING)
    if target.loss == "cosine":
        return (1 - F.cosine_similarity(s, t, dim=-1)).mean() / share
    s, t = s / TEMPERATURE, t / TEMPERATURE
    if target.loss == "binary":
        yes = torch.sigmoid(t)
        return (F.binary_cross_entropy_with_logits(s, yes, reduction="none") - _entropy(t, yes)).mean() / share
    if target.flat:
        rows = math.prod(t.shape[: target.axis % t.ndim])
        s, t = s.reshape(rows, -1), t.reshape(rows, -1)
    axis = -1 if target.flat else target.axis
    p, q = F.log_softmax(t, dim=axis), F.log_softmax(s, dim=axis)
    return (p.exp() * (p - q)).sum(dim=axis).mean() / share


def _only(values: Tensor, place: PositionAxes, chosen: Tensor) -> Tensor:
    """What counts of a tensor, as `PositionAxes.only` has it: numbers `chosen` of its (sample, position) pairs."""
    if place.positions is None:
        return values.index_select(place.samples, chosen)
    moved = values.movedim((place.samples, place.positions), (0, 1))
    rows = moved.reshape(-1, 1, *moved.shape[2:]).index_select(0, chosen)
    return rows.movedim((0, 1), (place.samples, place.positions))


def _entropy(logits: Tensor, yes: Tensor) -> Tensor:
    """What the cross entropy is at least: 0 for what is certain."""
    return F.binary_cross_entropy_with_logits(logits, yes, reduction="none")
