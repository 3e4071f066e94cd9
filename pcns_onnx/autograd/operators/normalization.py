"""Norms over batches (stored statistics), layers, groups and vectors; Softmax; onnxruntime's sums with a norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pcns_onnx.autograd.operators.operator import Operator


def _softmax(x: Tensor, *, axis: int | None = None, opset: int = 13) -> Tensor:
    return _over_axis(torch.softmax, x, axis, opset)


def _log_softmax(x: Tensor, *, axis: int | None = None, opset: int = 13) -> Tensor:
    return _over_axis(torch.log_softmax, x, axis, opset)


def _hardmax(x: Tensor, *, axis: int | None = None, opset: int = 13) -> Tensor:
    return _over_axis(_one_at_largest, x, axis, opset)


def _one_at_largest(x: Tensor, dim: int) -> Tensor:
    return torch.zeros_like(x).scatter(dim, x.argmax(dim, keepdim=True), 1.0)


def _over_axis(run: Callable[..., Any], x: Tensor, axis: int | None, opset: int) -> Tensor:
    """Before opset 13 everything from `axis` on is one axis."""
    if opset >= 13:
        return torch.as_tensor(run(x, dim=-1 if axis is None else axis))
    rows = math.prod(x.shape[: 1 if axis is None else axis % x.ndim])
    return torch.as_tensor(run(x.reshape(rows, -1), dim=-1)).reshape(x.shape)


def _batch_norm(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, *,
    epsilon: float = 1e-5, momentum: float = 0.9, is_test: int = 1, consumed_inputs: Any = None,
) -> Tensor:  # fmt: skip
    return F.batch_norm(x, mean, variance, scale, shift, False, 0.0, epsilon)


def _layer_norm(
    x: Tensor, scale: Tensor, shift: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    sizes = list(x.shape[axis:])
    if list(scale.shape) == sizes and (shift is None or shift.shape == scale.shape):
        return F.layer_norm(x, sizes, scale, shift, epsilon)
    normalised = F.layer_norm(x, sizes, None, None, epsilon) * scale
    return normalised if shift is None else normalised + shift


def _rms_norm(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    wide = x.float() if stash_type == 1 and x.dtype != torch.float64 else x
    dims = list(range(axis % x.ndim, x.ndim))
    return (wide * torch.rsqrt(wide.square().mean(dims, keepdim=True) + epsilon)).to(x.dtype) * scale


def _instance_norm(
    x: Tensor, scale: Tensor, shift: Tensor, *, epsilon: float = 1e-5, consumed_inputs: Any = None
) -> Tensor:
    dims, shape = list(range(2, x.ndim)), [-1, *[1] * (x.ndim - 2)]
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)  # of one position too, unlike F.instance_norm
    return (x - mean) * torch.rsqrt(variance + epsilon) * scale.reshape(shape) + shift.reshape(shape)


def _group_norm(
    x: Tensor, scale: Tensor, shift: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """That of opset 21; onnx calls its predecessor deprecated at its own opset, so that no model has it."""
    return F.group_norm(x, num_groups, scale, shift, epsilon)


def _lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    size = torch.linalg.vector_norm(x, ord=p, dim=axis, keepdim=True)
    return x / torch.where(size == 0, 1.0, size)


def _mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    variance, mean = torch.var_mean(x, list(axes), correction=0, keepdim=True)
    return (x - mean) / (variance.sqrt() + 1e-9)


def _local_response_norm(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    """Sums of squares over `size` channels around each, the longer half behind it where `size` is even."""
    around = F.pad(x.square().movedim(1, -1), [(size - 1) // 2, size // 2])
    total = around.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (bias + alpha / size * total) ** beta


def _skip_layer_norm(
    x: Tensor, skip: Tensor, scale: Tensor, shift: Tensor | None = None, bias: Tensor | None = None, *,
    epsilon: float = 1e-12,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    total = x + skip if bias is None else x + skip + bias
    return F.layer_norm(total, list(total.shape[-1:]), scale, shift, epsilon), None, None, total


def _skip_rms_norm(
    x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None, *, epsilon: float = 1e-12
) -> tuple[Tensor | None, ...]:
    total = x + skip if bias is None else x + skip + bias
    return _rms_norm(total, scale, epsilon=epsilon), None, None, total


def _embed_layer_norm(
    words: Tensor, segments: Tensor | None, word_table: Tensor, position_table: Tensor, segment_table: Tensor | None,
    scale: Tensor, shift: Tensor, mask: Tensor | None = None, positions: Tensor | None = None, *,
    epsilon: float = 1e-12, mask_index_type: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Tables of words, positions and segments, summed and normalised; and how many words of each row count."""
    places = torch.arange(words.shape[1], device=words.device) if positions is None else positions.long()
    total = F.embedding(words.long(), word_table) + F.embedding(places, position_table)
    if segments is not None and segment_table is not None:
        total = total + F.embedding(segments.long(), segment_table)
    lengths = torch.zeros_like(words[:, 0]) if mask is None else mask.sum(1).to(words.dtype)
    return F.layer_norm(total, list(total.shape[-1:]), scale, shift, epsilon), lengths, total


NORMALIZATION: dict[str, Operator] = {
    "Softmax": Operator(_softmax),
    "LogSoftmax": Operator(_log_softmax),
    "Hardmax": Operator(_hardmax, has_gradient=False),
    "BatchNormalization": Operator(_batch_norm, frozen=(3, 4), layer=True, only={"training_mode": 0, "spatial": 1}),
    "LayerNormalization": Operator(_layer_norm, layer=True),
    "RMSNormalization": Operator(_rms_norm, layer=True),
    "SimplifiedLayerNormalization": Operator(_rms_norm, layer=True),
    "InstanceNormalization": Operator(_instance_norm, layer=True),
    "GroupNormalization": Operator(_group_norm, layer=True),
    "LpNormalization": Operator(_lp_normalization),
    "MeanVarianceNormalization": Operator(_mean_variance_normalization),
    "LRN": Operator(_local_response_norm),
    "com.microsoft.SkipLayerNormalization": Operator(_skip_layer_norm, layer=True, outputs=4),
    "com.microsoft.SkipSimplifiedLayerNormalization": Operator(_skip_rms_norm, layer=True, outputs=4),
    "com.microsoft.EmbedLayerNormalization": Operator(_embed_layer_norm, layer=True, outputs=3),
}
