"""The losses of `distillation.targets` in PyTorch: what a student misses, as a share of what saying the mean misses.

    KL      mean over places of sum_c p_c (log p_c - log q_c), p = softmax(t/T), q = softmax(s/T)
    binary  the same of a yes with p = sigmoid(t/T)
    MSE     sum_c w_c (s_c - t_c)^2 / s_c^2, per sample
    cosine  1 - s.t / (|s| |t|)

The factor T^2 that keeps gradients of one size over temperatures (Hinton et al. 2015) is in what a loss is divided by,
and Adam does not see it. A place where the original has no finite number (what an attention mask or a suppressed class
leaves) counts for nothing, nor does one that an input named as a mask is 0 at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pcns_onnx.distillation.targets import TEMPERATURE, Measure

_NOTHING = -1e4
"""The score of a class that is masked out: its share is 0 in float32, and its gradient, too."""


class DistillationLoss:
    """The loss of a batch over all outputs: the mean of their shares by importance."""

    def __init__(self, measures: Sequence[Measure], device: str) -> None:
        self._measures = measures
        self._weights = [torch.from_numpy(m.weights).to(device, torch.float32) for m in measures]
        self._total = sum(measure.importance for measure in measures)

    @property
    def axes(self) -> dict[str, int | None]:
        """The axis that counts samples, by the original's tensors."""
        return {measure.target.original: measure.batch for measure in self._measures}

    def __call__(
        self, student: Mapping[str, Tensor], original: Mapping[str, Tensor], samples: int, mask: Tensor | None = None
    ) -> Tensor:
        """Of the outputs of `samples` samples, by the names of either model's tensors.

        `mask` (samples, places) is 0 at places that count for nothing.
        """
        losses = [
            measure.importance * _missed(measure, weights, student, original, samples, mask) / measure.whole
            for measure, weights in zip(self._measures, self._weights, strict=True)
        ]
        return torch.stack(losses).sum() / self._total


def _missed(
    measure: Measure,
    weights: Tensor,
    student: Mapping[str, Tensor],
    original: Mapping[str, Tensor],
    samples: int,
    mask: Tensor | None,
) -> Tensor:
    target = measure.target
    s, t = student[target.student].float(), original[target.original].float()
    there = torch.isfinite(t)
    if mask is not None and t.ndim > mask.ndim and t.shape[: mask.ndim] == mask.shape:
        counts = mask.reshape(*mask.shape, *(1,) * (t.ndim - mask.ndim)) > 0
        s, share = torch.where(counts, s, t), counts.float().mean()  # where both say the same, nothing is missed
    else:
        share = torch.ones(())
    if target.loss == "mse":
        squares = torch.where(there, s - t, 0.0) ** 2
        squares = squares[None] if measure.batch is None else squares.movedim(measure.batch, 0)
        return (squares * weights).sum() / (samples if len(squares) % samples == 0 else 1) / share
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


def _entropy(logits: Tensor, yes: Tensor) -> Tensor:
    """What the cross entropy is at least: 0 for what is certain."""
    return F.binary_cross_entropy_with_logits(logits, yes, reduction="none")
